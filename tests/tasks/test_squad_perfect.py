"""A perfect predictor, built from the labels of the real dev files, through the whole decoding path.

It gives a window that holds the answer high logits at the answer's two ends, and every other window one for no answer;
windows, batches, n-best spans, merging, texts, files and metrics are those of every evaluation.
"""

import json

import pytest

from tasks.squad.evaluation import SquadEvaluation
from tasks.squad.metric import question_scores
from tasks.squad.records import Answer
from tasks.squad.scoring import PredictionScoring
from tasks.squad.windows import WindowConfig, Windows
from tests.tiny_squad import FILES, Predictor, byte_tokenizer, data_of, roberta_tokenizer, windows_of

QUESTIONS = {"dev-v1.1.rebuilt": 10570, "dev-v2.0.rebuilt": 11873, "dev-v2.0-slice": 1407}

# A span of tokens cannot give these answers with RoBERTa's vocabulary, whatever the logits: the only "four" of the
# context, the label's own place, is the beginning of "fourth", which is one token.
INSIDE_A_TOKEN = {"56dfa1d34a1a83140091ebd4"}
# All of their answers have more than the 30 tokens that BERT's reader allows.
LONG = {"5726ed6cf1498d1400e8f00d", "57292994af94a219006aa133", "572fe60fb2c2fd140056858e"}


def exact_and_f1(metrics: dict[str, float], version: str) -> tuple[float, float]:
    return metrics["test/exact_match" if version == "v1.1" else "test/exact"], metrics["test/f1"]


def first_answers(windows: Windows) -> dict[int, tuple[int, int]]:
    """The label: the first answer, at the place that the file gives."""
    asked = enumerate(windows.questions)
    return {number: windows.answer_tokens(number, q.answers[0]) for number, q in asked if q.answers}


@pytest.mark.parametrize("name", FILES)
def test_perfect_predictor_scores_100_on_the_real_file(shared, tmp_path, name):
    """With a token for every byte, so that any answer is a span of tokens; labels exactly as they stand in the file."""
    path, version = shared / f"data/squad/{name}.json.gz", FILES[name]
    windows = windows_of(path, version, byte_tokenizer(), WindowConfig(1400, 400, "overlap", 300))
    assert len(windows.questions) == QUESTIONS[name]
    assert len(windows) > len(windows.questions), "contexts of several windows"
    model = Predictor(windows, first_answers(windows))
    evaluation = SquadEvaluation(max_answer_length=400)
    metrics = evaluation(model, data_of(windows, version), tmp_path)
    assert exact_and_f1(metrics, version) == (100.0, 100.0)
    if version == "v2.0":
        assert metrics["test/HasAns_exact"] == metrics["test/NoAns_exact"] == 100.0
    scoring = PredictionScoring(path.parent, version=version, file=path.name.removesuffix(".gz"))
    again = scoring(tmp_path / "predictions.json", tmp_path)
    assert {f"test/{key}": value for key, value in again.items()}.items() <= metrics.items()


def places(windows: Windows, number: int, uncertain: bool, max_answer_length: int) -> tuple[int, int] | None:
    """The tokens of an answer that they give exactly: of the first such one, where its offset is uncertain anywhere."""
    context_number = windows.context_of[number]
    context, question = windows.contexts[context_number], windows.questions[number]
    pieces = windows.tokens_of.contexts
    offsets = pieces.offsets[pieces.of(context_number)]
    candidates = list(question.answers)
    if uncertain:
        starts = [(a.text, n) for a in question.answers for n in range(len(context)) if context.startswith(a.text, n)]
        candidates += [Answer(*start) for start in starts]
    for answer in candidates:
        first, last = windows.answer_tokens(number, answer)
        text = context[int(offsets[first, 0]) : int(offsets[last, 1])]
        if last - first < max_answer_length and question_scores(question, text, "v2.0") == (1.0, 1.0):
            return first, last
    return None


WHOLE = [pytest.param(name, marks=pytest.mark.slow) for name in FILES if name != "dev-v2.0-slice"]


@pytest.mark.parametrize("max_answer_length", [30, 80])
@pytest.mark.parametrize("name", ["dev-v2.0-slice", *WHOLE])
def test_perfect_predictor_with_robertas_vocabulary(shared, tmp_path, name, max_answer_length):
    """100 but for the questions that a span of tokens cannot answer, each of which is named above."""
    path, version = shared / f"data/squad/{name}.json.gz", FILES[name]
    windows = windows_of(path, version, roberta_tokenizer(shared))
    listed = path.with_name(f"{name}.uncertain_offset_ids.json")
    uncertain = set(json.loads(listed.read_text())) if listed.is_file() else set()
    answers = {
        number: places(windows, number, question.id in uncertain, max_answer_length)
        for number, question in enumerate(windows.questions)
        if question.answers
    }
    impossible = {windows.questions[number].id for number, place in answers.items() if place is None}
    known = INSIDE_A_TOKEN | (LONG if max_answer_length == 30 else set())
    assert impossible == known & {question.id for question in windows.questions}
    answers = {number: place for number, place in answers.items() if place is not None}
    evaluation = SquadEvaluation(max_answer_length=max_answer_length)
    metrics = evaluation(Predictor(windows, answers), data_of(windows, version), tmp_path)
    best = 100.0 * (QUESTIONS[name] - len(impossible)) / QUESTIONS[name]
    assert exact_and_f1(metrics, version)[0] == best
    predictions = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    wrong = {q.id for q in windows.questions if question_scores(q, predictions[q.id], version) != (1.0, 1.0)}
    assert wrong == impossible
