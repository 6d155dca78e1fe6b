"""SQuAD's metrics against what the official scripts gave, to the last digit."""

import json

import pytest

from tasks.squad.metric import SquadScores, best_threshold, mean, normalize, question_scores, with_threshold, word_f1
from tasks.squad.records import Answer, Question, questions_of, read_articles
from tests.tiny_squad import write_squad

VERSIONS = ["v1.1", "v2.0"]


@pytest.fixture
def edge(shared) -> dict:
    return json.loads((shared / "data/squad/golden/edge_cases.json").read_text(encoding="utf-8"))


def read(tmp_path, edge: dict, version: str) -> list[Question]:
    path = write_squad(tmp_path, *edge[f"dataset_{version}"]["data"])
    return list(questions_of(read_articles(path, version)))


def test_normalised_texts(edge):
    assert {text: normalize(text) for text in edge["normalize"]} == edge["normalize"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_question_of_the_edge_cases(tmp_path, edge, version):
    scores = {q.id: question_scores(q, edge["predictions"][q.id], version) for q in read(tmp_path, edge, version)}
    assert {id: exact for id, (exact, _) in scores.items()} == edge[f"per_question_exact_{version}"]
    assert {id: f1 for id, (_, f1) in scores.items()} == edge[f"per_question_f1_{version}"]


def score(questions: list[Question], version: str, edge: dict, **options) -> dict[str, float]:
    scores = SquadScores(questions, version, **options)
    na_probs = [edge["na_prob"][q.id] for q in questions] if options else None
    scores.update(range(len(questions)), [edge["predictions"][q.id] for q in questions], na_probs)
    return scores.compute()


@pytest.mark.parametrize(
    ("version", "options", "name"),
    [
        ("v1.1", {}, "official_v1.1"),
        ("v2.0", {}, "official_v2.0"),
        ("v2.0", {"na_threshold": 0.5}, "official_v2.0_na_thresh_0.5"),
    ],
)
def test_totals_of_the_edge_cases(tmp_path, edge, version, options, name):
    assert score(read(tmp_path, edge, version), version, edge, **options) == edge[name]


def test_f1_by_hand():
    # words: {big, red, ball} and {red, ball, here}; 2 in common, of 3 each
    assert word_f1("the big red ball", "A red ball, here", empty_matches=True) == 2 / 3
    assert word_f1("red red", "red", empty_matches=True) == 2 * 0.5 / 1.5
    assert [word_f1("the", "a", empty_matches=empty) for empty in (True, False)] == [1.0, 0.0]
    assert [word_f1("the", "red", empty_matches=empty) for empty in (True, False)] == [0.0, 0.0]


def test_an_average_adds_in_order():
    """One after the other: sum() of newer Pythons would give 1e16 + 2 here."""
    assert mean([1e16, 1.0, 1.0], 100) == 1e16


def test_the_threshold_is_exclusive():
    assert with_threshold([0.5, 0.5, 0.5], [0.2, 0.3, 0.4], [True, True, False], 0.3) == [0.5, 0.5, 1.0]
    assert with_threshold([0.5, 0.5], [0.2, 0.4], [True, True], 0.3) == [0.5, 0.0]


def test_the_best_threshold_against_all_thresholds():
    """With na_probs that differ, stopping after a question is a threshold: every one is tried, as the script would."""
    scores, answerable = [1.0, 0.0, 0.4, 1.0, 1.0, 0.0], [True, False, True, False, True, False]
    na_probs, answered = [0.1, 0.5, 0.3, 0.9, 0.4, 0.2], [True, True, True, False, True, True]
    best = max((mean(with_threshold(scores, na_probs, answerable, t), 6), -t) for t in (-1.0, *na_probs))
    assert best_threshold(scores, na_probs, answerable, answered) == pytest.approx((best[0], -best[1]))


def test_nothing_answered_can_be_best():
    assert best_threshold([0.0, 1.0], [0.1, 0.2], [True, False], [True, False]) == (50.0, 0.0)


def test_equal_na_probs_are_taken_in_the_order_of_their_file():
    """As the official script does: it may stop between them, so their order decides."""
    good, bad = Question("good", "?", (Answer("red", 0),)), Question("bad", "?", ())
    results = []
    for places in ([0, 1], [1, 0]):
        scores = SquadScores([good, bad], "v2.0")
        scores.update([0, 1], ["red", "blue"], [0.5, 0.5], places)
        results.append(scores.compute()["best_exact"])
    assert results == [100.0, 50.0]


def questions(count: int) -> list[Question]:
    return [Question(str(number), "?", (Answer(f"word{number}", 0),)) for number in range(count)]


def test_a_question_without_a_prediction():
    scores = SquadScores(questions(4), "v1.1")
    scores.update([0, 2], ["word0", "other"])
    assert scores.compute() == {"exact_match": 25.0, "f1": 25.0}
    assert scores.missing == ["1", "3"]
    scores = SquadScores(questions(9), "v2.0")
    scores.update([0, 2], ["word0", "other"])
    with pytest.raises(ValueError) as error:
        scores.compute()
    assert str(error.value) == (
        '7 of the 9 questions have no prediction: 1, 3, 4, 5, 6 and 2 more. Give every question one, "" for no answer.'
    )


def test_a_part_of_the_na_probs():
    scores = SquadScores(questions(3), "v2.0")
    scores.update([0, 1], ["word0", ""], [0.1, 0.2])
    scores.update([2], [""])
    with pytest.raises(ValueError, match=r"^1 of the 3 questions have no no-answer probability\.$"):
        scores.compute()


def test_na_probs_that_are_no_numbers():
    with pytest.raises(ValueError, match=r"^1 of the no-answer probabilities are not finite: nan\.$"):
        SquadScores(questions(2), "v2.0").update([0, 1], ["", ""], [0.1, float("nan")])


def test_a_part_without_questions_has_no_numbers():
    scores = SquadScores(questions(2), "v2.0")
    scores.update([0, 1], ["word0", ""])
    assert scores.compute() == {
        "exact": 50.0, "f1": 50.0, "total": 2, "HasAns_exact": 50.0, "HasAns_f1": 50.0, "HasAns_total": 2,
    }  # fmt: skip


def test_devices_are_joined_without_counting_twice():
    """Two devices with a question in common, as samplers pad; torchmetrics' own joining, with the other's state given."""
    here, there = (SquadScores(questions(3), "v2.0") for _ in range(2))
    here.update([0, 1], ["word0", "word1"], [-3.0, 0.2])
    there.update([2, 0], ["wrong", "word0"], [0.1, -3.0])
    others = iter([there.exact, there.f1, there.answered, there.na_prob, there.place])
    here.distributed_available_fn = lambda: True
    here.dist_sync_fn = lambda state, group: [state, next(others)]
    values = here.compute()
    assert (values["exact"], values["total"]) == (200 / 3, 3)
    assert (values["best_exact"], values["best_exact_thresh"]) == (200 / 3, 0.2)


def test_reset():
    scores = SquadScores(questions(2), "v1.1")
    scores.update([0, 1], ["word0", "word1"])
    scores.reset()
    assert scores.missing == ["0", "1"]


def test_an_unknown_version():
    with pytest.raises(ValueError, match=r"^task\.data\.version is 'v3'\. Choose v1\.1 or v2\.0\.$"):
        SquadScores([], "v3")
