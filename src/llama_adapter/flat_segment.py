"""One segment of a flat row: which rows it sees, its causal mask, its attention and the gradients. No autograd here.

Queries of a segment see the keys [prefix; own], p + n of them, with the causal mask aligned at the lower right.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

MASK_STEP = 256  # causal matrices are made in multiples of this length, so that few are


class Segment(NamedTuple):
    """Rows [start, end) of a flat row; they see rows [prefix_start, prefix_end) and then their own."""

    start: int
    end: int
    prefix_start: int
    prefix_end: int

    @property
    def own(self) -> slice:
        return slice(self.start, self.end)

    @property
    def prefix(self) -> slice:
        return slice(self.prefix_start, self.prefix_end)

    @property
    def prefix_length(self) -> int:
        return self.prefix_end - self.prefix_start

    @property
    def key_length(self) -> int:
        return self.prefix_length + self.end - self.start


def read_segments(cu_seqlens: Tensor, prefix: Tensor) -> list[Segment]:
    """The segments of a row as numbers on the host; the arguments are those of `flat_attention`.

    Raises:
        ValueError: a prefix is not an earlier segment without a prefix of its own.
    """
    starts, prefixes = cu_seqlens.tolist(), prefix.tolist()
    segments: list[Segment] = []
    for number, (start, end) in enumerate(pairwise(starts)):
        front = prefixes[number]
        if front >= 0 and (front >= number or prefixes[front] >= 0):
            raise ValueError(
                f"Segment {number} has segment {front} as its prefix. "
                "A prefix must be an earlier segment without a prefix of its own."
            )
        segments.append(Segment(start, end, *((starts[front], starts[front + 1]) if front >= 0 else (start, start))))
    return segments


def lower_right_mask(segment: Segment, window: int | None, like: Tensor) -> Tensor:
    """What is added to a segment's scores, [n, p + n]: 0 where a query sees a key, -inf elsewhere."""
    length = -(-segment.key_length // MASK_STEP) * MASK_STEP
    matrix = _causal_matrix(length, window, like.dtype, like.device)
    # In [prefix; own] the queries are the last n of p + n positions: those rows of the square causal matrix.
    return matrix[segment.prefix_length : segment.key_length, : segment.key_length]


@lru_cache(maxsize=8)
def _causal_matrix(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


class SegmentKernel(NamedTuple):
    """Attention of one segment on one kind of device.

    `forward(segment, query, key, value, scale, window)` returns the output [1, H, n, D] and the log-sum-exp of the
    scores, [1, H, n]; `backward(segment, gradient, query, key, value, output, lse, scale, window)` the gradients of
    query, key and value. query is [1, H, n, D]; key and value are [1, G, p + n, D].
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


# --- torch's flash kernel for the CPU: takes fewer key heads as they are, and a float mask ----------------------------


def _flash_mask(segment: Segment, window: int | None, query: Tensor) -> dict:
    # Without a prefix the kernel's own causal mask, aligned at the upper left, is the same one and costs less.
    if not segment.prefix_length and (window is None or window >= segment.key_length):
        return {"is_causal": True}
    return {"is_causal": False, "attn_mask": lower_right_mask(segment, window, query)}


def _flash_forward(segment, query, key, value, scale, window):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, scale=scale, **_flash_mask(segment, window, query)
    )


def _flash_backward(segment, gradient, query, key, value, output, lse, scale, window):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, output, lse, 0.0, scale=scale, **_flash_mask(segment, window, query)
    )


CPU = SegmentKernel(_flash_forward, _flash_backward)


# --- matrix products in float32: any device, n x (p + n) scores per head ----------------------------------------------


def sum_dtype(states: Tensor) -> torch.dtype:
    """What sums over `states` are kept in: float32, or float64 for float64."""
    return torch.promote_types(states.dtype, torch.float32)


def _grouped(states: Tensor, groups: int) -> Tensor:
    """[1, H, n, D] to [1, G, H / G, n, D]; keys and values get a 1 there, which broadcasts."""
    return states.unflatten(1, (groups, -1)).to(sum_dtype(states))


def _scores(segment: Segment, query: Tensor, key: Tensor, scale: float, window: int | None) -> Tensor:
    return query @ key.transpose(-1, -2) * scale + lower_right_mask(segment, window, query)  # [1, G, H / G, n, p + n]


def _plain_forward(segment, query, key, value, scale, window):
    query, key, value = (_grouped(states, key.shape[1]) for states in (query, key, value))
    scores = _scores(segment, query, key, scale, window)
    return (scores.softmax(-1) @ value).flatten(1, 2), scores.logsumexp(-1).flatten(1, 2)


def _plain_backward(segment, gradient, query, key, value, output, lse, scale, window):
    groups = key.shape[1]
    gradient, query, key, value, output = (_grouped(states, groups) for states in (gradient, query, key, value, output))
    lse = lse.unflatten(1, (groups, -1))[..., None]
    weights = (_scores(segment, query, key, scale, window) - lse).exp()
    # The softmax takes the row sum of weights x their gradients off: the row sum of output x gradient.
    correction = (gradient * output).sum(-1, keepdim=True)
    score_gradient = weights * (gradient @ value.transpose(-1, -2) - correction) * scale
    return (
        (score_gradient @ key).flatten(1, 2),
        (score_gradient.transpose(-1, -2) @ query).sum(2),  # over the query heads that share a key
        (weights.transpose(-1, -2) @ gradient).sum(2),
    )


PLAIN = SegmentKernel(_plain_forward, _plain_backward)
