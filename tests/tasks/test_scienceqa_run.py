"""ScienceQA end to end: training with and without images, evaluation, prediction files, and what is refused before."""

import json
import re
import subprocess

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llama_adapter.images import main as store_features
from tasks.scienceqa.metric import CATEGORIES
from tests.test_vision import SIZE, tiny_tower
from tests.tiny_run import call, command, make_tokenizer, make_world


def make_problem(number: int, split: str) -> dict:
    return {
        "question": f"What is the colour of ball {number}?",
        "choices": ["red", "blue", "green"][: 2 + number % 2],
        "answer": number % 2,
        "hint": "It is a lamp & a <ball>." if number % 3 == 0 else "",
        "image": "image.png" if number % 2 else None,
        "task": "closed choice",
        "grade": f"grade{1 + number % 12}",
        "subject": ("natural science", "social science", "language science")[number % 3],
        "topic": "physics",
        "category": "Colours",
        "skill": "See",
        "lecture": "A lamp is red.",
        "solution": "",
        "split": split,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Command-line arguments of a run of seconds."""
    folder = tmp_path_factory.mktemp("scienceqa")
    model = make_world(folder / "llama").model
    make_tokenizer(model)
    tower = folder / "clip"
    tiny_tower().save_pretrained(tower)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        tower
    )
    problems, splits = {}, {}
    for split, start, count in (("train", 0, 14), ("val", 100, 4), ("test", 200, 9)):
        numbers = range(start, start + count)
        problems |= {str(number): make_problem(number, split) for number in numbers}
        splits[split] = list(map(str, numbers))
        for number in numbers:
            if problems[str(number)]["image"]:
                path = folder / f"data/images/{split}/{number}/image.png"
                path.parent.mkdir(parents=True)
                Image.new(("RGB", "L", "P", "RGBA")[number // 2 % 4], (20, 12)).save(path)
    (folder / "data/problems.json").write_text(json.dumps(problems))
    (folder / "data/pid_splits.json").write_text(json.dumps(splits))
    values = {
        "task": "scienceqa", "trainer": "cpu", "model.path": model, "model.dtype": "float32", "model.vision.path": tower,
        "model.vision.layers": "[1,3]", "model.vision.projection_width": 5, "task.data.root": folder / "data",
        "task.data.max_length": 120, "task.evaluation.max_new_tokens": 4, "adapter.prompt_length": 3,
        "adapter.prompt_layers": 2, "data.global_batch_size": 4, "data.micro_batch_size": 3, "trainer.max_epochs": 2,
        "optimizer.base_learning_rate": 1.0, "optimizer.warmup_epochs": 0.5,
    }  # fmt: skip
    return folder, [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = call("train.py", *world[1], f"hydra.run.dir={folder}")
    assert result.status == 0, result.output
    return folder


def test_a_run_with_images(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    shown = {f"test/{name}" for name in CATEGORIES}
    assert shown <= metrics.keys()
    assert metrics["test/acc_needs_image"] == metrics["test/acc_has_image"]
    assert {"test/likelihood_accuracy", "test/frozen_accuracy", "test/unreadable"} <= metrics.keys()
    assert metrics["test/scored"] == 9
    page = (finished / "answers.html").read_text()
    assert page.count("<article") == 9
    assert "a lamp &amp; a &lt;ball&gt;." in page
    assert page.count('src="data:image/png;base64,') == 4
    assert not re.search(r"(src|href)=.(http|/|file)", page), "self-contained"


def test_its_predictions_are_scored_again_without_a_model(world, finished, tmp_path, no_weights):
    arguments = [f"predictions={finished / 'predictions.json'}", f"task.data.root={world[0] / 'data'}"]
    result = call("evaluate.py", "task=scienceqa", *arguments, f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    metrics, trained = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, finished))
    assert all(trained[name] == value for name, value in metrics.items())


def test_the_adapter_is_evaluated_again(world, finished, tmp_path):
    result = call("evaluate.py", f"adapter_path={finished}", f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    again, trained = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, finished))
    assert again["test/loss"] == pytest.approx(trained["test/loss"], rel=1e-6)
    for name in ("generations.jsonl", "predictions.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["cpu_2", "cpu_2_ddp"])
def test_two_devices_answer_as_one(world, finished, tmp_path, trainer):
    """Nine problems on two processes: each is answered and counted once, with the model in shards too."""
    overrides = [f"adapter_path={finished}", f"trainer={trainer}", f"hydra.run.dir={tmp_path}"]
    arguments, environment = command("evaluate.py", *overrides)
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    again, trained = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, finished))
    assert again["test/loss"] == pytest.approx(trained["test/loss"], rel=1e-5)
    assert {name: trained[name] for name in trained if "acc" in name} == {n: again[n] for n in trained if "acc" in n}
    for name in ("generations.jsonl", "predictions.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_stored_features_train_the_same(world, finished, tmp_path):
    folder, arguments = world
    command = [
        "--root",
        folder / "data",
        "--tower",
        folder / "clip",
        "--layers",
        "1,3",
        "--output",
        tmp_path / "features",
    ]
    store_features([*map(str, command), "--device", "cpu"])
    result = call("train.py", *arguments, f"task.features={tmp_path / 'features'}", f"hydra.run.dir={tmp_path / 'run'}")
    assert result.status == 0, result.output
    one, other = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "run", finished))
    assert one["test/loss"] == pytest.approx(other["test/loss"], rel=1e-4)


def test_text_alone(world, tmp_path):
    result = call("train.py", *world[1], "task.data.images=false", "trainer.max_steps=2", f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    assert "image_prompt" not in (tmp_path / "adapter.safetensors").read_bytes().decode(errors="ignore")


def test_padded_rows_train_the_same(world, finished, tmp_path):
    result = call("train.py", *world[1], "data.batching=padded", f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, finished))
    assert one["test/loss"] == pytest.approx(other["test/loss"], rel=1e-4)


def test_what_is_refused_before_any_weight_is_read(world, tmp_path, no_weights):
    def error(*changed: str) -> str:
        return call("train.py", *world[1], *changed, f"hydra.run.dir={tmp_path}").error

    assert error("model.vision.path=").startswith("task=scienceqa has images, but model=llama_7b_clip has no vision")
    assert error("model.vision.path=/nowhere").startswith("No vision tower at /nowhere. Set model.vision.path=<folder>")
    assert error("task.data.format=QCX-A").startswith("task.data.format is 'QCX-A'. Join one of QCM")
    assert error("task.data.root=/nowhere").startswith("No file /nowhere/pid_splits.json. Set task.data.root to the")
    assert error("+model.vision.layerz=3") == "Unknown key 'model.vision.layerz'. Did you mean 'layers'?"
    first = world[0] / "data/images/train/1/image.png"
    away = first.rename(first.with_suffix(".away"))
    try:
        assert error().startswith(f"1 of 13 images are missing: {first}. Set task.data.root")
    finally:
        away.rename(first)


@pytest.mark.parametrize(("key", "value"), [("adapter_path", "run"), ("instructions", "questions.jsonl")])
def test_predictions_need_no_model(world, key, value, tmp_path):
    result = call("evaluate.py", "task=scienceqa", "predictions=p.json", f"{key}={value}", f"hydra.run.dir={tmp_path}")
    assert result.error == f"predictions are scored without a model, but {key} is {value!r}. Leave one out."


def test_no_file_of_instructions(world, finished, tmp_path, no_weights):
    arguments = [f"adapter_path={finished}", "instructions=questions.jsonl", f"hydra.run.dir={tmp_path}"]
    assert call("evaluate.py", *arguments).error.startswith("task=scienceqa answers no file of instructions.")


def test_a_task_without_a_form_of_predictions(tmp_path):
    result = call("evaluate.py", "task=alpaca", "predictions=p.json", f"hydra.run.dir={tmp_path}")
    assert result.error == "task=alpaca has no scoring of prediction files: its node has no 'scoring'."


def test_gates_open(finished):
    from safetensors.torch import load_file

    tensors = load_file(finished / "adapter.safetensors")
    assert any(torch.any(tensor != 0) for name, tensor in tensors.items() if name.endswith("gate"))
    assert "image_prompt.projection.1.weight" in tensors


def test_a_comparison_is_trained_once_and_reported(world, tmp_path):
    comparison = (
        "+task.compare.without_images={changed: {task.data.images: false}, metrics: {test/accuracy: test/text_only}}"
    )
    arguments = [*world[1], comparison, "trainer.max_steps=2"]
    result = call("train.py", *arguments, f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    whole, other = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path, tmp_path / "without_images"))
    assert whole["test/text_only"] == other["test/accuracy"]
    assert "image_prompt" not in (tmp_path / "without_images/adapter.safetensors").read_bytes().decode(errors="ignore")
    # A run that was stopped after its comparison does not train it again.
    (tmp_path / "metrics.json").unlink()
    before = (tmp_path / "without_images/adapter.safetensors").stat().st_mtime_ns
    assert call("train.py", f"resume={tmp_path}").status == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["test/text_only"] == other["test/accuracy"]
    assert (tmp_path / "without_images/adapter.safetensors").stat().st_mtime_ns == before
