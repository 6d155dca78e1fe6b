"""Files of predictions: official and published ones, parts of a split, and what is refused."""

import json

import pytest

from tasks.scienceqa.answers import UNREADABLE
from tasks.scienceqa.problems import read_problems
from tasks.scienceqa.scoring import PredictionScoring, read_predictions, write_predictions
from tests.tiny_scienceqa import REAL, read_gzipped, record, write_scienceqa


def write(folder, results: object):
    path = folder / "predictions.json"
    path.write_text(json.dumps({"results": results, "acc": 99.0}))  # the official script writes more than results
    return path


def test_the_published_file(shared, tmp_path, caplog):
    """GPT-3's, of which the records at hand are a part: its accuracy there, counted from the raw files."""
    root = shared / "data/scienceqa"
    path = root / "gpt3_QCM-ALE_test_results.json.gz"
    results, problems = read_gzipped(path)["results"], read_gzipped(root / f"{REAL}.gz")
    part = [pid for pid in results if pid in problems]
    right = sum(results[pid] == problems[pid]["answer"] for pid in part)
    metrics = PredictionScoring(root, problems_file=REAL)(path, tmp_path)
    assert metrics["test/accuracy"] == pytest.approx(100 * right / len(part))
    assert (metrics["test/scored"], len(part), len(results)) == (361, 361, 4241)
    assert "3880 of the 4241 predictions are of problems that the problems file lacks." in caplog.messages
    text = (tmp_path / "scores.txt").read_text()
    assert text.splitlines()[1].split()[:2] == [path.name, "74.52"]  # as the official script printed it
    assert text.endswith(
        "361 of the 4,241 problems of test were scored. The other 3,880 are left out, not counted as wrong.\n"
    )


def test_a_part_of_a_split(tmp_path):
    root = write_scienceqa(tmp_path)
    metrics = PredictionScoring(root, split="minival")(write(tmp_path, {"1": 0, "3": 1}), tmp_path)
    assert (metrics["minival/accuracy"], metrics["minival/scored"], metrics["minival/unreadable"]) == (50, 2, 0)
    assert (tmp_path / "scores.txt").read_text().splitlines()[-1] == (
        "2 of the 3 problems of minival were scored. The other 1 are left out, not counted as wrong."
    )


def test_a_whole_split_with_indices_that_are_no_option(tmp_path):
    root = write_scienceqa(tmp_path)
    metrics = PredictionScoring(root)(write(tmp_path, {"1": 10**30, "2": -7, "3": 0}), tmp_path)
    assert (metrics["test/accuracy"], metrics["test/unreadable"]) == (pytest.approx(100 / 3), 2)
    assert (tmp_path / "scores.txt").read_text().splitlines()[-2:] == [
        "3 of the 3 problems of test were scored.",
        "2 of the predictions are none of their problem's options; they count as wrong.",
    ]


def test_predictions_of_other_problems(tmp_path):
    root = write_scienceqa(tmp_path)
    path = write(tmp_path, {"1": 0} | {str(pid): 1 for pid in range(71, 78)})
    with pytest.raises(ValueError) as error:
        PredictionScoring(root)(path, tmp_path)
    assert str(error.value) == (
        f"{path} has predictions of 7 problems that are not in test: 71, 72, 73, 74, 75 and 2 more. Set "
        "task.data.test_split to the split that they are of."
    )


def test_predictions_of_problems_that_the_problems_file_lacks(tmp_path):
    root = write_scienceqa(tmp_path, {"1": record()}, {"test": ["1", "2"]})
    path = write(tmp_path, {"2": 0})
    with pytest.raises(ValueError) as error:
        PredictionScoring(root)(path, tmp_path)
    assert str(error.value) == (
        f"{root}/problems.json has none of the 1 problems of {path}. Set task.data.problems_file to the file that does."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"results": {}}', r"has no predictions\. ScienceQA's form is \{\"results\": \{pid: index, \.\.\.\}\}\."),
        ('{"1": 0}', r"has no predictions\. ScienceQA's form is"),
        ("[1]", r"does not hold an object\."),
        ('{"results": {"1": "A"}}', r"has 'A' as the prediction of problem 1; it must be a whole number\."),
        ('{"results": {"1": true}}', r"has True as the prediction of problem 1; it must be a whole number\."),
        ('{"results": {"1": 0', r"is not JSON: .* Is it cut off\?"),
        ('{"results": {"1": 0, "1": 1}}', r"has 1 more than once in one object\."),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path} {message}"):
        read_predictions(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_predictions(tmp_path / "none.json")
    assert str(error.value) == f"No predictions {tmp_path}/none.json. Set predictions to a file, .json or .json.gz."


def test_written_predictions_are_read_back(tmp_path):
    problems = read_problems(write_scienceqa(tmp_path), "test")
    write_predictions(tmp_path / "predictions.json", problems, [0, 1, UNREADABLE])
    assert read_predictions(tmp_path / "predictions.json") == {"1": 0, "2": 1, "3": UNREADABLE}
