"""Files of predictions: their scores, and what a user is told of wrong ones."""

import json
import logging

import pytest

from tasks.vtab1k.lists import read_list
from tasks.vtab1k.scoring import PredictionScoring, write_predictions
from tests.tiny_vtab import COUNTS, write_vtab


@pytest.fixture
def folder(tmp_path):
    return write_vtab(tmp_path / "data")


def score(folder, predictions: object, **options) -> dict[str, float]:
    out = folder.parent.parent
    path = out / "predictions.json"
    path.write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
    return PredictionScoring(folder.parent, **({"data_set": "tiny", "classes": 4} | options))(path, out)


def names(folder) -> list[str]:
    return [picture.name for picture in read_list(folder / "test.txt", classes=4)]


def test_a_whole_list(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        metrics = score(folder, dict.fromkeys(names(folder), 0), counts=COUNTS)
    assert metrics == {"test/accuracy": pytest.approx(100 / 3), "test/scored": 6.0}  # labels 0 1 2 3 0 1
    text = "predictions.json: 33.33 per cent of 6 pictures are right."
    assert caplog.messages == [f"\n{text}"]
    assert (tmp_path / "scores.txt").read_text() == f"{text}\n"


def test_no_pictures_are_needed(folder):
    for path in (folder / "images/test").iterdir():
        path.unlink()
    assert score(folder, dict.fromkeys(names(folder), 0))["test/scored"] == 6


def test_a_part_of_the_list(folder, tmp_path):
    assert score(folder, {names(folder)[1]: 1}) == {"test/accuracy": 100.0, "test/scored": 1.0}
    assert (tmp_path / "scores.txt").read_text() == (
        "predictions.json: 100.00 per cent of 1 pictures are right. The other 5 of the list have no prediction and are "
        "left out, not counted as wrong.\n"
    )


def test_what_an_evaluation_writes_is_read(folder, tmp_path):
    pictures = read_list(folder / "test.txt", classes=4)
    write_predictions(tmp_path / "p.json", pictures, [picture.label for picture in pictures])
    assert score(folder, (tmp_path / "p.json").read_text())["test/accuracy"] == 100


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). Is it cut off?"),
        ({}, 'has no predictions. The form is {"images/test/<name>.jpg": <label>, ...}.'),
        ([1], 'has no predictions. The form is {"images/test/<name>.jpg": <label>, ...}.'),
        ({"a.jpg": "1"}, "predicts '1' for a.jpg; it must be a whole number of 0 to 3."),
        ({"a.jpg": 4}, "predicts 4 for a.jpg; it must be a whole number of 0 to 3."),
        ({"a.jpg": True}, "predicts True for a.jpg; it must be a whole number of 0 to 3."),
        (
            {"a.jpg": 1},
            "has predictions of 1 pictures that are not in {list}: a.jpg. Set task.data.data_set to the one that they "
            "are of.",
        ),
    ],
)  # fmt: skip
def test_wrong_files(folder, tmp_path, predictions, message):
    with pytest.raises(ValueError) as error:
        score(folder, predictions)
    message = message.replace("{list}", str(folder / "test.txt"))
    assert str(error.value) == f"{tmp_path / 'predictions.json'} {message}"


def test_no_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        PredictionScoring(folder.parent, data_set="tiny", classes=4)(tmp_path / "none.json", tmp_path)
    assert str(error.value) == f"No predictions {tmp_path / 'none.json'}. Set predictions to a file."


def test_a_list_of_another_length(folder):
    with pytest.raises(ValueError, match="lists 6 pictures, but 10000 are expected"):
        score(folder, dict.fromkeys(names(folder), 0), counts={"test": 10000})
