"""Orders by length: every example once, the same everywhere, random, and with little padding."""

import pytest

from llama_adapter.batches import BatchConfig
from llama_adapter.data import GlobalBatchSampler
from llama_adapter.dealing import DealByNumber
from llama_adapter.length_order import LengthOrder

LENGTHS = [(number * 7919) % 301 + 20 for number in range(1003)]
SIZE = 8


def order(epoch: int = 0, **options) -> list[int]:
    sampler = LengthOrder(LENGTHS, **{"global_batch_size": SIZE, "shuffle": True, "seed": 3} | options)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(LENGTHS)
    return list(sampler)


@pytest.mark.parametrize("pool", [1, 7, 50, 10**6])
@pytest.mark.parametrize("size", [1, 8, 1003, 5000])
def test_every_example_once(pool, size):
    assert sorted(order(pool=pool, global_batch_size=size)) == list(range(len(LENGTHS)))


def test_an_order_is_of_its_seed_and_epoch():
    assert order() == order()
    assert order(epoch=2) == order(epoch=2)
    orders = [order(), order(epoch=1), order(seed=4)]
    assert all(one != other for number, one in enumerate(orders) for other in orders[:number])


def batches(examples: list[int]) -> list[list[int]]:
    return [examples[start : start + SIZE] for start in range(0, len(examples), SIZE)]


def test_batches_hold_one_length_and_change_between_epochs():
    first, second = batches(order()), batches(order(epoch=1))
    spread = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in first[:-1]]
    assert sum(spread) / len(spread) < 10, "of 300"
    assert len({frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}) < 5
    means = [sum(LENGTHS[i] for i in batch) / SIZE for batch in first[:-1]]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_the_smaller_batch_is_the_last_and_a_random_one():
    lasts = {frozenset(batches(order(epoch=epoch))[-1]) for epoch in range(4)}
    assert {len(last) for last in lasts} == {len(LENGTHS) % SIZE}
    assert len(lasts) == 4


def test_an_evaluation_begins_with_the_longest():
    lengths = [LENGTHS[index] for index in order(shuffle=False)]
    assert lengths == sorted(LENGTHS, reverse=True)


def test_devices_and_micro_batches_share_its_global_batches():
    """Two devices with two micro-batches each: the global batches of the order, and of one length everywhere."""
    config = BatchConfig(SIZE, 2, batching="padded")
    dealt = []
    for rank in range(2):
        sampler = LengthOrder(LENGTHS, global_batch_size=SIZE, shuffle=True, seed=3)
        options = {"global_batch_size": SIZE, "accumulation": 2, "rank": rank}
        dealt.append(list(GlobalBatchSampler(sampler, DealByNumber(config, 2), **options)))
    steps = [
        sorted(index for device in dealt for batch in device[step : step + 2] for index in batch)
        for step in range(0, len(dealt[0]), 2)
    ]
    assert steps == [sorted(batch) for batch in batches(order())]


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match=r"^Global batches and pools must hold at least 1, got 0 and 50\.$"):
        LengthOrder([1], global_batch_size=0, shuffle=True)
