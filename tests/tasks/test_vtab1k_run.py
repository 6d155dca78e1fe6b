"""VTAB-1k through both scripts: a data set in the official layout and counts, from the pictures to the table."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tasks.vtab1k.data_sets import TRAINING_COUNTS
from tests.tiny_run import Result, call
from tests.tiny_vtab import tiny_vit, write_vtab

QUICK = [
    "adapter.prompt_layers=2",
    "adapter.prompt_length=3",
    "trainer.max_epochs=2",
    "optimizer.warmup_epochs=0.5",
    "optimizer.base_learning_rate=0.3",
    "data.num_workers=0",
    "callbacks.progress.refresh_rate=0",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model's folder, and two data sets: KITTI with its official counts, and a EuroSAT of a few test pictures."""
    folder = tmp_path_factory.mktemp("world")
    tiny_vit().save_pretrained(folder / "vit")
    write_vtab(folder / "data", "kitti", classes=4, counts=TRAINING_COUNTS | {"test": 711})
    write_vtab(folder / "data", "eurosat", classes=10, counts=TRAINING_COUNTS | {"test": 30})
    return folder


def train(world: Path, *arguments: str) -> Result:
    return call("train.py", f"model.path={world / 'vit'}", f"task.data.root={world / 'data'}", *QUICK, *arguments)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "kitti"
    result = train(world, "task=vtab1k/kitti", f"hydra.run.dir={folder}")
    assert result.status == 0, result.output
    return folder


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run(finished):
    values = metrics(finished)
    assert values["test/scored"] == 711
    assert values["test/accuracy"] > 45  # four greys; by chance it would be 25
    assert not any(name.startswith("val/") for name in values)  # the final protocol has no validation
    assert len(json.loads((finished / "predictions.json").read_text())) == 711
    assert (finished / "predictions.html").is_file()


def test_its_adapter_gives_the_same_predictions(finished, tmp_path):
    result = call("evaluate.py", f"adapter_path={finished}", f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    assert metrics(tmp_path)["test/accuracy"] == metrics(finished)["test/accuracy"]
    assert (tmp_path / "predictions.json").read_bytes() == (finished / "predictions.json").read_bytes()


def test_its_predictions_are_scored_without_a_model(world, finished, tmp_path):
    root = f"task.data.root={world / 'data'}"
    predictions = f"predictions={finished / 'predictions.json'}"
    result = call("evaluate.py", "task=vtab1k/kitti", predictions, root, f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    assert metrics(tmp_path)["test/accuracy"] == metrics(finished)["test/accuracy"]


def test_settings_are_chosen_on_the_validation_part(world, tmp_path):
    result = train(world, "task=vtab1k/kitti", "task.data.protocol=choose", f"hydra.run.dir={tmp_path}")
    assert result.status == 0, result.output
    values = metrics(tmp_path)
    assert values["val/scored"] == 200
    assert {"val/accuracy", "val/loss"} <= set(values)
    assert OmegaConf.load(tmp_path / "config.yaml").objective.metric == "val/accuracy"
    assert not any(name.startswith("test/") for name in values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["task=vtab1k/eurosat"],
            "{data}/eurosat/test.txt lists 30 pictures, but 5400 are expected. Get the whole list, or set "
            "task.data.counts.test to 30 (null: any number) where that is right.",
        ),
        (["task=vtab1k/dtd"], "No data set {data}/dtd. Set task.data.root to the folder that holds dtd/."),
        (
            ["task=vtab1k/kitti", "task.data.protocol=chose"],
            "objective.metric: Interpolation key 'task.protocols.chose' not found",
        ),
        (["task=vtab1k/custom"], "task.data.data_set has no value. Give it: task.data.data_set=<value>."),
        (
            ["task=vtab1k/custom", "task.data.data_set=eurosat"],
            "{data}/eurosat/train800.txt, line 3: the label is '2', but this data set has 2 classes: labels are 0 to 1. "
            "Correct the line, or set task.data.classes.",
        ),
    ],
)
def test_mistakes(world, tmp_path, arguments, message):
    result = train(world, *arguments, f"hydra.run.dir={tmp_path}")
    assert (result.status, result.error) == (1, message.replace("{data}", str(world / "data")))


def test_a_sweep_and_its_table(world, tmp_path):
    tasks = "task=vtab1k/kitti,vtab1k/eurosat,vtab1k/dtd"
    short = ["task.data.counts.test=null", "trainer.max_epochs=1"]
    arguments = ["sweep=vtab1k", tasks, *short, f"hydra.sweep.dir={tmp_path}"]
    first = train(world, *arguments)
    assert (first.status, first.error) == (
        1,
        f"No data set {world / 'data/dtd'}. Set task.data.root to the folder that holds dtd/.",
    )
    accuracies = [metrics(tmp_path / f"vtab1k_{name}")["test/accuracy"] for name in ("kitti", "eurosat")]
    table = (tmp_path / "vtab1k.md").read_text()
    for name, accuracy in zip(("KITTI", "EuroSAT"), accuracies, strict=True):
        assert f"{accuracy:.2f}" in next(line for line in table.splitlines() if name in line)
    assert table.rstrip() in first.output
    again = train(world, *arguments)
    assert again.output.count("has finished before.") == 2
    assert (tmp_path / "vtab1k.md").read_text() == table
    folder = tmp_path / "evaluation"
    result = call("evaluate.py", f"adapter_path={tmp_path / 'vtab1k_kitti'}", f"hydra.run.dir={folder}")
    assert result.status == 0, result.output  # one evaluation: the job's own command line asked for a sweep
    assert metrics(folder)["test/accuracy"] == accuracies[0]
