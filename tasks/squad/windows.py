"""Windows: a question and as much of its context as a model takes at once, overlapping, each with its answer's place.

A row of a window is what the tokenizer makes of a pair, `<s> question </s></s> part of the context </s>` for RoBERTa.
Two meanings of "doc stride" are in use, and `WindowConfig.doc_stride_means` says which one a number has.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from llama_adapter.examples import IGNORED, Example
from tasks.squad.pairs import PairTemplate
from tasks.squad.records import Answer, Article
from tasks.squad.tokens import SquadTokens

STRIDES = ("overlap", "step")
NO_ANSWER = 0  # the position, that of the first token, that stands for "not in this window"


@dataclass(frozen=True)
class WindowConfig:
    """How contexts are cut.

    Args:
        max_length: tokens of a window at most, special ones and the question's included.
        doc_stride: tokens of the context, see the next one.
        doc_stride_means: `overlap`, those that two neighbouring windows share, as transformers' `stride`; or `step`,
            those between the beginnings of two neighbours, as `doc_stride` of BERT's own script.
        max_question_length: tokens; of a longer question the end is cut off. BERT's `max_query_length`.
    """

    max_length: int = 384
    doc_stride: int = 128
    doc_stride_means: str = "overlap"
    max_question_length: int = 64

    def __post_init__(self) -> None:
        if self.doc_stride_means not in STRIDES:
            raise ValueError(
                f"task.data.doc_stride_means is {self.doc_stride_means!r}. Choose overlap (tokens that two windows "
                "share) or step (tokens from one beginning to the next)."
            )
        least = 0 if self.doc_stride_means == "overlap" else 1
        for key, minimum in (("max_length", 4), ("doc_stride", least), ("max_question_length", 1)):
            if getattr(self, key) < minimum:
                raise ValueError(f"task.data.{key} must be at least {minimum}, got {getattr(self, key)}.")

    def check_room(self, special_tokens: int) -> None:
        """Refuses settings whose windows do not advance, or leave tokens out between them.

        Args:
            special_tokens: of a row.
        """
        room = self.max_length - self.max_question_length - special_tokens
        # Neighbours must share nothing or more, and the step must be at least one token.
        most = room - 1 if self.doc_stride_means == "overlap" else room
        if self.doc_stride > most:
            raise ValueError(
                f"task.data.max_length {self.max_length} leaves {room} tokens of context beside a question of "
                f"{self.max_question_length} and {special_tokens} special tokens, but task.data.doc_stride is "
                f"{self.doc_stride} ({self.doc_stride_means}), which may be {most} at most. Lower it or "
                "task.data.max_question_length, or raise task.data.max_length."
            )

    def step(self, room: int) -> int:
        """Tokens between the beginnings of two windows that have room for so many tokens of the context."""
        return self.doc_stride if self.doc_stride_means == "step" else room - self.doc_stride


class Windows(Sequence[Example]):
    """The windows of questions, in the questions' order: examples of a batch.

    Args:
        articles: of a whole file.
        tokens: of the file.
        template: of the rows.
        config: of the windows.
        chosen: numbers of the questions that windows are made of; None for all.
        train: whether questions whose answer's text does not stand at its place are left out, as BERT's own reader
            does: one wrong answer of 87,599 must not end a run. They are counted either way. Otherwise they are kept,
            to be answered, with a label that trains nothing.

    Attributes:
        contexts, questions: of the whole file, in its order.
        context_of: number of each question's context.
        question: [W], the question of each window.
        first, count: [W], the first token of the context in each window, and how many.
        unfit: numbers of the chosen questions whose answers do not fit.
        cut_questions: how many questions were longer than `max_question_length`.
    """

    def __init__(
        self,
        articles: Sequence[Article],
        tokens: SquadTokens,
        template: PairTemplate,
        config: WindowConfig,
        *,
        chosen: Iterable[int] | None = None,
        train: bool = False,
    ) -> None:
        config.check_room(template.special_tokens)
        paragraphs = [paragraph for article in articles for paragraph in article.paragraphs]
        self.contexts = [paragraph.context for paragraph in paragraphs]
        self.questions = [question for paragraph in paragraphs for question in paragraph.questions]
        self.context_of = [number for number, paragraph in enumerate(paragraphs) for _ in paragraph.questions]
        self.tokens_of = tokens
        self.template = template
        self.config = config
        self.unfit: list[int] = []
        self.cut_questions = 0
        self._context, self._kept = -1, ([], [])
        rows: list[tuple[int, int, int, int, int]] = []
        for number in range(len(self.questions)) if chosen is None else chosen:
            place = self._label(number)
            if place is None:
                self.unfit.append(number)
                if train:
                    continue
            rows += self._windows(number, place)
        columns = torch.tensor(rows, dtype=torch.int32).view(-1, 5).unbind(1)
        self.question, self.first, self.count, self.start_positions, self.end_positions = columns

    def __len__(self) -> int:
        return len(self.question)

    def __getitem__(self, index: int) -> Example:
        """`input_ids` [T], the scalars `start_positions` and `end_positions`, and maybe `token_type_ids` [T]."""
        number = int(self.question[index])
        question = self.tokens_of.questions.ids[self.tokens_of.questions.of(number)][: self.config.max_question_length]
        begin = self.tokens_of.contexts.of(self.context_of[number]).start + int(self.first[index])
        context = self.tokens_of.contexts.ids[begin : begin + int(self.count[index])]
        template = self.template
        parts = [template.before, question, template.between, context, template.after]
        example = {
            "input_ids": torch.cat([torch.as_tensor(part, dtype=torch.int32) for part in parts]).long(),
            "start_positions": self.start_positions[index].long(),
            "end_positions": self.end_positions[index].long(),
        }
        if template.types is not None:
            sizes = torch.tensor([len(part) for part in parts])
            example["token_type_ids"] = torch.tensor(template.types).repeat_interleave(sizes)
        return example

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each window."""
        return (self.context_begin + self.count + len(self.template.after)).tolist()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def context_begin(self) -> Tensor:
        """[W], the position in each row where the context begins."""
        bounds = self.tokens_of.questions.bounds
        sizes = (bounds[1:] - bounds[:-1]).clamp(max=self.config.max_question_length)
        return sizes[self.question.long()] + len(self.template.before) + len(self.template.between)

    @cached_property
    def of_question(self) -> dict[int, list[int]]:
        """The windows of each question."""
        windows: dict[int, list[int]] = {}
        for window, number in enumerate(self.question.tolist()):
            windows.setdefault(number, []).append(window)
        return windows

    def offsets(self, window: int) -> Tensor:
        """[count, 2], the characters of the context that each of its tokens in the window stands for."""
        begin = self.tokens_of.contexts.of(self.context_of[int(self.question[window])]).start + int(self.first[window])
        return self.tokens_of.contexts.offsets[begin : begin + int(self.count[window])]

    def answer_tokens(self, number: int, answer: Answer) -> tuple[int, int] | None:
        """The first and the last token of the context that hold an answer; None where its text is not at its place.

        The first one holds the answer's first character, the last one its last character, blanks around it left out.
        """
        context = self.context_of[number]
        if not answer.text.strip() or not answer.fits(self.contexts[context]):
            return None
        start = answer.start + len(answer.text) - len(answer.text.lstrip())
        end = answer.start + len(answer.text.rstrip())
        starts, ends = self._places(context)
        first, last = bisect_right(ends, start), bisect_left(starts, end) - 1
        return (first, last) if first <= last else None

    def _places(self, context: int) -> tuple[list[int], list[int]]:
        """The offsets of a context's tokens; the last context's are kept, as its questions follow one another."""
        if self._context != context:
            starts, ends = self.tokens_of.contexts.offsets[self.tokens_of.contexts.of(context)].unbind(1)
            self._context, self._kept = context, (starts.tolist(), ends.tolist())
        return self._kept

    def _label(self, number: int) -> tuple[int, int] | None:
        """The tokens that are trained for a question: of the first answer that fits. (-1, -1) without an answer."""
        answers = self.questions[number].answers
        places = (self.answer_tokens(number, answer) for answer in answers)
        return next((place for place in places if place is not None), None) if answers else (-1, -1)

    def _windows(self, number: int, place: tuple[int, int] | None) -> list[tuple[int, int, int, int, int]]:
        """Question, first token, count, start and end position of each window."""
        questions, contexts = self.tokens_of.questions, self.tokens_of.contexts
        own = questions.of(number)
        size = min(own.stop - own.start, self.config.max_question_length)
        self.cut_questions += own.stop - own.start > size
        room = self.config.max_length - size - self.template.special_tokens
        begin = len(self.template.before) + size + len(self.template.between)
        whole = contexts.of(self.context_of[number])
        total = whole.stop - whole.start
        rows, first = [], 0
        while True:
            count = min(room, total - first)
            label = (IGNORED, IGNORED) if place is None else (NO_ANSWER, NO_ANSWER)
            if place is not None and first <= place[0] and place[1] < first + count:
                label = (begin + place[0] - first, begin + place[1] - first)
            rows.append((number, first, count, *label))
            if first + count == total:
                return rows
            first += self.config.step(room)
