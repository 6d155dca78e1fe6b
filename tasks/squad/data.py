"""The DataModule for SQuAD: windows of questions and contexts, in batches of about one length."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from llama_adapter.data import BatchConfig, ExampleDataModule, GlobalBatchSampler
from llama_adapter.data_files import first
from llama_adapter.examples import IGNORED, Example, TokenCounts
from llama_adapter.length_order import LengthOrder
from tasks.squad.pairs import PairTemplate
from tasks.squad.records import Article, check_version, read_articles, squad_file
from tasks.squad.tokens import SquadTokens, squad_tokens
from tasks.squad.windows import WindowConfig, Windows

log = logging.getLogger(__name__)

HELD_OUT_SEED = 0  # of which articles are held out: runs with other seeds are compared on the same ones


class SpanCollator:
    """Right-padded rows and the places of their answers.

    Args:
        pad_id: fills `input_ids`; attention leaves it out.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | TokenCounts]:
        """Returns `input_ids` and `attention_mask` [B, T], `token_type_ids` [B, T] where the examples have them,
        `start_positions` and `end_positions` [B]; and `counts`.

        A device may get no example from a small last batch; it then computes a row of padding, which trains nothing.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        if not examples:
            blank = {"input_ids": torch.full((2,), self.pad_id)}
            places = dict.fromkeys(("start_positions", "end_positions"), torch.tensor(IGNORED))
            examples = [blank | places]
        fills = {"input_ids": self.pad_id, "token_type_ids": 0}
        batch = {
            key: pad_sequence([example[key] for example in examples], batch_first=True, padding_value=fill)
            for key, fill in fills.items()
            if key in examples[0]
        }
        rows = [torch.ones(len(example["input_ids"]), dtype=torch.long) for example in examples]
        batch["attention_mask"] = pad_sequence(rows, batch_first=True)
        for key in ("start_positions", "end_positions"):
            batch[key] = torch.stack([example[key] for example in examples])
        useful, computed = sum(lengths), batch["input_ids"].numel()
        attended = sum(length * length for length in lengths)
        return batch | {"counts": TokenCounts(useful, computed, computed - useful, attended)}


class SquadDataModule(ExampleDataModule):
    """Windows of the training articles, of some articles held out from them, and of the test file.

    The dev file is the test part: its answers choose nothing. What is chosen is chosen on the articles held out, whole
    ones: a context that is in both parts would make the choice too easy.

    Args:
        root: folder of the data set; the files are relative to it, each may be gzipped.
        tokenizer: a fast one of transformers, of an encoder.
        version: v1.1, or v2.0 with questions that have no answer.
        train_file, test_file: names of SQuAD's own files.
        validation_share: share of the training questions that are held out, by article; 0 holds out none.
        max_length, doc_stride, doc_stride_means, max_question_length: see `WindowConfig`.
        workers: processes that tokenise; 0 does it in this one, on the tokenizer's own threads.
        cache: folder that keeps the tokens of files between runs; None keeps none.
        batches, seed: see `ExampleDataModule`; rows are padded.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        version: str,
        train_file: str,
        test_file: str,
        validation_share: float = 0.02,
        max_length: int = 384,
        doc_stride: int = 128,
        doc_stride_means: str = "overlap",
        max_question_length: int = 64,
        workers: int = 0,
        cache: str | Path | None = None,
        batches: BatchConfig | None = None,
        seed: int = 0,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                "SQuAD needs a tokenizer that tells which characters a token stands for, which "
                f"{type(tokenizer).__name__} does not. Set model.tokenizer to a folder with a tokenizer.json."
            )
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no padding token. Set pad_token in its tokenizer_config.json.")
        super().__init__(tokenizer, batches=batches, seed=seed, collator=SpanCollator(tokenizer.pad_token_id))
        check_version(version)
        if not 0 <= validation_share < 1:
            raise ValueError(f"task.data.validation_share must be at least 0 and below 1, got {validation_share}.")
        if workers < 0:
            raise ValueError(f"task.data.workers must be at least 0, got {workers}.")
        self.root = Path(root)
        self.version = version
        self.files = {"train_file": train_file, "test_file": test_file}
        self.validation_share = validation_share
        self.windows = WindowConfig(max_length, doc_stride, doc_stride_means, max_question_length)
        self.template = PairTemplate.of(tokenizer)
        self.windows.check_room(self.template.special_tokens)
        self.workers = workers
        self.cache = None if cache is None else Path(cache)

    def setup(self, stage: str | None = None) -> None:
        if len(self.train_dataset):
            return  # Lightning calls for every stage
        paths = {key: squad_file(self.root, name, key) for key, name in self.files.items()}
        articles, tokens = self._read(paths["train_file"])
        chosen = dict(zip(("train", "validation"), held_out(articles, self.validation_share), strict=True))
        self.train_dataset = self._encode(articles, tokens, "train", chosen["train"], train=True)
        if not len(self.train_dataset):
            raise ValueError(
                f"None of the {len(chosen['train'])} training questions of {paths['train_file']} has an answer whose "
                "text stands at its answer_start, counted in characters."
            )
        self.validation_dataset = self._encode(articles, tokens, "validation", chosen["validation"])
        self.test_dataset = self._encode(*self._read(paths["test_file"]), "test")

    def _read(self, path: Path) -> tuple[list[Article], SquadTokens]:
        articles = read_articles(path, self.version)
        return articles, squad_tokens(path, articles, self.tokenizer, cache=self.cache, workers=self.workers)

    def _encode(
        self,
        articles: Sequence[Article],
        tokens: SquadTokens,
        name: str,
        chosen: Sequence[int] | None = None,
        *,
        train: bool = False,
    ) -> Windows:
        windows = Windows(articles, tokens, self.template, self.windows, chosen=chosen, train=train)
        questions = len(windows.questions) if chosen is None else len(chosen)
        log.info("%s: %d questions in %d windows, %d tokens.", name, questions, len(windows), windows.tokens)
        if windows.unfit:
            log.warning(
                "%s: the text of no answer stands at its answer_start in %d of %d questions, which are %s: %s.",
                name,
                len(windows.unfit),
                questions,
                "not trained" if train else "answered, but not in the loss",
                first([windows.questions[number].id for number in windows.unfit]),
            )
        if windows.cut_questions:
            limit = self.windows.max_question_length
            log.warning("%s: %d questions are cut to %d tokens.", name, windows.cut_questions, limit)
        return windows

    def _sampler(self, dataset: Windows, devices: int, *, accumulation: int, shuffle: bool) -> GlobalBatchSampler:
        """Whose batches hold windows of about one length."""
        sampler = super()._sampler(dataset, devices, accumulation=accumulation, shuffle=shuffle)
        lengths = dataset.lengths if len(dataset) else []
        size = self.batches.global_batch_size
        sampler.sampler = LengthOrder(lengths, global_batch_size=size, shuffle=shuffle, seed=self.seed)
        return sampler


def held_out(articles: Sequence[Article], share: float) -> tuple[list[int], list[int]]:
    """Numbers of the questions to train on and of those held out, each in the file's order.

    Whole articles in a random order, the same for every run, until they hold the share. One article is always left to
    train on.

    Args:
        articles: of the file.
        share: of the questions, 0 to 1.

    Raises:
        ValueError: one article alone cannot be divided.
    """
    if share and len(articles) < 2:
        raise ValueError(
            "The training file has 1 article, and whole articles are held out. Set task.data.validation_share=0."
        )
    order = torch.randperm(len(articles), generator=torch.Generator().manual_seed(HELD_OUT_SEED)).tolist()
    wanted = share * sum(article.questions for article in articles)
    out: set[int] = set()
    for number in order[:-1]:
        if sum(articles[member].questions for member in out) >= wanted:
            break
        out.add(number)
    train: list[int] = []
    validation: list[int] = []
    question = 0
    for number, article in enumerate(articles):
        part = validation if number in out else train
        part.extend(range(question, question + article.questions))
        question += article.questions
    return train, validation
