"""The prompt half of a flat row whose documents have prompts of their own, as those with images do (Eq. 10).

Every segment attends to one of N sets of prompts. A custom operator with its own backward, as the frozen half is one
(`flat_attention`): one autograd node per layer, no graph break under `torch.compile`. K is small, so plain matrix
products per segment are as fast as a fused kernel, and the weights are computed again in the backward pass.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from llama_adapter.zero_init import gate_value, repeat_heads


def segment_prompt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate_factor: Tensor,
    scaling: float,
    *,
    cu_seqlens: Tensor,
    context_of: Tensor,
) -> Tensor:
    """`prompt_attention` with the prompts chosen by segment.

    Args:
        query: [1, H, T, D], after rotary embedding.
        key, value: [N, G, K, D], from N sets of prompts. H is a multiple of G.
        gate_factor: [H], after its activation, float32.
        scaling: multiplies the scores.
        cu_seqlens: [S + 1] int32 on the CPU, where each segment starts, and T.
        context_of: [S] or longer, int32 on the CPU: the set of each segment; -1 is the last one.

    Returns:
        [1, T, H, D], in the query's dtype.
    """
    heads = query.shape[1]
    key, value = repeat_heads(key, heads), gate_value(value, gate_factor)
    return torch.ops.llama_adapter.segment_prompts(query, key, value, cu_seqlens, context_of, scaling).transpose(1, 2)


@torch.library.custom_op("llama_adapter::segment_prompts", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, context_of: Tensor, scale: float) -> Tensor:
    """[1, H, T, D]."""
    output = _empty_like(query)
    for own, context in _segments(cu_seqlens, context_of):
        weights = _weights(query[0, :, own], key[context], scale)
        output[0, :, own] = weights.to(value.dtype) @ value[context]
    return output


@torch.library.custom_op("llama_adapter::segment_prompts_backward", mutates_args=())
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, context_of: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; those of a set that several segments use are added up in float32."""
    query_gradient = _empty_like(query)
    totals = [torch.zeros_like(states, dtype=torch.float32) for states in (key, value)]
    for own, context in _segments(cu_seqlens, context_of):
        queries, of_output = query[0, :, own], gradient[0, :, own]  # [H, n, D]
        weights = _weights(queries, key[context], scale)  # [H, n, K]
        of_weights = (of_output @ value[context].mT).float()
        of_scores = (weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale).to(query.dtype)
        query_gradient[0, :, own] = of_scores @ key[context]
        totals[0][context] += of_scores.mT @ queries
        totals[1][context] += weights.to(value.dtype).mT @ of_output
    return query_gradient, *(total.to(key.dtype) for total in totals)


@_forward.register_fake
def _(query, key, value, cu_seqlens, context_of, scale):
    return _empty_like(query)


@_backward.register_fake
def _(gradient, query, key, value, cu_seqlens, context_of, scale):
    return _empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, gradient: Tensor):
    gradients = torch.ops.llama_adapter.segment_prompts_backward(gradient, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _segments(cu_seqlens: Tensor, context_of: Tensor) -> Iterator[tuple[slice, int]]:
    bounds = pairwise(cu_seqlens.tolist())
    for (start, end), context in zip(bounds, context_of.tolist(), strict=False):
        yield slice(start, end), context


def _weights(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[H, n, K] in float32."""
    return (queries @ keys.mT * scale).softmax(dim=-1, dtype=torch.float32)


def _empty_like(states: Tensor) -> Tensor:
    """[1, H, T, D] in the memory layout [1, T, H, D], from which a projection takes it without a copy."""
    batch, heads, length, size = states.shape
    return states.new_empty(batch, length, heads, size).transpose(1, 2)
