"""How the layers of an adapted model run in training: compiled or not, and what of them is kept for the gradients.

Both work layer by layer, so one compiled graph serves all layers of a kind, and FSDP2, which shards by layer, can
gather a layer before it is called. Neither changes a number beyond rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from llama_adapter.attach import adapters
from llama_adapter.backbones import layers_of

ATTENTION_OPERATORS = {
    torch.ops.llama_adapter.flat_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}

# What is kept of an adapted layer between its forward and its backward pass, besides its input; all else is computed
# again. From the most time for the least memory to the least time.
KEPT = {
    "layer": set(),  # nothing more: one more forward pass of every adapted layer
    "attention": ATTENTION_OPERATORS,  # the attentions' outputs: theirs is the part that grows with the square of T
    "products": ATTENTION_OPERATORS | MATRIX_PRODUCTS,  # only norms, rotations and activations are computed again
}


def checkpoint_layers(model: PreTrainedModel, kept: str) -> None:
    """Lets every adapted layer keep only a part of its activations. Before `compile_layers`, if that is called too.

    The layers below keep nothing in any case. Only the layer's own flag says that it trains: its attention and its MLP
    stay in evaluation mode, without dropout.

    Args:
        model: from `attach`, in evaluation mode.
        kept: a key of `KEPT`.

    Raises:
        ValueError: no such key.
    """
    if kept not in KEPT:
        raise ValueError(f"What a layer keeps is {kept!r}. Choose {', '.join(KEPT)}.")
    options = {}
    if KEPT[kept]:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, KEPT[kept]))
    layers = layers_of(model)
    for number in adapters(model):
        # transformers' layers look at these three.
        layers[number].training = True
        layers[number].gradient_checkpointing = True
        layers[number]._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, **options)


def _policy(kept: set, context, operator, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in kept else CheckpointPolicy.PREFER_RECOMPUTE


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles every layer, for rows of any length: a graph for frozen layers, one for the lowest adapted, one for the
    others."""
    for layer in layers_of(model):
        layer.compile(dynamic=True, fullgraph=True)


@contextmanager
def uncompiled(model: PreTrainedModel) -> Iterator[None]:
    """The layers as they were before `compile_layers`: for generation and validation, whose caches, masks and modes
    would each be compiled anew."""
    layers = layers_of(model)
    compiled = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in zip(layers, compiled, strict=True):
            layer._compiled_call_impl = call
