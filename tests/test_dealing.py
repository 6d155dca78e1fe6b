"""Global batches are dealt completely, evenly, within their limits, and in the same way on every device."""

import random

import pytest
import torch

from llama_adapter.batches import BatchConfig
from llama_adapter.dealing import DealByNumber, DealByTokens, accumulation_for, deal, dealer
from llama_adapter.flat_batches import FlatCollator

TEMPLATE = list(range(100, 120))


def example(length: int, *, template: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids, the last two of them trained."""
    generator = random.Random(seed)
    ids = [generator.randrange(100) for _ in range(length)]
    if template:
        ids[: len(TEMPLATE)] = TEMPLATE
    labels = [-100] * (length - 2) + ids[-2:]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def alpaca_like(count: int) -> list[dict[str, torch.Tensor]]:
    generator = random.Random(1)
    return [example(generator.randint(30, 200), template=True, seed=seed) for seed in range(count)]


# --- into bins ------------------------------------------------------------------------------------------------------


def test_the_longest_goes_to_the_emptiest():
    assert deal([3, 9, 4, 5, 3], 2) == [[1, 0], [3, 2, 4]]  # 9, 5, 4, then 3 to the 9 and 3 to the 9 again would be 15
    assert deal([2, 2, 2, 2], 2) == [[0, 2], [1, 3]]  # equal ones in turn, in their own order
    assert deal([5], 3) == [[0], [], []]


def test_no_more_than_a_bin_may_hold():
    assert deal([9, 1, 1, 1], 2) == [[0], [1, 2, 3]]
    assert deal([9, 1, 1, 1], 2, most=2) == [[0, 3], [1, 2]]


def test_bins_are_even_and_complete():
    generator = random.Random(1)
    lengths = [generator.randint(30, 512) for _ in range(64)]
    bins = deal(lengths, 8)
    assert sorted(index for members in bins for index in members) == list(range(64))
    tokens = [sum(lengths[index] for index in members) for members in bins]
    # the known bound of this rule: 4/3 of the best possible, which is at least the average
    assert max(tokens) <= 4 / 3 * max(sum(lengths) / 8, max(lengths))


def test_refuses_too_few_bins():
    with pytest.raises(ValueError, match=r"Examples are dealt to at least 1 bin, got 0\."):
        deal([1, 2], 0)
    with pytest.raises(ValueError, match=r"5 examples do not fit into 2 bins of 2\."):
        deal([1] * 5, 2, most=2)


# --- global batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [None, 400, 900])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_every_example_once_and_the_limits_are_kept(devices, max_tokens):
    dataset = alpaca_like(40)
    batches = BatchConfig(global_batch_size=32, micro_batch_size=8, max_tokens=max_tokens)
    indices = list(range(39, 7, -1))
    bins = DealByTokens(dataset, batches, devices)(indices)
    assert len(bins) % devices == 0
    assert sorted(index for members in bins for index in members) == sorted(indices)
    assert max(map(len, bins)) <= 8
    rows = [FlatCollator(0)([dataset[index] for index in members])["counts"].computed for members in bins]
    if max_tokens:
        assert max(rows) <= max_tokens
    # Even: the devices wait for the fullest of them in every micro-batch. Dealt by number it is 1.5 here.
    for start in range(0, len(bins), devices):
        assert max(rows[start : start + devices]) < 1.15 * sum(rows[start : start + devices]) / devices


def test_shared_prefixes_count_once():
    """Four examples of 30 with 20 in common are a row of 60 tokens."""
    dataset = [example(30, template=True, seed=seed) for seed in range(4)]
    limited = BatchConfig(4, 4, max_tokens=60)
    assert len(DealByTokens(dataset, limited, 1)(range(4))) == 1
    assert len(DealByTokens(dataset, BatchConfig(4, 4, max_tokens=59), 1)(range(4))) == 2
    assert len(DealByTokens(dataset, BatchConfig(4, 4, max_tokens=60, share_prefixes=False), 1)(range(4))) == 2


def test_a_longer_example_is_a_micro_batch_of_its_own():
    dataset = [example(50), example(10), example(10)]
    assert DealByTokens(dataset, BatchConfig(3, 3, max_tokens=20), 1)([0, 1, 2]) == [[0], [1, 2]]


def test_the_fewest_micro_batches_within_the_limit():
    dataset = [example(length, seed=length) for length in (4, 4, 4, 4, 2, 2)]
    for max_tokens, expected in ((16, 1), (8, 2), (7, 4)):
        by_tokens = DealByTokens(dataset, BatchConfig(6, 6, max_tokens=max_tokens), 1)
        assert accumulation_for(by_tokens, [[0, 1, 2, 3], [4, 5]]) == expected
    assert accumulation_for(DealByTokens(dataset, BatchConfig(6, 6, max_tokens=8), 2), [[0, 1, 2, 3]]) == 1
    assert accumulation_for(DealByTokens(dataset, BatchConfig(6, 6, max_tokens=8), 2), iter([])) == 1


def test_padded_rows_are_dealt_by_number():
    by_number = dealer([example(5)] * 9, BatchConfig(8, 2, batching="padded"), 2)
    assert isinstance(by_number, DealByNumber)
    assert by_number(range(8)) == [range(0, 8, 4), range(1, 8, 4), range(2, 8, 4), range(3, 8, 4)]
    assert [list(members) for members in by_number(range(3))] == [[0], [1], [2], []]
