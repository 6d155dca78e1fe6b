"""How examples become batches: nothing lost, nothing twice, the same on any number of devices and after a resume."""

from math import ceil
from types import SimpleNamespace

import pytest
import torch

from llama_adapter.batches import BatchConfig
from llama_adapter.data import EpochOrder, ExampleDataModule, GlobalBatchSampler, PaddedCollator, ResumableLoader
from llama_adapter.dealing import DealByNumber
from llama_adapter.examples import TokenCounts
from tests.tiny_training import TinyData, make_examples

# Examples, global batch, micro-batch, devices: even ones, ragged last batches, batches smaller than the devices.
DEALS = [
    (24, 8, 4, 1), (24, 8, 8, 2), (22, 8, 2, 1), (22, 8, 2, 2), (22, 8, 1, 4), (9, 8, 1, 8), (1, 4, 2, 2),
    (3, 12, 4, 3), (7, 7, 3, 1), (100, 6, 4, 3), (17, 16, 2, 8), (5, 64, 4, 8),
]  # fmt: skip


def samplers(
    n: int, global_batch: int, micro: int, devices: int, *, shuffle: bool = True, seed: int = 0, epoch: int = 0
):
    """One per device."""
    batches = BatchConfig(global_batch, micro, batching="padded")
    accumulation = batches.split(devices)[1]
    result = []
    for rank in range(devices):
        order = EpochOrder(n, shuffle=shuffle, seed=seed)
        order.set_epoch(epoch)
        options = {"global_batch_size": global_batch, "accumulation": accumulation, "rank": rank}
        result.append(GlobalBatchSampler(order, DealByNumber(batches, devices), **options))
    return result, accumulation


def global_batches(n: int, global_batch: int, micro: int, devices: int, **options) -> list[set[int]]:
    """The examples of each optimizer step, over all devices and micro-batches."""
    dealt, accumulation = samplers(n, global_batch, micro, devices, **options)
    rows = [list(sampler) for sampler in dealt]
    return [
        {index for device in rows for batch in device[step : step + accumulation] for index in batch}
        for step in range(0, len(rows[0]), accumulation)
    ]


# --- dealing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deal", DEALS)
def test_every_example_exactly_once_per_epoch(deal):
    dealt, _ = samplers(*deal)
    indices = [index for sampler in dealt for batch in sampler for index in batch]
    assert sorted(indices) == list(range(deal[0]))


@pytest.mark.parametrize("deal", DEALS)
def test_every_device_has_the_same_number_of_micro_batches(deal):
    n, global_batch, micro, _ = deal
    dealt, accumulation = samplers(*deal)
    batches = [list(sampler) for sampler in dealt]
    assert {len(rows) for rows in batches} == {ceil(n / global_batch) * accumulation}
    assert {len(sampler) for sampler in dealt} == {len(batches[0])}
    assert max(len(batch) for rows in batches for batch in rows) <= micro


@pytest.mark.parametrize("deal", DEALS)
def test_a_whole_global_batch_has_equal_micro_batches(deal):
    n, global_batch, _, devices = deal
    dealt, accumulation = samplers(*deal)
    for sampler in dealt:
        sizes = [len(batch) for batch in sampler][: n // global_batch * accumulation]
        assert set(sizes) <= {global_batch // devices // accumulation}


@pytest.mark.parametrize("deal", DEALS)
def test_a_step_is_the_same_examples_however_they_are_dealt(deal):
    """The promise that the number of devices and the micro-batch do not change a run."""
    n, global_batch, _, _ = deal
    order = list(EpochOrder(n, shuffle=True, seed=3))
    expected = [set(order[start : start + global_batch]) for start in range(0, n, global_batch)]
    assert global_batches(*deal, seed=3) == expected


@pytest.mark.parametrize("start", [0, 1, 5, 12])
def test_start_leaves_out_the_front(start):
    (whole,), _ = samplers(22, 8, 2, 1)
    (resumed,), _ = samplers(22, 8, 2, 1)
    resumed.start = start
    assert list(resumed) == list(whole)[start:]
    assert len(resumed) == 12, "the length is the epoch's: Lightning counts from its own position"


# --- the order ------------------------------------------------------------------------------------------------------


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    order = EpochOrder(n, shuffle=shuffle, seed=seed)
    order.set_epoch(epoch)
    return list(order)


def test_order_depends_on_seed_and_epoch_only():
    first = epoch_order(50, seed=1, epoch=2)
    torch.manual_seed(123)
    torch.rand(7)
    assert epoch_order(50, seed=1, epoch=2) == first
    assert sorted(first) == list(range(50)) != first
    others = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(10) for epoch in range(10)}
    assert len(others) == 100, "no two of seed and epoch may share an order"


def test_reading_the_order_changes_no_global_random_state():
    before = torch.get_rng_state()
    epoch_order(50, seed=1, epoch=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_shuffle():
    assert epoch_order(5, seed=1, epoch=2, shuffle=False) == [0, 1, 2, 3, 4]


# --- collation ------------------------------------------------------------------------------------------------------


def example(*ids: int, prompt: int = 1) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor([-100] * prompt + list(ids[prompt:]))}


def test_right_padding():
    batch = PaddedCollator(pad_id=9)([example(1, 2, 3, prompt=2), example(1, 4), example(1, 5, 6, 7)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9], [1, 4, 9, 9], [1, 5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100], [-100, 4, -100, -100], [-100, 5, 6, 7]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.long
    assert batch["counts"] == TokenCounts(useful=9, computed=12, padding=3, attended=6 + 3 + 10)


def test_only_what_the_model_reads_is_in_a_batch():
    """An example may carry more, such as its record."""
    batch = PaddedCollator(0)([example(1, 2) | {"length": torch.tensor(2)}])
    assert batch.keys() == {"input_ids", "labels", "counts"}


def test_the_empty_batch_trains_nothing():
    batch = PaddedCollator(pad_id=9)([])
    assert batch["input_ids"].tolist() == [[9, 9]]
    assert batch["labels"].tolist() == [[-100, -100]]
    assert batch["counts"] == TokenCounts(useful=0, computed=2, padding=2, attended=0)


# --- loaders --------------------------------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> int:
        return index


def loader(workers: int = 0) -> ResumableLoader:
    dealer = DealByNumber(BatchConfig(8, 2, batching="padded"), devices=1)
    order = EpochOrder(22, shuffle=True)
    sampler = GlobalBatchSampler(order, dealer, global_batch_size=8, accumulation=4, rank=0)
    return ResumableLoader(Numbers(), batch_sampler=sampler, collate_fn=list, num_workers=workers)


@pytest.mark.parametrize("steps", range(4))
def test_a_restored_loader_goes_on_where_it_was(steps):
    whole = list(loader())
    first, second = loader(), loader()
    iterator = iter(first)
    before = [next(iterator) for _ in range(4 * steps)]
    assert first.state_dict() == {"steps": steps % 3}
    second.load_state_dict(first.state_dict())
    after = list(second)
    if steps == 3:  # a whole epoch: the next one begins at its front
        assert after == whole
    else:
        assert before + after == whole
    assert list(second) == whole, "only the first epoch after the resume is shorter"
    assert second.state_dict() == {"steps": 0}


def test_a_restored_loader_begins_a_step_at_its_front():
    iterator = iter(made := loader())
    for _ in range(7):
        next(iterator)
    assert made.state_dict() == {"steps": 1}


def test_the_position_counts_what_the_trainer_has_not_what_workers_have_prepared():
    iterator = iter(made := loader(workers=1))
    for _ in range(4):
        next(iterator)
    assert made.state_dict() == {"steps": 1}
    assert len(list(iterator)) == 8


def test_loaders_without_a_trainer():
    data = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=2, batching="padded"))
    assert len(data.train_dataloader()) == 12
    assert [len(batch["input_ids"]) for batch in data.val_dataloader()] == [2, 1, 1, 1]
    assert [len(batch["input_ids"]) for batch in data.test_dataloader()] == [2, 1, 1, 1]
    first, second = (list(data.val_dataloader()) for _ in range(2))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True)), "no shuffling"


def test_a_limit_of_tokens():
    """Every micro-batch keeps it, and as many are accumulated as the fullest global batch of any epoch needs."""
    data = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=8, max_tokens=30))
    accumulation = data.accumulation(devices=1, epochs=3)
    assert accumulation == max(data.accumulation(devices=1, epochs=n) for n in (1, 2, 3)) > 1
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=accumulation)
    loader = data.train_dataloader()
    examples = 0
    for epoch in range(3):
        loader.batch_sampler.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 3 * accumulation
        assert all(batch["counts"].computed <= 30 for batch in batches)
        examples += sum(int((batch["position_ids"] == 0).sum()) for batch in batches if batch["counts"].useful)
    assert examples == 3 * 22


def test_a_limit_that_the_trainer_does_not_know_of():
    data = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=8, max_tokens=30))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1)
    with pytest.raises(
        ValueError, match=r"needs \d micro-batches on a device, but 1 are accumulated\. Give the Trainer"
    ):
        list(data.train_dataloader())


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_validation_examples_once_over_all_devices(devices):
    data = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=2, batching="padded"), validation=5)
    rows = []
    for rank in range(devices):
        data.trainer = SimpleNamespace(world_size=devices, global_rank=rank)
        batches = list(data.val_dataloader())
        assert len(batches) == 8 / (2 * devices), "one global batch; some micro-batches are empty"
        rows += [row[row != 0].tolist() for batch in batches for row in batch["input_ids"] if (row != 0).any()]
    assert sorted(rows) == sorted(e["input_ids"].tolist() for e in data.validation_dataset)


# --- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "global_batch", "expected"), [(24, 8, 3), (22, 8, 3), (17, 8, 3), (16, 8, 2), (3, 8, 1)])
def test_steps_per_epoch(n, global_batch, expected):
    data = TinyData(BatchConfig(global_batch, 1), train=n)
    assert data.steps_per_epoch == expected
    assert len(data.train_dataloader()) == expected * global_batch


def test_epoch_fraction_is_the_share_of_examples_seen():
    data = TinyData(BatchConfig(8, 2), train=22)
    seen, dealt = [], 0
    for epoch in range(3):
        for size in (8, 8, 6):
            seen.append(dealt / 22)
            dealt += size
        assert dealt == 22 * (epoch + 1)
    assert [data.epoch_fraction(step) for step in range(9)] == pytest.approx(seen)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"),
    [(3, -1, 3.0), (3, 9, 3.0), (3, 100, 3.0), (3, 3, 1.0), (3, 4, 1 + 8 / 22), (3, 0, 0.0), (-1, 6, 2.0)],
)
def test_length_of_a_run(max_epochs, max_steps, expected):
    data = TinyData(BatchConfig(8, 2), train=22)
    assert data.epochs(max_epochs, max_steps) == pytest.approx(expected)


def test_a_subclass_without_a_prompt():
    class Incomplete(ExampleDataModule):
        pass

    data = Incomplete(SimpleNamespace(pad_id=0))
    with pytest.raises(NotImplementedError, match=r"^Incomplete must define prompt\(record\)\.$"):
        data.prompt({})
    assert data.template_texts() == {}
    assert data.batches == BatchConfig()


def test_examples_of_these_tests_differ_in_length():
    assert len({len(e["input_ids"]) for e in make_examples(22)}) > 3
