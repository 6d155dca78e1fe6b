"""What the miniature RoBERTa is pretrained on, as rows of tokens: pages with words to mask, and exercises with gaps."""

import logging
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from miniature.byte_tokenizer import ROW_LENGTH, SPECIAL_TOKENS
from miniature.pages import GAP, Exercise, Page, exercises, pages

ROWS_SEED = 1
ROWS = 24  # per step
POOL_STEPS = 16  # rows for so many steps are sorted by length, so that those of a step are about equally long
SHORT_SHARE, SHORT_FACTS = 0.3, (1, 4)  # the first steps: on short pages alone
SHORT_WORDS, SHORT_EXERCISES = 400_000, 12_000
PAGES_WORDS, EXERCISES = 800_000, 16_000

PAD, MASK = SPECIAL_TOKENS.index("<pad>"), SPECIAL_TOKENS.index("<mask>")

log = logging.getLogger(__name__)

Row = tuple[list[int], list[int], bool]  # ids as shown, ids as they should be, and whether it is an exercise


def page_rows(tokenizer: PreTrainedTokenizerFast, made: list[Page]) -> list[Row]:
    """A row for each page, `<s> A </s></s> B </s>`; too long ones are left out."""
    rows = (tokenizer(*page).input_ids for page in made)
    return [(row, row, False) for row in rows if len(row) <= ROW_LENGTH]


def exercise_rows(tokenizer: PreTrainedTokenizerFast, made: list[Exercise]) -> list[Row]:
    """A row for each exercise, which shows every word; there should be a gap instead of each word that is left out."""
    gap, rows = piece(tokenizer, GAP), []
    for exercise in made:
        encoded = tokenizer(exercise.question, exercise.passage, return_offsets_mapping=True)
        places = zip(encoded.input_ids, encoded.sequence_ids(), encoded.offset_mapping, strict=True)
        first, last = exercise.gap
        left_out = [gap if part == 1 and start < last and end > first else id for id, part, (start, end) in places]
        rows.append((encoded.input_ids, left_out, True))
    return [row for row in rows if len(row[0]) <= ROW_LENGTH]


def padded(rows: list[list[int]]) -> Tensor:
    """[rows, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


class Batches(IterableDataset):
    """Rows of a step: ids as shown and as they should be, [ROWS, at most ROW_LENGTH]; which are exercises, [ROWS]."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
        self.steps = steps
        self.short = page_rows(tokenizer, pages(SHORT_WORDS, SHORT_FACTS))
        self.short += exercise_rows(tokenizer, exercises(SHORT_EXERCISES, SHORT_FACTS))
        self.long = page_rows(tokenizer, pages(PAGES_WORDS)) + exercise_rows(tokenizer, exercises(EXERCISES))
        log.info("rows: %d short, %d of any length", len(self.short), len(self.long))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = random.Random(ROWS_SEED)
        short, long = (self.batches(rows, generator) for rows in (self.short, self.long))
        for step in range(self.steps):
            yield next(short if step < self.steps * SHORT_SHARE else long)

    def batches(self, rows: list[Row], generator: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        pool = ROWS * POOL_STEPS
        while True:
            shuffled = generator.sample(rows, len(rows))
            for start in range(0, len(shuffled) - pool + 1, pool):
                ordered = sorted(shuffled[start : start + pool], key=lambda row: len(row[0]))
                steps = [ordered[first : first + ROWS] for first in range(0, pool, ROWS)]
                generator.shuffle(steps)
                for members in steps:
                    shown, right, is_exercise = zip(*members, strict=True)
                    yield padded(shown), padded(right), torch.tensor(is_exercise)


def piece(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The id of a word that is one piece."""
    return tokenizer(word, add_special_tokens=False).input_ids[0]
