"""From start and end logits to answers: the n best spans of every window, and of every question over its windows.

As BERT's own reader, with three differences that are said where they are: spans are told apart by their characters, not
by their text; blanks alone neither begin nor end an answer; and of a token that several windows hold every window's
score counts, not that of the window with the most context around it alone. Which context is largest is a question of a
start, and a span has two ends; the best score over all windows is what transformers' reader takes too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tasks.squad.windows import Windows


@dataclass(frozen=True)
class DecodingConfig:
    """Which spans may be answers.

    Args:
        n_best: starts and ends of each window that are paired, and spans that are kept of each question.
        max_answer_length: tokens of a span at most.
        null_threshold: a question has no answer where its null odds are above it (v2.0).
    """

    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float = 0.0

    def __post_init__(self) -> None:
        for key in ("n_best", "max_answer_length"):
            if getattr(self, key) < 1:
                raise ValueError(f"task.evaluation.{key} must be at least 1, got {getattr(self, key)}.")


@dataclass(frozen=True)
class Candidates:
    """The best spans of windows, best first.

    Attributes:
        logits: [W, N, 2], float64, of start and end; -inf where a window has fewer spans.
        places: [W, N, 2], positions in the row of the first and the last token.
        null: [W, 2], float64: the logits of no answer, those at position 0.
    """

    logits: Tensor
    places: Tensor
    null: Tensor


@dataclass(frozen=True)
class WindowSpans:
    """The best spans of some windows, each with its question, and the windows' scores of no answer.

    Attributes:
        question: [M], of each span.
        span: [M, 2], characters of the context, first and last + 1.
        logits: [M, 2], float64, of start and end.
        null_question: [W], of each window.
        null: [W, 2], float64.
    """

    question: Tensor
    span: Tensor
    logits: Tensor
    null_question: Tensor
    null: Tensor

    @classmethod
    def joined(cls, parts: Sequence["WindowSpans"]) -> "WindowSpans":
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a context, and the logits of its two ends."""

    start: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Decoded:
    """What was found for a question.

    Attributes:
        spans: best first; none where no window has any.
        null: no answer, as a span without characters: of its windows the one where it scores least, as there is no
            answer only if none of them holds one.
    """

    spans: tuple[Span, ...]
    null: Span

    @property
    def null_odds(self) -> float:
        """How much better no answer scores than the best span; than 0 where there is no span, as in BERT's reader."""
        return self.null.score - (self.spans[0].score if self.spans else 0.0)


def candidates(start_logits: Tensor, end_logits: Tensor, allowed: Tensor, config: DecodingConfig) -> Candidates:
    """The best spans of each window: of its best starts and ends, those pairs that are spans.

    Args:
        start_logits, end_logits: [W, T].
        allowed: [W, T], whether an answer may begin or end at a position.
        config: the limits.
    """
    count = min(config.n_best, start_logits.shape[1])
    tops = []
    for logits in (start_logits.double(), end_logits.double()):
        # Stable sorting, unlike topk, has one answer where logits are equal: the first position.
        ordered = logits.masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True, stable=True)
        tops.append((ordered.values[:, :count], ordered.indices[:, :count]))
    (start_values, starts), (end_values, ends) = tops
    length = ends[:, None, :] - starts[:, :, None] + 1  # [W, N starts, N ends]
    scores = start_values[:, :, None] + end_values[:, None, :]
    scores = scores.masked_fill((length < 1) | (length > config.max_answer_length), -torch.inf).flatten(1)
    ordered = scores.sort(dim=1, descending=True, stable=True)
    pairs, absent = ordered.indices[:, : config.n_best], ordered.values[:, : config.n_best] == -torch.inf
    start, end = pairs // count, pairs % count
    logits = torch.stack([start_values.gather(1, start), end_values.gather(1, end)], -1)
    places = torch.stack([starts.gather(1, start), ends.gather(1, end)], -1)
    null = torch.stack([start_logits[:, 0], end_logits[:, 0]], -1).double()
    return Candidates(logits.masked_fill(absent[..., None], -torch.inf), places, null)


def window_spans(
    windows: Windows,
    members: Sequence[int],
    questions: Tensor,
    start_logits: Tensor,
    end_logits: Tensor,
    config: DecodingConfig,
) -> WindowSpans:
    """The best spans of the windows of a batch.

    Args:
        windows: all of them.
        members: [B], numbers of those in the batch.
        questions: [B], what the result shall call their questions.
        start_logits, end_logits: [B, T], on any device.
        config: the limits.
    """
    start_logits, end_logits = start_logits.cpu(), end_logits.cpu()
    characters = torch.zeros(*start_logits.shape, 2, dtype=torch.long)
    for row, window in enumerate(members):
        offsets = windows.offsets(window)
        begin = int(windows.context_begin[window])
        characters[row, begin : begin + len(offsets)] = offsets.long()
    # Special tokens, the question and padding stand for no character of the context here, nor do blanks alone.
    best = candidates(start_logits, end_logits, characters[..., 1] > characters[..., 0], config)
    rows, ranks = (best.logits[..., 0] > -torch.inf).nonzero(as_tuple=True)
    first, last = best.places[rows, ranks].unbind(1)
    span = torch.stack([characters[rows, first, 0], characters[rows, last, 1]], dim=1)
    return WindowSpans(questions[rows], span, best.logits[rows, ranks], questions, best.null)


def merge(found: WindowSpans, *, questions: int, n_best: int) -> list[Decoded]:
    """The best spans of each question over all of its windows. A span that several windows hold keeps its best score.

    Args:
        found: of all windows of all questions, which are called 0 to questions - 1.
        questions: how many.
        n_best: spans that are kept of each.
    """
    order = (-found.logits.sum(1)).argsort(stable=True)
    seen: list[dict[tuple[int, int], Span]] = [{} for _ in range(questions)]
    columns = (found.question[order].tolist(), found.span[order].tolist(), found.logits[order].tolist())
    for question, (start, end), logits in zip(*columns, strict=True):
        spans = seen[question]
        if len(spans) < n_best and (start, end) not in spans:
            spans[start, end] = Span(start, end, *logits)
    nulls: list[Span | None] = [None] * questions
    for question, logits in zip(found.null_question.tolist(), found.null.tolist(), strict=True):
        null, best = Span(0, 0, *logits), nulls[question]
        if best is None or null.score < best.score:
            nulls[question] = null
    return [Decoded(tuple(spans.values()), null) for spans, null in zip(seen, nulls, strict=True)]


def probabilities(scores: Sequence[float]) -> list[float]:
    """Softmax."""
    return torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
