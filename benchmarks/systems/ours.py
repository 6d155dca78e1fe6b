"""Our training step in its forms, from the plain padded one to a flat row with shared prefixes and compiled layers."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from benchmarks.shapes import same_weights
from benchmarks.systems.system import PAD_ID, Batch, System, Workload, trainable_parameters
from llama_adapter.examples import Example
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.heads import response_loss
from llama_adapter.layer_modes import checkpoint_layers, compile_layers


def padded512(workload: Workload) -> System:
    return _padded(workload.adapted, workload.pad_to_max)


def padded_longest(workload: Workload) -> System:
    return _padded(workload.adapted, workload.pad_to_longest)


def flat(workload: Workload) -> System:
    return _flat(workload.adapted, share_prefixes=False)


def flat_prefix(workload: Workload) -> System:
    return _flat(workload.adapted, share_prefixes=True)


def flat_prefix_compiled(workload: Workload) -> System:
    model = same_weights(workload.adapted)  # compiling changes a module in place
    compile_layers(model)
    return _flat(model, share_prefixes=True)


def flat_prefix_keeping(kept: str) -> Callable[[Workload], System]:
    """With activation checkpointing: what a layer keeps is a key of `layer_modes.KEPT`."""

    def system(workload: Workload) -> System:
        model = same_weights(workload.adapted)
        checkpoint_layers(model, kept)
        return _flat(model, share_prefixes=True)

    return system


def _padded(model: PreTrainedModel, collate: Callable[[Sequence[Example]], list[Batch]]) -> System:
    return System(trainable_parameters(model), collate, lambda batch: response_loss(model, batch)[0])


def _flat(model: PreTrainedModel, *, share_prefixes: bool) -> System:
    collate = FlatCollator(PAD_ID, share_prefixes=share_prefixes)
    return System(
        trainable_parameters(model), lambda examples: [collate(examples)], lambda batch: response_loss(model, batch)[0]
    )
