"""Files of predictions: the official scores of published ones, and what is refused."""

import gzip
import json

import pytest

from tasks.squad.scoring import PredictionScoring, read_na_probs, read_predictions, table
from tests.tiny_squad import answer, article, question, write_squad

CASES = {
    "pred-v1.1-bert-ensemble": "v1.1",
    "pred-v1.1-logreg": "v1.1",
    "pred-v2.0-bert-single": "v2.0",
    "pred-v2.0-nlnet": "v2.0",
    "golden/pred-v1.1-mixed-missing300": "v1.1",
    "golden/pred-v2.0-mixed": "v2.0",
    "golden/pred-v2.0-mixed on dev-v2.0-slice": "v2.0",
}
THRESHOLDS = {"official_with_na_prob_thresh_1.0": 1.0, "official_with_na_prob_thresh_0.5": 0.5}


def golden(shared) -> dict:
    return json.loads((shared / "data/squad/golden/official_scores.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_official_scores(shared, tmp_path, name):
    """Every digit, of every file of predictions."""
    case, root = golden(shared)[name], shared / "data/squad"
    scoring = PredictionScoring(root, version=CASES[name], file=f"{case['dataset']}.json")
    assert scoring(root / f"{name.split()[0]}.json.gz", tmp_path) == case["official"]


@pytest.mark.parametrize("key", THRESHOLDS)
def test_official_scores_with_na_probs(shared, tmp_path, key):
    case, folder = golden(shared)["golden/pred-v2.0-mixed"], shared / "data/squad/golden"
    options = {"version": "v2.0", "file": f"{case['dataset']}.json", "na_threshold": THRESHOLDS[key]}
    scoring = PredictionScoring(shared / "data/squad", **options)
    na_probs = folder / "na_prob-v2.0-mixed.json.gz"
    assert scoring(folder / "pred-v2.0-mixed.json.gz", tmp_path, na_probs=na_probs) == case[key]


def test_all_cases_are_tested(shared):
    known = golden(shared)
    assert {*CASES, "v2.0 missing predictions"} == known.keys()
    assert {key for case in known.values() for key in case if key.startswith("official_")} == set(THRESHOLDS)


def test_missing_predictions_as_in_the_golden_case(shared, tmp_path):
    """The official script of v2.0 ends in a KeyError; so do we, in words."""
    root = shared / "data/squad"
    with gzip.open(root / "dev-v2.0-slice.json.gz", "rt", encoding="utf-8") as file:
        data = json.load(file)["data"]
    ids = sorted(q["id"] for a in data for p in a["paragraphs"] for q in p["qas"])
    predictions = read_predictions(root / "golden/pred-v2.0-mixed.json.gz")
    path = write(tmp_path, {id: predictions[id] for id in ids[5:]})
    with pytest.raises(ValueError) as error:
        PredictionScoring(root, version="v2.0", file="dev-v2.0-slice.json")(path, tmp_path)
    assert str(error.value).startswith("5 of the 1407 questions have no prediction: 56ddde6b9a695914005b9628, ")


# --- small files ----------------------------------------------------------------------------------------------------


def write(folder, content: object, name: str = "predictions.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path):
    asked = [question("a", answer("red ball")), question("b"), question("c", answer("box"), answer("the box"))]
    write_squad(tmp_path, article(*asked))
    for record in asked:
        del record["is_impossible"]
    write_squad(tmp_path, article(asked[0], asked[2]), name="dev-v1.1.json", version="1.1")
    return tmp_path


def scoring(root, version: str = "v2.0", **options) -> PredictionScoring:
    return PredictionScoring(root, version=version, file=f"dev-{version}.json", **options)


def test_the_report_of_v1(root, caplog):
    caplog.set_level("INFO")
    path = write(root, {"a": "a red ball", "x": "of no question"})
    assert scoring(root, "v1.1")(path, root) == {"exact_match": 50.0, "f1": 50.0}
    assert "1 of the 2 predictions are of no question." in caplog.messages
    lines = (root / "scores.txt").read_text().splitlines()
    assert [line.split() for line in lines[:2]] == [["EM", "F1"], ["predictions.json", "50.00", "50.00"]]
    assert lines[-1] == "1 of the 2 questions have a prediction. The other 1 count as 0: c."
    assert "\n".join(lines) in caplog.text


def test_the_report_of_v2_with_na_probs(root):
    path = write(root, {"a": "red ball", "b": "lamp", "c": ""})
    na_probs = write(root, {"c": 0.1, "a": 0.2, "b": 0.9}, "na.json")
    metrics = scoring(root, na_threshold=0.5)(path, root, na_probs=na_probs)
    assert (metrics["exact"], metrics["NoAns_exact"], metrics["best_f1"]) == (200 / 3, 100.0, 200 / 3)
    lines = (root / "scores.txt").read_text().splitlines()
    assert lines[1].split() == ["predictions.json", "66.67", "66.67", "50.00", "50.00", "100.00"]
    assert lines[-3:] == [
        "3 of the 3 questions have a prediction.",
        "The best exact match over all thresholds is 66.67, at 0.2.",
        "The best F1 over all thresholds is 66.67, at 0.2.",
    ]


def test_the_table_has_the_papers_rows():
    """LLaMA-Adapter (arXiv 2303.16199), RoBERTa-large on SQuAD."""
    for version, row in (("v1.1", ["88.8", "94.6"]), ("v2.0", ["83.9", "87.2"])):
        lines = table({"ours": {}}, version).splitlines()
        assert lines[1].split()[:3] == ["ours", "-", "-"]
        assert lines[2] == f"published (RoBERTa-large, dev set of {version}):"
        assert lines[-1].split() == ["zero-init", "attention", *row]


def test_predictions_of_another_file(root):
    path = write(root, {"x": "red", "y": "blue"})
    with pytest.raises(ValueError) as error:
        scoring(root)(path, root)
    assert str(error.value) == (
        f"{root}/dev-v2.0.json has none of the 2 questions of {path}. Set task.data.test_file to the file that does."
    )


def test_na_probs_that_lack_a_question(root):
    path, na_probs = write(root, {"a": "", "b": "", "c": ""}), write(root, {"a": 0.1}, "na.json")
    with pytest.raises(ValueError) as error:
        scoring(root)(path, root, na_probs=na_probs)
    assert str(error.value) == f"{na_probs} has no number for 2 of the predictions: b, c."


def test_v1_has_no_na_probs(root):
    with pytest.raises(ValueError) as error:
        scoring(root, "v1.1")(write(root, {"a": ""}), root, na_probs="na.json")
    assert str(error.value) == "na_probs is na.json, but every question of v1.1 has an answer. Leave it out."


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_predictions, {}, 'is empty. Its form is {"<id>": "<text>", ...}.'),
        (read_predictions, {"a": 1}, "has 1 as the prediction of a; it must be a text."),
        (read_predictions, [], "does not hold an object."),
        (read_na_probs, {}, 'is empty. Its form is {"<id>": <number>, ...}.'),
        (read_na_probs, {"a": "1"}, "has '1' for a; it must be a number."),
        (read_na_probs, {"a": True}, "has True for a; it must be a number."),
        (read_na_probs, {"a": float("inf")}, "has inf for a; it must be a number."),
    ],
)
def test_files_that_are_none(tmp_path, read, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == f"{path} {message}"


def test_files_that_are_not_there(root):
    with pytest.raises(
        FileNotFoundError, match=r"^No file none\.json\. Set predictions to a file, \.json or \.json\.gz\.$"
    ):
        read_predictions("none.json")
    with pytest.raises(
        FileNotFoundError, match=r"^No file none\.json\. Set na_probs to a file, \.json or \.json\.gz\.$"
    ):
        read_na_probs("none.json")
    with pytest.raises(
        FileNotFoundError, match=r"Set task\.data\.root to the folder of SQuAD, or task\.data\.test_file"
    ):
        PredictionScoring(root, version="v2.0", file="none.json")(write(root, {"a": ""}), root)
