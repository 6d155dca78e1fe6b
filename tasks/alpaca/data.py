"""The DataModule for Alpaca and files of its layout."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from llama_adapter.data import BatchConfig, ExampleDataModule
from llama_adapter.encoding import ENCODINGS, EncodedDataset
from llama_adapter.tokenizer import as_tokenizer
from tasks.alpaca.prompt import PromptTemplate, resolve_template
from tasks.alpaca.records import Record, read_records

log = logging.getLogger(__name__)

VALIDATION_SPLITS = ("random", "first")
SPLIT_SEED = 0  # not the run's seed: runs with other seeds are to be compared on the same split


class AlpacaDataModule(ExampleDataModule):
    """Instructions, inputs and answers, of which the answers are trained.

    Args:
        path: the training file, see `read_records`.
        tokenizer: what `as_tokenizer` takes.
        validation_path: a validation file; without it a part of the training file is held out.
        test_path: a test file; without it there is no test.
        validation_size: records held out of the training file, when there is no validation file.
        validation_split: `random`, or `first` as in the authors' run.
        encoding: `default` or `paper`, see `llama_adapter.encoding`.
        template: a name or two texts, see `tasks.alpaca.prompt`.
        max_length: tokens of an example at most (paper: 512).
        batches, seed, shuffle: see `ExampleDataModule`.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer,
        *,
        validation_path: str | Path | None = None,
        test_path: str | Path | None = None,
        validation_size: int = 200,
        validation_split: str = "random",
        encoding: str = "default",
        template: str | Mapping[str, str] | PromptTemplate = "alpaca",
        max_length: int = 512,
        batches: BatchConfig | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(as_tokenizer(tokenizer), batches=batches, seed=seed, shuffle=shuffle)
        if encoding not in ENCODINGS:
            raise ValueError(f"task.data.encoding is {encoding!r}. Choose {' or '.join(ENCODINGS)}.")
        if validation_split not in VALIDATION_SPLITS:
            raise ValueError(
                f"task.data.validation_split is {validation_split!r}. Choose {' or '.join(VALIDATION_SPLITS)}."
            )
        if validation_size < 0:
            raise ValueError(f"task.data.validation_size must be at least 0, got {validation_size}.")
        if max_length < 4:
            raise ValueError(f"task.data.max_length must be at least 4, got {max_length}.")
        self.path = Path(path)
        self.validation_path = validation_path
        self.test_path = test_path
        self.validation_size = validation_size
        self.validation_split = validation_split
        self.encoding = encoding
        self.template = resolve_template(template)
        self.max_length = max_length
        self.train_records: list[Record] = []
        self.validation_records: list[Record] = []
        self.test_records: list[Record] = []

    def prompt(self, record: Mapping[str, str]) -> str:
        return self.template.prompt(record)

    def template_texts(self) -> dict[str, str]:
        return asdict(self.template)

    def setup(self, stage: str | None = None) -> None:
        if self.train_records:
            return  # Lightning calls for every stage
        records = read_records(self.path)
        if self.validation_path is None:
            self.train_records, self.validation_records = self._split(records)
        else:
            self.train_records, self.validation_records = records, read_records(self.validation_path)
        self.test_records = read_records(self.test_path) if self.test_path else []
        self.train_dataset = self._encode(self.train_records, "train")
        self.validation_dataset = self._encode(self.validation_records, "validation")
        self.test_dataset = self._encode(self.test_records, "test")
        if not len(self.train_dataset):
            raise ValueError(
                f"No record of {self.path} has room for an answer within task.data.max_length {self.max_length}. "
                "Raise it."
            )

    def _split(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        if self.validation_size >= len(records):
            raise ValueError(
                f"task.data.validation_size is {self.validation_size}, but {self.path} holds {len(records)} records. "
                f"Choose 0 to {len(records) - 1}."
            )
        if self.validation_split == "first":
            held_out = set(range(self.validation_size))
        else:
            order = torch.randperm(len(records), generator=torch.Generator().manual_seed(SPLIT_SEED))
            held_out = set(order[: self.validation_size].tolist())
        parts = ([], [])
        for number, record in enumerate(records):
            parts[number in held_out].append(record)
        return parts

    def _encode(self, records: list[Record], name: str) -> EncodedDataset:
        encode = ENCODINGS[self.encoding]
        encodings = [encode(self.tokenizer, self.prompt(r), r["output"], self.max_length) for r in records]
        # The authors keep an example without a trained token in its batch, where it trains nothing.
        kept = [e for e in encodings if e.trained_tokens or self.encoding == "paper"]
        dataset = EncodedDataset(kept, dropped=len(encodings) - len(kept))
        if records:
            log.info(
                "%s: %d examples, %d tokens, %d of them trained.",
                name,
                len(dataset),
                dataset.tokens,
                dataset.trained_tokens,
            )
        if dataset.truncated or dataset.dropped:
            log.warning(
                "%s: %d answers are cut to fit task.data.max_length %d; %d records are left out, their prompts leave "
                "no room for an answer.",
                name,
                dataset.truncated,
                self.max_length,
                dataset.dropped,
            )
        return dataset
