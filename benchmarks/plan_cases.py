"""What the memory benchmarks of plans measure: a model of frozen random weights, a batch, a step, and its plan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForQuestionAnswering, PreTrainedModel

from llama_adapter.architecture import Architecture, Hardware
from llama_adapter.attach import attach
from llama_adapter.batches import BatchConfig
from llama_adapter.data import PaddedCollator
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.heads import response_loss, span_loss
from llama_adapter.layer_modes import checkpoint_layers
from llama_adapter.memory import Sharding
from llama_adapter.optim import OptimizerConfig
from llama_adapter.plan import make_plan
from llama_adapter.zero_init import AdapterConfig

MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """A model and its batch.

    Args:
        family: transformers' model type.
        config: its settings.
        prompt_layers: L.
        examples, tokens: of a batch, all examples of one length.
    """

    family: str
    config: dict[str, int]
    prompt_layers: int
    examples: int
    tokens: int


SHAPES = {
    "4_layers": Shape(
        "llama",
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
         "num_key_value_heads": 16, "vocab_size": 32000},
        prompt_layers=3, examples=4, tokens=256,
    ),
    "16_layers_grouped": Shape(
        "llama",
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16,
         "num_key_value_heads": 4, "vocab_size": 8192},
        prompt_layers=14, examples=2, tokens=256,
    ),
    "encoder": Shape(
        "roberta",
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "vocab_size": 8192, "max_position_embeddings": 514, "type_vocab_size": 1},
        prompt_layers=12, examples=4, tokens=256,
    ),
    "llama_7b": Shape(
        "llama",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "vocab_size": 32000},
        prompt_layers=30, examples=8, tokens=512,
    ),
    "llama_13b": Shape(
        "llama",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
         "num_key_value_heads": 40, "vocab_size": 32000},
        prompt_layers=30, examples=8, tokens=512,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        shape: a key of `SHAPES`.
        dtype: of the frozen weights.
        batching: flat or padded; an encoder's are always padded.
        activation_checkpointing: what a layer keeps; None for all.
        device: cpu or cuda.
    """

    shape: str
    dtype: str
    batching: str
    activation_checkpointing: str | None
    device: str = "cpu"


def random_model(shape: Shape, case: Case, **changed: int) -> PreTrainedModel:
    """Adapted, with gates away from zero."""
    config = AutoConfig.for_model(shape.family, **(shape.config | changed))
    kind = AutoModelForCausalLM if shape.family == "llama" else AutoModelForQuestionAnswering
    torch.manual_seed(0)
    with torch.device(case.device):
        model = kind.from_config(config, attn_implementation="sdpa", dtype=getattr(torch, case.dtype))
    layers = min(shape.prompt_layers, config.num_hidden_layers)
    model = attach(model, AdapterConfig(10, layers, gate_init="random")).eval()
    if case.activation_checkpointing is not None:
        checkpoint_layers(model, case.activation_checkpointing)
    return model


def random_batch(shape: Shape, case: Case, *, examples: int, tokens: int) -> tuple[dict[str, Tensor], Callable]:
    """A batch and its loss; the second half of an example is trained."""
    ids = torch.randint(3, 64, (examples, tokens))
    if shape.family != "llama":
        mask, zeros = torch.ones_like(ids), torch.zeros(examples, dtype=torch.long)
        mask[-1, -1] = 0  # without any padding there would be no mask at all
        batch = {"input_ids": ids, "attention_mask": mask, "start_positions": zeros, "end_positions": zeros}
        return {name: column.to(case.device) for name, column in batch.items()}, span_loss
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    collate = FlatCollator(0, share_prefixes=False) if case.batching == "flat" else PaddedCollator(0)
    batch = collate([{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)])
    return {name: column.to(case.device) for name, column in batch.items() if name != "counts"}, response_loss


class Training:
    """A model with its optimizer and one batch."""

    def __init__(self, shape: Shape, case: Case, *, examples: int, tokens: int, **changed: int) -> None:
        self.model = random_model(shape, case, **changed)
        self.batch, self.loss_of = random_batch(shape, case, examples=examples, tokens=tokens)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = AdamW(trainable, lr=1e-3, fused=True)

    def step(self) -> None:
        loss, _ = self.loss_of(self.model, self.batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def lasting_bytes(self) -> int:
        """Of all tensors that are there between two steps."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.batch.values()]
        tensors += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())


def planned(case: Case, *, shape: Shape | None = None, sharding: Sharding | None = None) -> float:
    """MiB that a plan says, for a shape that is not in the table and for sharded weights too."""
    shape = shape or SHAPES[case.shape]
    config = AutoConfig.for_model(shape.family, **shape.config)
    encoder = shape.family != "llama"
    plan = make_plan(
        model=case.shape,
        architecture=Architecture.from_config(config),
        hardware=Hardware(),
        adapter=AdapterConfig(10, shape.prompt_layers),
        batches=BatchConfig(shape.examples, shape.examples, batching="padded" if encoder else case.batching),
        optimizer=OptimizerConfig(),
        devices=1,
        max_epochs=10,
        max_steps=-1,
        examples=shape.examples,
        tokens_per_example=float(shape.tokens),
        max_length=shape.tokens,
        dtype=case.dtype,
        quantization=None,
        sharding=sharding,
        activation_checkpointing=case.activation_checkpointing,
        head_outputs=2 if encoder else 0,
    )
    return plan.memory.total / MIB
