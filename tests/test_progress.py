"""progress.json: when it is written, and what it says."""

import json
from types import SimpleNamespace

import pytest

from llama_adapter.progress import ProgressFile


def trainer(**values) -> SimpleNamespace:
    given = {"is_global_zero": True, "global_step": 3, "estimated_stepping_batches": 12, "callback_metrics": {}}
    return SimpleNamespace(**(given | {"state": SimpleNamespace(fn="fit")} | values))


def test_steps_and_losses(tmp_path):
    metrics = {"train/loss": 1.5, "val/loss": 2.0, "val/perplexity": 7.0}
    ProgressFile(str(tmp_path)).on_train_batch_end(trainer(callback_metrics=metrics), None)
    assert json.loads((tmp_path / "progress.json").read_text()) == {
        "step": 3, "steps": 12, "train/loss": 1.5, "val/loss": 2.0,
    }  # fmt: skip


def test_not_more_often_than_asked(tmp_path):
    progress, path = ProgressFile(str(tmp_path), every_seconds=1000), tmp_path / "progress.json"
    progress.on_train_batch_end(trainer(), None)
    progress.on_train_batch_end(trainer(global_step=4), None)
    assert json.loads(path.read_text())["step"] == 3
    progress.on_validation_end(trainer(global_step=5), None)
    assert json.loads(path.read_text())["step"] == 5
    progress.on_validation_end(trainer(global_step=6, state=SimpleNamespace(fn="validate")), None)
    assert json.loads(path.read_text())["step"] == 5
    progress.on_train_end(trainer(global_step=7), None)
    assert json.loads(path.read_text())["step"] == 7


def test_one_device_writes(tmp_path):
    ProgressFile(str(tmp_path)).on_train_end(trainer(is_global_zero=False), None)
    assert not (tmp_path / "progress.json").exists()


def test_seconds_below_zero():
    with pytest.raises(ValueError) as error:
        ProgressFile("x", every_seconds=-1)
    assert str(error.value) == "callbacks.progress_file.every_seconds must be at least 0, got -1."
