"""How the examples of a global batch are dealt to devices and micro-batches.

Any dealing gives the same step: gradients are sums over the global batch. Which one is a question of speed and memory.
Padded rows are dealt by number. Flat rows are dealt by tokens, so that no device waits for another one.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from math import ceil

from llama_adapter.batches import BatchConfig
from llama_adapter.examples import Example
from llama_adapter.flat_batches import Group, shared_prefixes


def deal(tokens: Sequence[int], bins: int, *, most: int | None = None) -> list[list[int]]:
    """Deals examples so that bins hold about the same number of tokens: the longest first, into the emptiest bin.

    Args:
        tokens: of each example.
        bins: how many.
        most: examples in a bin; None for any number.

    Returns:
        The indices in each bin, longest example first; the same for the same lengths, on every device.

    Raises:
        ValueError: no bins, or too few of them for `most`.
    """
    if bins < 1:
        raise ValueError(f"Examples are dealt to at least 1 bin, got {bins}.")
    if most is not None and most * bins < len(tokens):
        raise ValueError(f"{len(tokens)} examples do not fit into {bins} bins of {most}.")
    dealt: list[list[int]] = [[] for _ in range(bins)]
    filled = [0] * bins
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        having_room = (number for number in range(bins) if most is None or len(dealt[number]) < most)
        emptiest = min(having_room, key=filled.__getitem__)
        dealt[emptiest].append(index)
        filled[emptiest] += tokens[index]
    return dealt


class DealByNumber:
    """Every device and micro-batch gets the same number of examples.

    Args:
        batches: the sizes.
        devices: how many share a global batch.
    """

    def __init__(self, batches: BatchConfig, devices: int) -> None:
        self.devices = devices
        self.micro_batches = batches.split(devices)[1]

    def __call__(self, indices: Sequence[int]) -> list[list[int]]:
        """The examples of every device's first micro-batch, then those of the second ones, and so on."""
        micro_batches, devices = self.micro_batches, self.devices
        return [
            indices[rank::devices][micro::micro_batches] for micro in range(micro_batches) for rank in range(devices)
        ]


class DealByTokens:
    """Every device and micro-batch gets about the same number of tokens, shared prefixes counted once.

    As few micro-batches as the two limits allow; an example that is longer than the limit is one of its own.

    Args:
        dataset: examples by index. One whose examples are slow to read, as images are, has a method `outline(index)`
            too, which tells their tokens and the number of their images.
        batches: the sizes; `micro_batch_size` and `max_tokens` are the limits of a micro-batch.
        devices: how many share a global batch.
    """

    def __init__(self, dataset: Sequence[Example], batches: BatchConfig, devices: int) -> None:
        self.outline = getattr(dataset, "outline", dataset.__getitem__)
        self.batches = batches
        self.devices = devices

    def __call__(self, indices: Sequence[int]) -> list[list[int]]:
        """The examples of every device's first micro-batch, then those of the second ones, and so on."""
        examples = [self.outline(index) for index in indices]
        lengths = [len(example["input_ids"]) for example in examples]
        groups = shared_prefixes(examples) if self.batches.share_prefixes else []
        group_of = {member: group for group in groups for member in group.members}
        own = [length - (group_of[i].prefix_length if i in group_of else 0) for i, length in enumerate(lengths)]
        least = max(1, ceil(len(indices) / (self.devices * self.batches.micro_batch_size)))
        dealings = (deal(own, self.devices * n, most=self.batches.micro_batch_size) for n in count(least))
        bins = next(bins for bins in dealings if all(self._fits(members, own, group_of) for members in bins))
        return [[indices[member] for member in members] for members in bins]

    def _fits(self, members: Sequence[int], own: Sequence[int], group_of: dict[int, Group]) -> bool:
        if self.batches.max_tokens is None or len(members) < 2:
            return True
        # What the collator makes of them is never longer: it looks for prefixes anew, and may find better ones.
        prefixes = {id(group_of[member]): group_of[member].prefix_length for member in members if member in group_of}
        return sum(own[member] for member in members) + sum(prefixes.values()) <= self.batches.max_tokens


Dealer = DealByNumber | DealByTokens


def dealer(dataset: Sequence[Example], batches: BatchConfig, devices: int) -> Dealer:
    """The one that fits the form of the batches."""
    return DealByTokens(dataset, batches, devices) if batches.batching == "flat" else DealByNumber(batches, devices)


def accumulation_for(deal_batch: Dealer, batches: Iterable[Sequence[int]]) -> int:
    """Micro-batches per device that no batch has more of: what Lightning accumulates in every step.

    Args:
        deal_batch: the dealer.
        batches: global batches, as indices of examples.
    """
    return max((len(deal_batch(batch)) // deal_batch.devices for batch in batches), default=1)
