"""The frozen layers below the adapted ones: what they put out, and the model without them.

No prompt reaches them, so for the same tokens they always put out the same; `frozen_cache` keeps it on disk.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter.attach import adapters
from llama_adapter.backbones import family_of, layers_of
from llama_adapter.examples import Example
from llama_adapter.flat_batches import FlatCollator, flat_model_inputs


@torch.no_grad()
def frozen_states(model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """What the lowest adapted layer is given for some examples.

    Args:
        model: a decoder from `attach`, with at least one layer below the adapted ones.
        examples: `input_ids` and `labels`, [T] each.

    Returns:
        [tokens, C], the examples end to end, on the model's device.
    """
    batch = FlatCollator(pad_id=0, share_prefixes=False)(examples)
    batch = {key: value.to(model.device) for key, value in batch.items() if isinstance(value, Tensor)}
    outputs: list[Tensor] = []
    first = min(adapters(model))
    hook = layers_of(model)[first - 1].register_forward_hook(lambda layer, given, output: outputs.append(output))
    try:
        with _skipped(model, range(first, model.config.num_hidden_layers)):
            model.base_model(**flat_model_inputs(batch))
    finally:
        hook.remove()
    return outputs[0][0]


def frozen_layers_skipped(model: PreTrainedModel) -> AbstractContextManager[None]:
    """For as long as it lasts, the layers below the adapted ones hand on what they are given."""
    return _skipped(model, range(min(adapters(model))))


@contextmanager
def _skipped(model: PreTrainedModel, numbers: range) -> Iterator[None]:
    """Layers are replaced, not taken out: in some families the number of a layer tells which mask it gets."""
    layers = attrgetter(family_of(model.config).layers)(model.base_model)
    replaced = {number: layers[number] for number in numbers}
    for number in numbers:
        layers[number] = _Skipped()
    try:
        yield
    finally:
        for number, layer in replaced.items():
            layers[number] = layer


class _Skipped(nn.Module):
    """In the place of a layer."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states
