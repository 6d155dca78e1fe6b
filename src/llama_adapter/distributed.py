"""FSDP2 as a strategy of Lightning's Trainer."""

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from llama_adapter.sharding import shard


class ShardedStrategy(ModelParallelStrategy):
    """Shards the frozen model over the devices of each machine; all of what is trained stays on every device.

    Args:
        reshard_after_forward, prefetch_layers: see `sharding.shard`.
        across_nodes: one copy of the weights over all machines, not one per machine: layers then travel between them
            at every step, and a model may be larger than a machine's devices together.
        options: `timeout` and `process_group_backend`, see Lightning's class.
    """

    def __init__(
        self,
        *,
        reshard_after_forward: bool = True,
        prefetch_layers: int = 1,
        across_nodes: bool = False,
        **options: object,
    ) -> None:
        if prefetch_layers < 0:
            raise ValueError(f"trainer.strategy.prefetch_layers must be at least 0, got {prefetch_layers}.")
        super().__init__(save_distributed_checkpoint=False, **options)
        self.reshard_after_forward = reshard_after_forward
        self.prefetch_layers = prefetch_layers
        self.across_nodes = across_nodes

    # The trained parameters are whole on every device: their checkpoints are those of any other strategy.
    restore_checkpoint_after_setup = False  # later, Lightning forgets that the file is ours and holds more than tensors
    lightning_restore_optimizer = True
    save_checkpoint = Strategy.save_checkpoint
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict
    optimizer_state = Strategy.optimizer_state
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Of what is trained alone: the frozen weights are in no checkpoint, and nobody gathers them for one."""
        return {
            name: parameter for name, parameter in self.lightning_module.named_parameters() if parameter.requires_grad
        }

    def shard(self, model: PreTrainedModel) -> None:
        """Divides a model's frozen weights, once; for `LightningModule.configure_model`."""
        kind, per_node = self.root_device.type, self.num_processes
        if self.across_nodes:
            mesh = init_device_mesh(kind, (self.world_size,))
        else:
            mesh = init_device_mesh(kind, (self.world_size // per_node, per_node), mesh_dim_names=("node", "device"))
            mesh = mesh["device"]
        shard(model, mesh, reshard_after_forward=self.reshard_after_forward, prefetch_layers=self.prefetch_layers)

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Averages the gradients over all devices, as DDP does, in one message a step: they are a few MB."""
        gradients = [
            parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in parameters
        ]
        flat = self.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
