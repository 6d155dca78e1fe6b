"""The form of an example: a dict with `input_ids` [T] and `labels` [T], which every batch is made of."""

from typing import NamedTuple

from torch import Tensor

IGNORED = -100  # the label of a token that is not trained; what torch's cross_entropy ignores by default

Example = dict[str, Tensor]


class TokenCounts(NamedTuple):
    """What a batch holds, under its key `counts`: plain numbers, so that reading them never waits for a device.

    Attributes:
        useful: tokens of its examples.
        computed: positions of its rows, padding included; fewer than `useful` where prefixes are shared.
        padding: positions that belong to no example.
        attended: pairs of a query and a key that it sees, padding left out.
    """

    useful: int
    computed: int
    padding: int
    attended: int
