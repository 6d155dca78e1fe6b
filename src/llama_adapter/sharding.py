"""A frozen model in shards (FSDP2): every device holds a part of each layer and gathers a layer when it runs.

Only frozen weights are sharded. What is trained is a few MB: it stays whole on every device, in float32 beside layers
of any dtype, so an optimizer, a checkpoint and an adapter's file are those of one device, and no gradient but the
adapter's is ever reduced. Gathering needs all devices at the same time: they must run the model equally often
(`taking_turns`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from llama_adapter.backbones import layers_of


def shard(
    model: PreTrainedModel, mesh: DeviceMesh, *, reshard_after_forward: bool = True, prefetch_layers: int = 1
) -> None:
    """Divides the frozen weights of an adapted model among the devices of a mesh, in place; a second call does nothing.

    Units that are gathered at once: each layer, the embeddings, a decoder's head, and the little that is left.
    Embeddings that are the head's weights too (tied) stay whole.

    Args:
        model: from `attach`; with weights, or on the meta device and with the folder of its weights in
            `model.name_or_path`, of which each device then reads its part alone.
        mesh: one-dimensional.
        reshard_after_forward: whether a layer is dropped after its forward pass, and gathered once more for the
            backward; False keeps all of them until then: faster, and the whole model in memory.
        prefetch_layers: how many layers are gathered ahead, while one computes; 0 leaves it to FSDP2.

    Raises:
        ValueError: weights that would be sharded are trained.
    """
    if is_sharded(model):
        return
    units = _units(model)
    whole = _whole_parameters(model)
    if any(parameter.requires_grad for unit in units for parameter in unit.parameters() if parameter not in whole):
        raise ValueError(
            "adapter.trained is all, but FSDP2 shards frozen weights alone here. Choose a trainer that holds the whole "
            "model (trainer=8xa100_ddp)."
        )
    options = {"mesh": mesh, "ignored_params": whole}
    for unit in units:
        fully_shard(unit, reshard_after_forward=reshard_after_forward, **options)
        unit.reshard_after_use = reshard_after_forward
    fully_shard(model.base_model, **options)
    layers = layers_of(model)
    for number, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[number + 1 : number + 1 + prefetch_layers])
        layer.set_modules_to_backward_prefetch(layers[max(0, number - prefetch_layers) : number][::-1])
    if any(parameter.is_meta for parameter in model.parameters()):
        _read_shards(model, Path(model.name_or_path), torch.device(mesh.device_type, _index(mesh)))


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether `shard` has divided its weights."""
    return isinstance(model.base_model, FSDPModule)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The whole weights of a unit, for use outside its forward pass; nothing for a module that is no unit."""
    if not isinstance(module, FSDPModule):
        yield
        return
    if _turns is not None:
        _turns.take(module)
    module.unshard()
    try:
        yield
    finally:
        if module.reshard_after_use:
            module.reshard()


class _Turns:
    """Lets devices that run a sharded model differently often gather the same things at the same time.

    Before a device gathers anything it says what, and all gather what the first of them in the list of units wants;
    those that wanted something else ask again afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.base = model.base_model
        self.units = _units(model)
        self.head = model.get_output_embeddings()
        self.device = model.device

    def take(self, module: nn.Module | None) -> None:
        """Returns when it is the turn of a unit, or of the whole forward pass; for None when all have said None."""
        wanted = 0 if module is None else 1 + [self.base, *self.units].index(module)
        while (turn := self._largest(wanted)) != wanted:
            self._gather(turn)

    def _largest(self, wanted: int) -> int:
        largest = torch.tensor(wanted, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def _gather(self, turn: int) -> None:
        """What a forward pass of the base model (turn 1) or the use of one unit gathers, without computing."""
        if turn > 1:
            self._gather_unit(self.units[turn - 2])
            return
        self.base.unshard()
        for unit in self.units:
            if unit is not self.head:
                self._gather_unit(unit)

    @staticmethod
    def _gather_unit(unit: FSDPModule) -> None:
        unit.unshard()
        if unit.reshard_after_use:
            unit.reshard()


_turns: _Turns | None = None


@contextmanager
def taking_turns(model: PreTrainedModel) -> Iterator[None]:
    """For work on a sharded model that differs between devices, say a share of the examples each.

    A device that leaves the context early helps the others until they leave it too. Nothing for a model that is whole.
    """
    global _turns
    if not is_sharded(model):
        yield
        return
    _turns = _Turns(model)
    hooks = [
        module.register_forward_pre_hook(lambda module, _: _turns.take(module), prepend=True)
        for module in (_turns.base, _turns.head)
        if module is not None
    ]
    try:
        yield
        _turns.take(None)
    finally:
        _turns = None
        for hook in hooks:
            hook.remove()


def _units(model: PreTrainedModel) -> list[nn.Module]:
    head = model.get_output_embeddings()  # None for an encoder
    return [model.get_input_embeddings(), *layers_of(model), *([] if head is None else [head])]


def _whole_parameters(model: PreTrainedModel) -> set[nn.Parameter]:
    """What no device has a part of: prompts and gates, what is trained besides them, and tied embeddings."""
    base, head = {*model.base_model.parameters()}, model.get_output_embeddings()
    whole = {p for name, p in model.named_parameters() if ".adapter." in name or (p.requires_grad and p not in base)}
    if head is not None and head.weight is model.get_input_embeddings().weight:
        whole.add(head.weight)
    return whole


def _index(mesh: DeviceMesh) -> int | None:
    return None if mesh.device_type == "cpu" else torch.accelerator.current_device_index()


def _read_shards(model: PreTrainedModel, folder: Path, device: torch.device) -> None:
    """Gives a sharded model on the meta device its memory, and each device its part of the files."""
    base, head, embeddings = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embeddings.weight
    # Prompts, gates and rotary frequencies have their values, and no file has them.
    real = {name: tensor.detach().clone() for name, tensor in _tensors(base) if not tensor.is_meta}
    for module in (base, head):
        module.to_empty(device=device)
    if tied:
        head.weight = embeddings.weight
    with torch.no_grad():
        for name, tensor in _tensors(base):
            if name in real:
                tensor.copy_(real[name])
    frozen = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor) or parameter is embeddings.weight
    }
    dcp.load(frozen, storage_reader=HuggingFaceStorageReader(str(folder)))
    if empty := [name for name, tensor in _tensors(model) if tensor.is_meta]:
        # Lightning would give all of the model new memory, and whatever stands in it.
        raise RuntimeError(f"{empty[0]} is on the meta device, and no file in {folder} has its values.")


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
