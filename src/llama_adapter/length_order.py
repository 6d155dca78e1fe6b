"""The order of one epoch's examples where rows are padded: examples of about one length share a global batch.

As in `data.EpochOrder` an order depends on (seed, epoch) alone, so it is the same on every device and after resuming.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from llama_adapter.data import EpochOrder

POOL = 50  # global batches that are sorted together: enough for rows with little padding, few enough to stay random


class LengthOrder(EpochOrder):
    """Shuffled examples, sorted by length within pools of global batches; then the global batches are shuffled.

    An epoch holds every example once. The smaller last batch, where there is one, stays last: it is a random one.

    Args:
        lengths: of the examples, in tokens.
        global_batch_size: examples of a global batch.
        shuffle: false gives all examples by length, the longest first, as for an evaluation: what does not fit into
            memory shows at once.
        seed: of the order.
        pool: global batches that are sorted together.
    """

    def __init__(
        self, lengths: Sequence[int], *, global_batch_size: int, shuffle: bool, seed: int = 0, pool: int = POOL
    ) -> None:
        super().__init__(len(lengths), shuffle=shuffle, seed=seed)
        if global_batch_size < 1 or pool < 1:
            raise ValueError(f"Global batches and pools must hold at least 1, got {global_batch_size} and {pool}.")
        self.lengths = lengths
        self.global_batch_size = global_batch_size
        self.pool = pool

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            yield from sorted(range(self.examples), key=lambda index: -self.lengths[index])
            return
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)  # as `EpochOrder`
        shuffled = torch.randperm(self.examples, generator=generator).tolist()
        whole = self.examples // self.global_batch_size * self.global_batch_size
        batches: list[list[int]] = []
        for members in _cut(shuffled[:whole], self.pool * self.global_batch_size):
            batches += _cut(sorted(members, key=self.lengths.__getitem__), self.global_batch_size)
        order = torch.randperm(len(batches), generator=generator).tolist()
        yield from chain.from_iterable(batches[number] for number in order)
        yield from shuffled[whole:]


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
