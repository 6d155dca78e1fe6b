"""Causal attention of a flat row: documents end to end, each on its own, some after a prefix that they share.

A row is cut into segments. The queries of a segment see the keys of the segment named as its prefix, if any, and then
its own; the positions of a document continue those of its prefix. No mask is larger than one document. Everything is
inside one custom operator with its own backward: one autograd node per layer, no graph break under `torch.compile`.

On the CPU each segment is a call of torch's flash kernel. On CUDA a bfloat16 or float16 row is one call of
`torch.nn.attention.varlen` over gathered keys; any other row there is a loop of matrix products. The varlen call is
written from its source in torch 2.13 and UNTRIED on a GPU, so its first use compares it with the loop on a small row,
forward and backward, and where they differ the loop is used and a warning says so.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from llama_adapter.flat_segment import CPU, PLAIN, Segment, read_segments, sum_dtype

log = logging.getLogger(__name__)

# transformers hands a 4D mask on untouched; given none, it would see the positions start anew and build [1, 1, T, T].
# Nothing is True in it: a kernel that took it for a mask would return NaN and not a plausible number.
NO_MASK = torch.zeros(1, 1, 1, 1, dtype=torch.bool)

VARLEN_TOLERANCE = 0.05  # relative; bfloat16 rounds at 0.4 %, in every product


def flat_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    prefix: Tensor | None,
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """Attention of every segment of a flat row over [its prefix; itself].

    `cu_seqlens` and `prefix` are read on the host: on the CPU, beside a row on the GPU, they cost no waiting.

    Args:
        query: [1, H, T, D], after rotary embedding.
        key, value: [1, G, T, D]. H is a multiple of G.
        cu_seqlens: [S + 1] int32, where each of the S segments starts, and T.
        prefix: [S] or longer, int32: the number of the segment in front of each segment, or -1; a prefix has no prefix
            itself. What follows the S entries is not read: with one more, no length is 1 in a row of one document, and
            `torch.compile` does not compile again for it. None: no segment has a prefix.
        scaling: multiplies the scores, usually D ** -0.5.
        window: a token sees itself and `window - 1` tokens before it (transformers' `sliding_window`), counted along
            [prefix; own]. None: all of them.

    Returns:
        [1, T, H, D], the layout attention functions return, in the query's dtype.

    Raises:
        ValueError: more than one row, other keys than the row's own, or a prefix that cannot be one.
    """
    if query.shape[0] != 1:
        raise ValueError(f"A flat batch is one row, got {query.shape[0]}. Put all documents into it, end to end.")
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"A flat row of {query.shape[2]} tokens was given {key.shape[2]} keys. Call the model with use_cache=False."
        )
    prefix = torch.full_like(cu_seqlens, -1) if prefix is None else prefix
    output, _ = torch.ops.llama_adapter.flat_attention(query, key, value, cu_seqlens, prefix, scaling, window)
    return output.transpose(1, 2)


@torch.library.custom_op("llama_adapter::flat_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, prefix: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """The output, [1, H, T, D], and the log-sum-exp of the scores, [1, H, T]."""
    segments = read_segments(cu_seqlens, prefix)
    forward = _varlen_forward if has_varlen(query) else _loop_forward
    return forward(query, key, value, segments, scale, window)


def _loop_forward(query, key, value, segments, scale, window):
    kernel = CPU if query.is_cpu else PLAIN
    output, lse = _empty_output(query)
    for segment, keys, values in _keys_and_values(segments, key, value):
        own = segment.own
        output[:, :, own], lse[:, :, own] = kernel.forward(segment, query[:, :, own], keys, values, scale, window)
    return output, lse


@torch.library.custom_op("llama_adapter::flat_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; those of a prefix are sums over its documents, added up in float32."""
    segments = read_segments(cu_seqlens, prefix)
    backward = _varlen_backward if has_varlen(query) else _loop_backward
    return backward(gradient, query, key, value, output, lse, segments, scale, window)


def _loop_backward(gradient, query, key, value, output, lse, segments, scale, window):
    kernel = CPU if query.is_cpu else PLAIN
    query_gradient = _empty_like(query)
    totals = [_empty_like(states, sum_dtype(states)).zero_() for states in (key, value)]
    for segment, keys, values in _keys_and_values(segments, key, value):
        own, before = segment.own, segment.prefix_length
        by_query = (states[:, :, own] for states in (gradient, query))
        saved = (states[:, :, own] for states in (output, lse))
        query_gradient[:, :, own], *parts = kernel.backward(segment, *by_query, keys, values, *saved, scale, window)
        for total, part in zip(totals, parts, strict=True):
            total[:, :, own] += part[:, :, before:]
            if before:
                total[:, :, segment.prefix] += part[:, :, :before]
    return query_gradient, *(total.to(key.dtype) for total in totals)


@_forward.register_fake
def _(query, key, value, cu_seqlens, prefix, scale, window):
    return _empty_output(query)


@_backward.register_fake
def _(gradient, query, key, value, output, lse, cu_seqlens, prefix, scale, window):
    return _empty_like(query), _empty_like(key), _empty_like(value)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    query, key, value, cu_seqlens, prefix = tensors
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, prefix)


def _autograd(ctx, gradient: Tensor, _: Tensor | None):
    gradients = torch.ops.llama_adapter.flat_attention_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window)
    return *gradients, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _keys_and_values(
    segments: Sequence[Segment], key: Tensor, value: Tensor
) -> Iterator[tuple[Segment, Tensor, Tensor]]:
    """[1, G, p + n, D] each; copies only where there is a prefix."""
    for segment in segments:
        if segment.prefix_length:
            slices = (segment.prefix, segment.own)
            keys, values = (torch.cat([states[:, :, part] for part in slices], dim=2) for states in (key, value))
        else:
            keys, values = key[:, :, segment.own], value[:, :, segment.own]
        yield segment, keys, values


def _empty_like(states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[1, H, T, D] in the memory layout [1, T, H, D], from which a projection takes it without a copy."""
    batch, heads, length, size = states.shape
    return states.new_empty(batch, length, heads, size, dtype=dtype).transpose(1, 2)


def _empty_output(query: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(query), query.new_empty(query.shape[:3], dtype=sum_dtype(query))


# --- CUDA, half precision: one call for the whole row (untried on a GPU) ----------------------------------------------


def has_varlen(query: Tensor) -> bool:
    """Whether torch's variable-length flash kernel takes this row: half precision, Ampere or later, head sizes."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and varlen_agrees(query.device, query.dtype, query.shape[-1])
    )


@cache
def varlen_agrees(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether the kernel and the loop give the same output and gradients for a prefix with two documents.

    A mask aligned at the upper left, or a missing one, is off by the size of the numbers themselves; half precision by
    its rounding. Warns when they differ, or when the kernel cannot be called.
    """
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((1, 4, 24, size), (1, 2, 24, size), (1, 2, 24, size), (1, 4, 24, size))
    query, key, value, gradient = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes
    )
    segments = read_segments(torch.tensor([0, 5, 9, 24]), torch.tensor([-1, 0, 0]))
    results = []
    try:
        for forward, backward in ((_loop_forward, _loop_backward), (_varlen_forward, _varlen_backward)):
            output, lse = forward(query, key, value, segments, size**-0.5, None)
            results.append((output, *backward(gradient, query, key, value, output, lse, segments, size**-0.5, None)))
    except (RuntimeError, ImportError, AttributeError, NotImplementedError) as error:
        problem = str(error).splitlines()[0]
    else:
        off = max(((a.float() - b.float()).norm() / a.float().norm()).item() for a, b in zip(*results, strict=True))
        if off < VARLEN_TOLERANCE:
            return True
        problem = f"it is off by {off:.0%}"
    log.warning(
        "torch.nn.attention.varlen of torch %s cannot be used here for flat rows (%s). A loop over the documents takes "
        "its place, which is right but slower; data.batching=padded may be faster.",
        torch.__version__,
        problem,
    )
    return False


def varlen_layout(segments: Sequence[Segment], device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor, int, int]]:
    """The rows of [prefix; own] of all segments end to end, and the kernel's cu_seq_q, cu_seq_k, max_q and max_k."""
    rows: list[int] = []
    query_ends, key_ends = [0], [0]
    for segment in segments:
        rows += [*range(segment.prefix_start, segment.prefix_end), *range(segment.start, segment.end)]
        query_ends.append(segment.end)
        key_ends.append(len(rows))
    cu_seq_q, cu_seq_k = (torch.tensor(ends, dtype=torch.int32, device=device) for ends in (query_ends, key_ends))
    max_q = max(segment.end - segment.start for segment in segments)
    max_k = max(segment.key_length for segment in segments)
    return torch.tensor(rows, device=device), (cu_seq_q, cu_seq_k, max_q, max_k)


def _varlen_window(window: int | None) -> list[int]:
    # Nothing to the right of a query; with more keys than queries the kernel aligns at the lower right.
    return [-1 if window is None else window - 1, 0]


def _by_token(states: Tensor) -> Tensor:
    """[1, H, T, D] to [T, H, D]."""
    return states[0].transpose(0, 1)


def _by_head(states: Tensor) -> Tensor:
    """[T, H, D] to [1, H, T, D]."""
    return states.transpose(0, 1)[None]


def _varlen_forward(query, key, value, segments, scale, window):
    from torch.nn.attention import varlen  # noqa: F401  registers the two operators; absent before torch 2.10

    rows, layout = varlen_layout(segments, query.device)
    keys, values = (_by_token(states).index_select(0, rows) for states in (key, value))  # [sum of p + n, G, D]
    grouped = key.shape[1] != query.shape[1]
    output, lse, _ = torch.ops.torch_attn._varlen_attn(
        _by_token(query), keys, values, *layout, window is None, scale, _varlen_window(window), grouped
    )
    return _by_head(output.contiguous()), lse[None]


def _varlen_backward(gradient, query, key, value, output, lse, segments, scale, window):
    rows, layout = varlen_layout(segments, query.device)
    keys, values = (_by_token(states).index_select(0, rows) for states in (key, value))
    gradient, query, output = (_by_token(states) for states in (gradient, query, output))
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the random state of a rate of 0
    arguments = (*layout, window is None, no_dropout, scale, _varlen_window(window))
    query_gradient, *parts = torch.ops.torch_attn._varlen_attn_backward(
        gradient.contiguous(), query, keys, values, output, lse[0], *arguments
    )
    totals = []
    for states, part in zip((key, value), parts, strict=True):
        total = _by_token(_empty_like(states, torch.float32)).zero_()
        totals.append(_by_head(total.index_add_(0, rows, part.float()).to(states.dtype)))
    return _by_head(query_gradient.contiguous()), *totals
