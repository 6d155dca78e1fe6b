"""Decoding against a search through all spans, written out naively."""

import pytest
import torch

from tasks.squad.spans import Decoded, DecodingConfig, Span, WindowSpans, candidates, merge, probabilities, window_spans
from tests.tiny_squad import answer, article, byte_tokenizer, question, windows_of, write_squad


def naive(start, end, allowed, config: DecodingConfig) -> list[tuple[float, int, int]]:
    """Scores and places of one window's best spans."""
    positions = [n for n in range(len(allowed)) if allowed[n]]
    starts = sorted(positions, key=lambda n: -start[n])[: config.n_best]
    ends = sorted(positions, key=lambda n: -end[n])[: config.n_best]
    spans = [(start[s] + end[e], s, e) for s in starts for e in ends if 0 <= e - s < config.max_answer_length]
    return sorted(spans, key=lambda span: -span[0])[: config.n_best]


@pytest.mark.parametrize("n_best", [1, 3, 20])
@pytest.mark.parametrize("max_answer_length", [1, 4, 99])
def test_candidates_are_those_of_a_search(n_best, max_answer_length):
    generator = torch.Generator().manual_seed(n_best)
    start, end = (torch.randn(6, 17, generator=generator) for _ in range(2))
    allowed = torch.rand(6, 17, generator=generator) < 0.7
    config = DecodingConfig(n_best, max_answer_length)
    best = candidates(start, end, allowed, config)
    for row in range(6):
        expected = naive(start[row].double().tolist(), end[row].double().tolist(), allowed[row].tolist(), config)
        there = best.logits[row, :, 0] > -torch.inf
        found = [
            (sum(logits), *places)
            for logits, places in zip(best.logits[row][there].tolist(), best.places[row][there].tolist(), strict=True)
        ]
        assert found == expected
        assert best.null[row].tolist() == [start[row, 0].item(), end[row, 0].item()]


def test_equal_logits_give_the_first_places():
    best = candidates(torch.zeros(1, 5), torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool), DecodingConfig(2))
    assert best.places[0].tolist() == [[0, 0], [0, 1]]


def test_no_span_at_all():
    best = candidates(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), DecodingConfig())
    assert (best.logits == -torch.inf).all()


@pytest.mark.parametrize("key", ["n_best", "max_answer_length"])
def test_limits_that_are_none(key):
    with pytest.raises(ValueError, match=rf"^task\.evaluation\.{key} must be at least 1, got 0\.$"):
        DecodingConfig(**{key: 0})


# --- windows to characters ------------------------------------------------------------------------------------------


def test_spans_are_characters_of_the_context(tmp_path):
    """Positions of the question, of special tokens, of padding and of blanks begin and end no answer."""
    context = "A red  ball."
    path = write_squad(tmp_path, article(question("a", answer("red  ball", context), text="Which?"), context=context))
    windows = windows_of(path, "v2.0", byte_tokenizer())
    length = windows.lengths[0] + 3
    logits = torch.zeros(2, 1, length)
    begin = int(windows.context_begin[0])
    logits[:, 0, :begin] = logits[:, 0, begin + len(context) :] = 50.0  # all that is not the context
    logits[0, 0, begin + 2] = 5.0
    logits[1, 0, begin + 10] = 5.0
    found = window_spans(windows, [0], torch.tensor([7]), *logits, DecodingConfig(4))
    assert found.question.unique().tolist() == [7]
    assert found.span[0].tolist() == [2, 11]
    assert found.logits[0].tolist() == [5.0, 5.0]
    assert found.null.tolist() == [[50.0, 50.0]]
    assert int(found.span.max()) <= len(context)


def test_no_span_begins_with_a_blank_alone(shared, tmp_path):
    """RoBERTa's vocabulary has a piece for a blank, which stands for no character."""
    from tests.tiny_squad import roberta_tokenizer

    path = write_squad(tmp_path, article(question("a"), context="A  red   ball."))
    windows = windows_of(path, "v2.0", roberta_tokenizer(shared))
    widths = [end - start for start, end in windows.offsets(0).tolist()]
    assert 0 in widths
    found = window_spans(windows, [0], torch.tensor([0]), *torch.zeros(2, 1, windows.lengths[0]), DecodingConfig(99))
    words = sum(width > 0 for width in widths)
    assert len(found.span) == words * (words + 1) // 2
    assert all(not windows.contexts[0][start].isspace() for start, _ in found.span.tolist())


# --- windows to questions -------------------------------------------------------------------------------------------


def spans(*rows: tuple[int, int, int, float, float], nulls: list[tuple[int, float, float]]) -> WindowSpans:
    table, null = torch.tensor(rows, dtype=torch.float64).view(-1, 5), torch.tensor(nulls, dtype=torch.float64)
    return WindowSpans(table[:, 0].long(), table[:, 1:3].long(), table[:, 3:], null[:, 0].long(), null[:, 1:])


def test_the_best_over_windows():
    """The same span of two windows counts once, with its best score; no answer counts with its smallest."""
    found = spans(
        (0, 3, 8, 1.0, 1.0), (0, 0, 2, 2.0, 2.5), (0, 3, 8, 2.0, 4.0), (1, 5, 6, -1.0, 0.0), (0, 3, 9, 0.0, 1.5),
        nulls=[(0, 5.0, 1.0), (0, 1.0, 3.0), (1, 0.5, 0.25)],
    )  # fmt: skip
    one, two = merge(found, questions=2, n_best=3)
    assert one == Decoded((Span(3, 8, 2.0, 4.0), Span(0, 2, 2.0, 2.5), Span(3, 9, 0.0, 1.5)), Span(0, 0, 1.0, 3.0))
    assert two == Decoded((Span(5, 6, -1.0, 0.0),), Span(0, 0, 0.5, 0.25))
    assert (one.null_odds, two.null_odds) == (4.0 - 6.0, 0.75 + 1.0)
    assert [len(decoded.spans) for decoded in merge(found, questions=2, n_best=2)] == [2, 1]


def test_a_question_without_spans():
    (decoded,) = merge(spans(nulls=[(0, -2.0, 1.0)]), questions=1, n_best=3)
    assert decoded == Decoded((), Span(0, 0, -2.0, 1.0))
    assert decoded.null_odds == -1.0


def test_parts_are_joined():
    one = spans((0, 1, 2, 0.0, 0.0), nulls=[(0, 0.0, 0.0)])
    two = spans((1, 3, 4, 1.0, 1.0), (1, 3, 5, 1.0, 0.0), nulls=[(1, 2.0, 0.0)])
    joined = WindowSpans.joined([one, two])
    assert joined.question.tolist() == [0, 1, 1]
    assert joined.span.tolist() == [[1, 2], [3, 4], [3, 5]]
    assert joined.null_question.tolist() == [0, 1]


def test_probabilities_are_a_softmax():
    assert probabilities([0.0, 0.0]) == [0.5, 0.5]
    assert sum(probabilities([1000.0, 999.0, -1000.0])) == pytest.approx(1)
