"""What DataModules share: the form of an example, right-padded batches, and how global batches are dealt to devices.

A step is defined by its global batch alone: the same examples, whatever the number of devices and micro-batches, so the
same run. An example is a dict with `input_ids` [T] and `labels` [T]; `labels` repeat the id where a token is trained
and hold -100 elsewhere (the model's output at t predicts the label at t + 1).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import ceil

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel

from llama_adapter.batches import BatchConfig
from llama_adapter.dealing import Dealer, accumulation_for, dealer
from llama_adapter.examples import IGNORED, Example, TokenCounts, image_columns
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.frozen_cache import cache_frozen


class PaddedCollator:
    """Right-padded batches: causality hides the padding from every real token, so attention needs no mask.

    Args:
        pad_id: fills `input_ids`; any id will do, no real token ever attends to it.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | TokenCounts]:
        """Returns `input_ids` and `labels`, [B, T] each, T the longest example's length; `counts`; and of
        examples with `states` theirs, [B, T, C].

        A device may get no example from a small last batch; it then computes a row of padding, which trains nothing.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        useful = sum(lengths)
        if examples:
            columns = {"input_ids": self.pad_id, "labels": IGNORED} | ({"states": 0} if "states" in examples[0] else {})
            batch = {
                key: pad_sequence([example[key] for example in examples], batch_first=True, padding_value=fill)
                for key, fill in columns.items()
            }
        else:
            batch = {"input_ids": torch.full((1, 2), self.pad_id), "labels": torch.full((1, 2), IGNORED)}
        computed = batch["input_ids"].numel()
        attended = sum(length * (length + 1) // 2 for length in lengths)
        return batch | {"counts": TokenCounts(useful, computed, computed - useful, attended)} | image_columns(examples)


class EpochOrder(Sampler[int]):
    """The order of one epoch's examples: a permutation by (seed, epoch), the same on every device.

    Lightning calls `set_epoch` at the start of every epoch.
    """

    def __init__(self, examples: int, *, shuffle: bool, seed: int = 0) -> None:
        self.examples = examples
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.examples

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            yield from range(self.examples)
            return
        # Two numbers into one seed: any injective map over realistic epochs will do.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        yield from torch.randperm(self.examples, generator=generator).tolist()


class GlobalBatchSampler(Sampler[list[int]]):
    """One device's micro-batches.

    Every global batch, the smaller last one too, becomes exactly `accumulation` micro-batches on every device, so an
    optimizer step always ends where a global batch ends and no gradient is left over. Some may then be empty.

    Args:
        sampler: the order of the examples.
        deal_batch: deals a global batch to all devices and micro-batches.
        global_batch_size: examples of a global batch.
        accumulation: micro-batches per device and global batch.
        rank: of this device.

    Attributes:
        start: micro-batches to leave out at the front, when a run resumes in the middle of an epoch.
    """

    def __init__(
        self, sampler: EpochOrder, deal_batch: Dealer, *, global_batch_size: int, accumulation: int, rank: int
    ) -> None:
        self.sampler = sampler
        self.deal_batch = deal_batch
        self.global_batch_size = global_batch_size
        self.accumulation = accumulation
        self.rank = rank
        self.start = 0

    def __len__(self) -> int:
        return ceil(len(self.sampler) / self.global_batch_size) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        first, skipped = divmod(self.start, self.accumulation)
        for batch in islice(self.global_batches(), first, None):
            own = self.deal_batch(batch)[self.rank :: self.deal_batch.devices]
            if len(own) > self.accumulation:
                raise ValueError(
                    f"A global batch needs {len(own)} micro-batches on a device, but {self.accumulation} are "
                    "accumulated. Give the Trainer accumulate_grad_batches=data.accumulation(devices, epochs)."
                )
            yield from (own + [[]] * (self.accumulation - len(own)))[skipped:]
            skipped = 0

    def global_batches(self) -> Iterator[list[int]]:
        """The examples of every optimizer step of the epoch."""
        order = list(self.sampler)
        for start in range(0, len(order), self.global_batch_size):
            yield order[start : start + self.global_batch_size]


class ResumableLoader(DataLoader):
    """A DataLoader that knows how far the trainer has come; Lightning saves and restores its state.

    The state is in optimizer steps: the micro-batches and devices of a resumed run may be others.
    """

    position = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator: nothing happens before the first batch is asked for, when Lightning has set the epoch.
        start = self.batch_sampler.start
        self.position = start
        for batch in super().__iter__():
            self.position += 1
            if self.position == len(self.batch_sampler):
                self.batch_sampler.start = 0
            yield batch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.position % len(self) // self.batch_sampler.accumulation}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.start = state["steps"] * self.batch_sampler.accumulation


class ExampleDataModule(LightningDataModule):
    """Base of the tasks' DataModules: loaders over three lists of examples.

    A subclass fills `train_dataset`, `validation_dataset` and `test_dataset` in `setup` and turns a record into the
    text the model is asked with in `prompt`.

    Args:
        tokenizer: a `llama_adapter.tokenizer.Tokenizer`; None where `collator` needs none.
        batches: sizes of batches.
        seed: of the order of examples.
        shuffle: whether the training examples change their order from epoch to epoch.
        collator: makes a batch of examples, rows of any kind, for an encoder; None for those of language models.
    """

    def __init__(
        self,
        tokenizer,
        *,
        batches: BatchConfig | None = None,
        seed: int = 0,
        shuffle: bool = True,
        collator: Callable[[Sequence[Example]], dict] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.batches = batches or BatchConfig()
        self.seed = seed
        self.shuffle = shuffle
        if collator is not None:
            self.batches = self.batches.rows()
            self.collator = collator
        elif self.batches.batching == "flat":
            options = {"share_prefixes": self.batches.share_prefixes, "multiple": self.batches.row_multiple}
            self.collator = FlatCollator(tokenizer.pad_id, **options)
        else:
            self.collator = PaddedCollator(tokenizer.pad_id)
        self.train_dataset: Sequence[Example] = []
        self.validation_dataset: Sequence[Example] = []
        self.test_dataset: Sequence[Example] = []

    def prompt(self, record: dict[str, str]) -> str:
        """The text a record is asked with, as in training."""
        raise NotImplementedError(f"{type(self).__name__} must define prompt(record).")

    def template_texts(self) -> dict[str, str]:
        """The texts around a record, for the adapter's file; whoever uses the adapter must ask in the same way."""
        return {}

    def cache_frozen(self, model: PreTrainedModel) -> None:
        """Gives every example the outputs of the layers below the adapted ones, see `frozen_cache.cache_frozen`.

        Args:
            model: on its device. The data must have been set up.
        """
        parts = {part: getattr(self, f"{part}_dataset") for part in ("train", "validation", "test")}
        for part, examples in cache_frozen(model, parts, self.batches.cache_folder).items():
            setattr(self, f"{part}_dataset", examples)

    @property
    def steps_per_epoch(self) -> int:
        return ceil(len(self.train_dataset) / self.batches.global_batch_size)

    def epoch_fraction(self, step: int) -> float:
        """Epochs of examples seen before an optimizer step; what the schedule runs on."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch + step_in_epoch * self.batches.global_batch_size / len(self.train_dataset)

    def epochs(self, max_epochs: int, max_steps: int = -1) -> float:
        """Length of a run in epochs, a fraction where `max_steps` ends it; -1 sets no limit, for one of the two."""
        limits = [] if max_epochs < 0 else [float(max_epochs)]
        return min(limits if max_steps < 0 else [*limits, self.epoch_fraction(max_steps)])

    def accumulation(self, devices: int, epochs: float) -> int:
        """Micro-batches per device that every global batch of the training is cut into.

        The same for all steps, as Lightning wants it: as many as the step needs that needs the most.

        Args:
            devices: that share a global batch.
            epochs: of the run; the order of the examples differs between them.
        """
        least = self.batches.split(devices)[1]
        if self.batches.max_tokens is None:
            return least
        return max(least, self._accumulation(self.train_dataset, devices, epochs=ceil(epochs), shuffle=self.shuffle))

    def _accumulation(self, dataset: Sequence[Example], devices: int, *, epochs: int, shuffle: bool) -> int:
        sampler = self._sampler(dataset, devices, accumulation=1, shuffle=shuffle)
        most = 1
        for epoch in range(epochs if shuffle else min(epochs, 1)):
            sampler.sampler.set_epoch(epoch)
            most = max(most, accumulation_for(sampler.deal_batch, sampler.global_batches()))
        return most

    def train_dataloader(self) -> DataLoader:
        devices = self.trainer.world_size if self.trainer else 1
        accumulation = self.trainer.accumulate_grad_batches if self.trainer else self.accumulation(devices, epochs=1)
        return self._loader(self.train_dataset, ResumableLoader, accumulation=accumulation, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.validation_dataset)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.test_dataset)

    def _evaluation_loader(self, dataset: Sequence[Example]) -> DataLoader:
        devices = self.trainer.world_size if self.trainer else 1
        accumulation = self._accumulation(dataset, devices, epochs=1, shuffle=False)
        return self._loader(dataset, DataLoader, accumulation=accumulation, shuffle=False)

    def _loader(
        self, dataset: Sequence[Example], kind: type[DataLoader], *, accumulation: int, shuffle: bool
    ) -> DataLoader:
        devices = self.trainer.world_size if self.trainer else 1
        return kind(
            dataset,
            batch_sampler=self._sampler(dataset, devices, accumulation=accumulation, shuffle=shuffle),
            collate_fn=self.collator,
            num_workers=self.batches.num_workers,
            persistent_workers=self.batches.num_workers > 0,
            # Workers are seeded from it: the training's own random numbers do not depend on how often a loader starts.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _sampler(
        self, dataset: Sequence[Example], devices: int, *, accumulation: int, shuffle: bool
    ) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            EpochOrder(len(dataset), shuffle=shuffle, seed=self.seed),
            dealer(dataset, self.batches, devices),
            global_batch_size=self.batches.global_batch_size,
            accumulation=accumulation,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
