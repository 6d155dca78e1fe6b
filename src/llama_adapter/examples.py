"""The form of an example: a dict with `input_ids` [T] and `labels` [T], which every batch is made of.

An example of a task with images also has `pixel_values` [I, 3, height, width], or `image_features` [I, F] where they
were computed before; I is the number of its images and may be 0. One whose lower layers were computed before has
`states` [T, C], see `frozen_cache`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
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


IMAGE_KEYS = ("pixel_values", "image_features")


def has_image(example: Example) -> bool:
    return any(len(example.get(key, ())) for key in IMAGE_KEYS)


def image_columns(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The images of a batch, for either form of batch; nothing where the examples have no room for images.

    Returns:
        `pixel_values` [I, 3, height, width] or `image_features` [I, F]: those of all examples, end to end.
        `image_of`: [I], the example that each image belongs to.
        `example_count`: a scalar, N.
    """
    columns = {}
    for key in IMAGE_KEYS:
        parts = [example[key] for example in examples if key in example]
        if parts:
            owners = [number for number, example in enumerate(examples) for _ in range(len(example[key]))]
            columns |= {key: torch.cat(parts), "image_of": torch.tensor(owners, dtype=torch.long)}
            columns["example_count"] = torch.tensor(len(examples))
    return columns
