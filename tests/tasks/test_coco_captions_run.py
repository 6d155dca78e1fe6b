"""COCO captions end to end: training with images, captions of the test split, their files, and the page."""

import json
import re

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

pytest.importorskip("pycocoevalcap", reason="needs the extra `captions`")

from tasks.coco_captions import evaluation, scorers
from tests.tasks.test_coco_captions_data import annotations
from tests.tasks.test_coco_captions_scorers import java_found
from tests.tasks.test_coco_captions_scoring import QuickMeteor
from tests.test_vision import SIZE, tiny_tower
from tests.tiny_run import call, make_world

pytestmark = pytest.mark.skipif(not java_found, reason="needs Java")


@pytest.fixture(scope="module", autouse=True)
def _quick_meteor():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorers, "Meteor", QuickMeteor)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of the data, and command-line arguments of a run of seconds."""
    folder = tmp_path_factory.mktemp("coco")
    model = make_world(folder / "llama").model
    tower = folder / "clip"
    tiny_tower().save_pretrained(tower)
    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessorPil(**size).save_pretrained(tower)
    root = folder / "data"
    (root / "annotations").mkdir(parents=True)
    for part, ids in (("train2014", range(6)), ("val2014", range(6, 13))):
        (root / f"annotations/captions_{part}.json").write_text(json.dumps(annotations(ids)))
        (root / part).mkdir()
        for id in ids:
            Image.new(("RGB", "L", "P", "RGBA")[id % 4], (20, 12)).save(root / part / f"{id}.png")
    splits = dict.fromkeys(range(6), "train") | {6: "restval", 7: "val", 8: "val"} | dict.fromkeys(range(9, 13), "test")
    (root / "dataset_coco.json").write_text(
        json.dumps({"images": [{"cocoid": id, "split": split} for id, split in splits.items()]})
    )
    values = {
        "task": "coco_captions", "trainer": "cpu", "model.path": model, "model.dtype": "float32",
        "model.vision.path": tower, "model.vision.layers": "[1,3]", "model.vision.projection_width": 5,
        "task.data.root": root, "task.data.template": "'{instruction}:'", "task.evaluation.max_new_tokens": 4,
        "adapter.prompt_length": 3, "adapter.prompt_layers": 2, "data.global_batch_size": 4, "data.micro_batch_size": 3,
        "trainer.max_epochs": 2, "optimizer.base_learning_rate": 1.0, "optimizer.warmup_epochs": 0.5,
    }  # fmt: skip
    return root, [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = call("train.py", *world[1], f"hydra.run.dir={folder}")
    assert result.status == 0, result.output
    return folder


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run(finished):
    metrics = metrics_of(finished)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"):
        assert {f"test/{name}", f"test/frozen_{name}"} <= metrics.keys()
    assert {"test/CIDEr_without_image", "test/loss", "test/empty"} <= metrics.keys()
    for name in ("captions", "captions_frozen", "captions_without_image"):
        results = json.loads((finished / f"{name}.json").read_text())
        assert [result["image_id"] for result in results] == [9, 10, 11, 12]
    assert len({result["caption"] for result in results}) == 1, "without an image, every caption is the same"
    assert "4 of the 4 images of test were scored." in (finished / "scores.txt").read_text()


def test_the_page(finished):
    page = (finished / "captions.html").read_text()
    assert page.count("<article") == page.count('src="data:image/png;base64,') == 4
    assert "the ball is 11" in page
    assert not re.search(r"(src|href)=.(http|/|file)", page), "self-contained"


def test_its_result_file_is_scored_again_without_a_model(world, finished, tmp_path, no_weights):
    arguments = [f"predictions={finished / 'captions.json'}", f"task.data.root={world[0]}"]
    result = call("evaluate.py", "task=coco_captions", *arguments, f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    again, trained = metrics_of(tmp_path), metrics_of(finished)
    assert again.pop("test/scored") == 4
    assert len(again) == 8
    assert again == {name: trained[name] for name in again}


def test_beams_and_the_text_alone(world, tmp_path):
    """An adapter without images says one thing for all; by beams as by greedy decoding."""
    changed = ["task.data.images=false", "trainer.max_steps=2", "task.evaluation.num_beams=2"]
    result = call("train.py", *world[1], *changed, f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    assert len({row["caption"] for row in json.loads((tmp_path / "captions.json").read_text())}) == 1
    assert "test/CIDEr" in metrics_of(tmp_path)
    assert "test/CIDEr_without_image" not in metrics_of(tmp_path)


def test_each_image_is_captioned_with_its_own_context(world, finished, tmp_path, monkeypatch):
    """The images' contexts reach `generate` in the order of the images, and only where they are seen."""
    seen = []

    def generate(model, tokenizer, prompts, *, context, **settings):
        seen.append(context)
        return [f" a {number}\nb" for number, _ in enumerate(prompts)]

    monkeypatch.setattr(evaluation, "generate", generate)
    result = call("evaluate.py", f"adapter_path={finished}", f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    assert [None if context is None else tuple(context.shape) for context in seen] == [(4, 32), None, None]
    assert len({tuple(row) for row in seen[0].tolist()}) > 1
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert [row["caption"] for row in captions] == ["a 0 b", "a 1 b", "a 2 b", "a 3 b"]


@pytest.fixture
def no_java(monkeypatch):
    def find_java():
        raise FileNotFoundError("Java is not found.")

    monkeypatch.setattr(scorers, "find_java", find_java)


def test_no_java_is_said_before_any_weight_is_read(world, tmp_path, no_java, no_weights):
    assert call("train.py", *world[1], f"hydra.run.dir={tmp_path}").error == "Java is not found."


def test_captions_can_be_written_where_there_is_no_java(finished, tmp_path, no_java):
    arguments = [f"adapter_path={finished}", "task.evaluation.score=false", f"hydra.run.dir={tmp_path}"]
    result = call("evaluate.py", *arguments)
    assert result.status == 0, result.output
    assert (tmp_path / "captions.json").read_bytes() == (finished / "captions.json").read_bytes()
    assert not [name for name in metrics_of(tmp_path) if "CIDEr" in name]
    assert f"The captions are in {tmp_path}; score them with evaluate.py predictions=<file>." in result.output


def test_what_is_refused_before_any_weight_is_read(world, tmp_path, no_weights):
    def error(*changed: str) -> str:
        return call("train.py", *world[1], *changed, f"hydra.run.dir={tmp_path}").error

    assert error("task.data.split_file=gone.json") == (
        f"No file {world[0]}/gone.json. Set task.data.split_file to the file, relative to task.data.root."
    )
    assert error("task.data.image_folder=gone").startswith("13 of 13 images are missing: ")
    assert error("task.data.max_length=5").startswith("The prompt has ")
