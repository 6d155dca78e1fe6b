"""Result files scored without a model: the official numbers, what was scored, and files that are wrong."""

import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("pycocoevalcap", reason="needs the extra `captions`")

from tasks.coco_captions import scorers
from tasks.coco_captions.scoring import PredictionScoring, read_results, report, table, write_results
from tests.tasks.test_coco_captions_scorers import needs_java
from tests.tiny_run import call

WARNING = (
    "CIDEr weighs a word by how many of the scored images have it in their captions: on a part of a split it is not "
    "comparable with that of the whole."
)


class QuickMeteor:
    """METEOR takes seconds to start, and its numbers have a test of their own."""

    def __init__(self, **programs) -> None:
        pass

    def score(self, candidates, references):
        return 0.5, [0.5] * len(candidates)

    def close(self) -> None:
        pass


@pytest.fixture
def quick_meteor(monkeypatch):
    monkeypatch.setattr(scorers, "Meteor", QuickMeteor)


@pytest.fixture
def root(tmp_path) -> Path:
    """Four images in the official layout."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    captions = {1: ["A red kite.", "a kite"], 2: ["two bowls of soup"], 3: ["a dog"], 4: ["a white cat"]}
    annotations = {
        "images": [{"id": id, "file_name": f"{id}.jpg"} for id in captions],
        "annotations": [{"image_id": id, "caption": text} for id, texts in captions.items() for text in texts],
    }
    (folder / "annotations/captions_val2014.json").write_text(json.dumps(annotations))
    return folder


def results(tmp_path, captions: dict[int, str]) -> Path:
    write_results(tmp_path / "results.json", captions)
    return tmp_path / "results.json"


@needs_java
def test_a_whole_split(tmp_path, root, quick_meteor, caplog):
    path = results(tmp_path, {1: "a red kite", 2: "two bowls of soup", 4: "a white cat", 3: ""})
    with caplog.at_level(logging.INFO, "tasks.coco_captions"):
        metrics = PredictionScoring(root)(path, tmp_path)
    names = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "scored", "empty"]
    assert list(metrics) == [f"test/{name}" for name in names]
    assert metrics["test/ROUGE-L"] == 0.75  # three are their reference, one is empty
    assert (metrics["test/METEOR"], metrics["test/scored"], metrics["test/empty"]) == (0.5, 4.0, 1.0)
    text = (tmp_path / "scores.txt").read_text()
    assert "4 of the 4 images of test were scored.\n1 of the captions are empty; they count, as 0.\n" in text
    assert text.strip() in caplog.text
    assert WARNING not in caplog.text


@needs_java
def test_a_part_of_a_split(tmp_path, root, quick_meteor, caplog):
    (root / "test.txt").write_text("1\n2\n77\n")
    path = results(tmp_path, {2: "soup", 77: "a car"})
    metrics = PredictionScoring(root, split_file="test.txt", split="val")(path, tmp_path)
    assert metrics["val/scored"] == 1.0
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        "1 captions are of images that the annotations lack.",
        f"1 of the 3 images of val were scored. {WARNING}",
    ]
    assert (
        f"1 of the 3 images of val were scored. The others are left out, not counted as 0. {WARNING}\n"
        in (tmp_path / "scores.txt").read_text()
    )


@needs_java
def test_without_its_split_file_the_annotations_are_the_split(tmp_path, root, quick_meteor, caplog):
    metrics = PredictionScoring(root, split_file="dataset_coco.json")(results(tmp_path, {2: "soup"}), tmp_path)
    assert metrics["test/scored"] == 1.0
    assert caplog.records[0].getMessage() == (
        f"No split file {root}/dataset_coco.json: all 4 images of the annotations are taken for the split."
    )


@needs_java
def test_the_official_file_from_the_command_line(tmp_path, shared, quick_meteor):
    coco = shared / "data/coco"
    result = call(
        "evaluate.py",
        "task=coco_captions",
        f"predictions={coco}/golden/results_karpathytest_593_perturbed.json.gz",
        f"task.data.root={coco}",
        "task.data.annotations=captions_val2017.json",
        "task.data.split_file=karpathy_test_images.txt",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert result.status == 0, result.output
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    cases = json.loads((coco / "golden/official_scores.json").read_text())["cases"]
    official = cases["results_karpathytest_593_perturbed"]["official"]
    assert metrics["test/CIDEr"] == pytest.approx(official["CIDEr"], rel=1e-9)
    assert metrics["test/BLEU-4"] == pytest.approx(official["Bleu_4"], rel=1e-9)
    assert metrics["test/ROUGE-L"] == pytest.approx(official["ROUGE_L"], rel=1e-9)
    assert metrics["test/scored"] == 593
    assert "593 of the 5,000 images of test were scored." in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "{path} has no captions. {form}"),
        ({"1": "a"}, "{path} has no captions. {form}"),
        (["a"], "{path} has 'a' as its entry 0. {form}"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": "2", "caption": "b"}],
         "{path} has {{'image_id': '2', 'caption': 'b'}} as its entry 1. {form}"),
        ([{"image_id": 1}], "{path} has {{'image_id': 1}} as its entry 0. {form}"),
        ([{"image_id": True, "caption": ""}], "{path} has {{'image_id': True, 'caption': ''}} as its entry 0. {form}"),
        ([{"image_id": id, "caption": "a"} for id in (1, 2, 1, 1, 2)],
         "{path} has more than one caption of 2 images: 1, 2. Keep one of each."),
        ([{"image_id": id, "caption": "a"} for id in (1, *range(70, 77))],
         "{path} has captions of 7 images that are not in test: 70, 71, 72, 73, 74 and 2 more. Set "
         "task.data.annotations (and task.data.split_file) to the files of the images that they are of."),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, root, content, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        PredictionScoring(root)(path, tmp_path)
    form = 'COCO\'s form is [{"image_id": 1, "caption": "..."}, ...].'
    assert str(error.value) == message.format(path=path, form=form)


def test_annotations_without_any_of_the_images(tmp_path, root):
    (root / "test.txt").write_text("77\n")
    path = results(tmp_path, {77: "a car"})
    with pytest.raises(ValueError) as error:
        PredictionScoring(root, split_file="test.txt")(path, tmp_path)
    assert str(error.value) == (
        f"{root}/annotations/captions_val2014.json has captions of none of the 1 images of {path}. Set "
        "task.data.annotations to the file that has them."
    )


def test_files_that_are_not_there(tmp_path, root):
    with pytest.raises(FileNotFoundError) as error:
        PredictionScoring(root)(tmp_path / "results.json", tmp_path)
    assert str(error.value) == f"No file {tmp_path}/results.json."
    with pytest.raises(FileNotFoundError, match="Set task.data.annotations to the file, relative to task.data.root"):
        PredictionScoring(tmp_path)(results(tmp_path, {1: "a"}), tmp_path)


def test_results_are_read_as_written(tmp_path):
    captions = {30: "a café", 2: "", 1: 'a "dog"'}
    path = results(tmp_path, captions)
    assert json.loads(path.read_text())[0] == {"image_id": 30, "caption": "a café"}
    assert list(read_results(path).items()) == list(captions.items())


def test_the_official_results_file(shared):
    assert len(read_results(shared / "data/coco/captions_val2014_fakecap_results.json.gz")) == 1000


def test_the_table_is_times_100_beside_the_papers_row():
    lines = table({"ours.json": {"BLEU-4": 0.36249, "CIDEr": 1.2216}}).splitlines()
    assert lines[0].split() == ["times", "100", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    assert lines[1].split() == ["ours.json", "-", "-", "-", "36.25", "-", "-", "122.16"]
    assert lines[2] == "published (Karpathy's test split, 5,000 images):"
    assert lines[-1].split() == ["LLaMA-Adapter", "-", "-", "-", "36.2", "-", "-", "122.2"]
    assert table({"x": {"SPICE": 0.2}}).splitlines()[1].split()[-1] == "20.00"


def test_a_report_of_two_rows():
    scores = scorers.CaptionScores({"CIDEr": 1.0}, {})
    text = report({"adapted": scores, "frozen": scores}, {1: "a", 2: "b"}, whole=2, split="test")
    assert text.endswith("\n\n2 of the 2 images of test were scored.")
