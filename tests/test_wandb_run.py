"""Whole runs with `logger=wandb` and no W&B to reach, read back from their offline files."""

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
from lightning import Callback, Trainer

from tests.test_dashboard import load
from tests.test_wandb_server import closed_port
from tests.tiny_run import TinyWorld, call, command, make_world
from tests.wandb_files import OfflineRun, offline_runs, wandb_alone

KEY = "a" * 40


class CrashOnce(Callback):
    """Ends a run in the way a crash does, once.

    Args:
        step: after which it does.
        folder: gets a note that it has.
    """

    def __init__(self, step: int, folder: str) -> None:
        self.step, self.note = step, Path(folder) / "crashed"

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not self.note.exists():
            self.note.touch()
            raise InterruptedError("crashed")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def url() -> str:
    """Of a server that is not there."""
    return f"http://127.0.0.1:{closed_port()}"


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory, url):
    with wandb_alone(tmp_path_factory.mktemp("wandb"), WANDB_BASE_URL=url, WANDB_API_KEY=KEY):
        yield


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> tuple[Path, str]:
    """A finished run's folder, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    result = call("train.py", *world.overrides(folder), "logger=wandb")
    assert result.status == 0, result.output
    return folder, result.output


def only(runs: list[OfflineRun]) -> OfflineRun:
    (run,) = runs
    return run


def test_the_user_is_told_once(trained, url):
    folder, output = trained
    said = [line for line in output.splitlines() if line.startswith("logger=wandb")]
    assert len(said) == 1
    assert said[0].startswith(f"logger=wandb logs offline ({url} cannot be reached: ")
    assert said[0].endswith(
        f"): `wandb sync {folder}/wandb` sends the run to W&B later, and logger.wandb.offline=true, which says that "
        "this is meant, silences this message."
    )
    assert said[0] in (folder / "train.log").read_text()


def test_the_rows_are_those_of_the_csv_files(trained):
    folder, _ = trained
    run = only(offline_runs(folder))
    for name in ("metrics.csv", "throughput.csv"):
        with (folder / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        for column in rows[0].keys() - {"step", "epoch"}:  # several rows of a step tell the epoch
            values = {int(row["step"]): float(row[column]) for row in rows if row[column]}
            assert run.column(column) == pytest.approx(values), column
    assert {f"gate/layer_{layer:02d}" for layer in (1, 2)} <= run.rows[-1].keys() | {k for r in run.rows for k in r}


def test_the_summary_is_metrics_json(trained):
    folder, _ = trained
    run, metrics = only(offline_runs(folder)), json.loads((folder / "metrics.json").read_text())
    assert {name: run.summary[name] for name in metrics} == pytest.approx(metrics)
    assert run.exit_code == 0


def test_pictures_and_tables(trained):
    folder, _ = trained
    run = only(offline_runs(folder))
    gates, loss = run.pictures("gates"), run.pictures("loss")
    assert len(gates) == 2  # one per epoch
    assert gates[-1].read_bytes() == (folder / "gates.png").read_bytes()
    assert [path.read_bytes() for path in loss] == [(folder / "loss.png").read_bytes()]
    samples = run.table("samples")
    answers = [json.loads((folder / f"samples/epoch_{epoch:02d}.json").read_text())[0] for epoch in (1, 2)]
    assert samples["columns"] == ["epoch", "instruction", "input", "answer"]
    assert samples["data"] == [[epoch, "Name it.", "", row["answer"]] for epoch, row in enumerate(answers, start=1)]
    predictions = run.table("predictions")
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    assert predictions["columns"] == list(rows[0])
    assert predictions["data"] == [list(row.values()) for row in rows]


def test_names_and_configuration(trained, world):
    run = only(offline_runs(trained[0]))
    assert (run.run.run_group, run.run.job_type, run.run.display_name) == ("miniature/alpaca", "train", "a run")
    assert run.config["adapter"]["prompt_length"] == 3
    assert run.config["model"]["path"] == str(world.model)
    assert KEY not in str(run.config)


def test_the_adapter_knows_where_it_comes_from(trained):
    folder, _ = trained
    run = only(offline_runs(folder))
    (adapter,) = [artifact for artifact in run.artifacts if artifact.type == "model"]
    metadata = json.loads(adapter.metadata)
    assert adapter.name == "adapter-miniature-alpaca-miniature_llama"
    assert metadata["base"]["fingerprint"]
    assert metadata["data"]["path"] == run.config["task"]["data"]["path"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metadata["metrics"] == {name: value for name, value in metrics.items() if not name.startswith("throughput/")}


def test_every_panel_of_the_dashboard_shows_what_a_run_logs(trained):
    run = only(offline_runs(trained[0]))
    logged = {name for row in run.rows for name in row} | set(run.summary)
    dashboard = load()
    other_tasks = {"test/accuracy", "test/CIDEr", "test/f1"}
    for panel in dashboard.panels():
        assert set(panel.names) <= logged | other_tasks, panel
        if panel.regex:
            assert any(re.match(panel.regex, name) for name in logged)
        for key in panel.config:
            value = run.config
            for name in key.split("."):
                value = value[name]


def test_an_evaluation_is_a_run_of_its_own_that_names_the_training(trained, tmp_path):
    folder, _ = trained
    result = call("evaluate.py", f"adapter_path='{folder}'", f"hydra.run.dir={tmp_path / 'evaluation'}")
    assert result.status == 0, result.output
    run, training = only(offline_runs(tmp_path / "evaluation")), only(offline_runs(folder))
    assert (run.run.job_type, run.run.run_group) == ("evaluate", "miniature/alpaca")
    assert run.run.run_id != training.run.run_id
    assert run.config["adapter_file"]["trained_by"]["run_id"] == training.run.run_id
    assert run.config["adapter_file"]["base"]["fingerprint"]
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert {name: run.summary[name] for name in metrics} == pytest.approx(metrics)
    assert run.table("predictions")["data"] == training.table("predictions")["data"]
    assert not (tmp_path / "evaluation/metrics.csv").exists()


def test_a_resumed_run_is_the_same_run(world, tmp_path):
    crash = ["+callbacks.crash._target_=tests.test_wandb_run.CrashOnce", "+callbacks.crash.step=7"]
    folder = tmp_path / "run"
    overrides = [*world.overrides(folder), "logger=wandb", *crash, f"+callbacks.crash.folder={tmp_path}"]
    result = call("train.py", *overrides)
    assert (result.status, result.error) == (1, "crashed")
    result = call("train.py", f"resume={folder}")
    assert result.status == 0, result.output
    first, second = offline_runs(folder)
    assert first.run.run_id == second.run.run_id
    assert (first.exit_code, second.exit_code) == (1, 0)
    first_losses, second_losses = first.column("train/loss"), second.column("train/loss")
    assert max(first_losses) == 7
    assert first_losses.keys() | second_losses.keys() == set(range(1, 13))
    # The step after the checkpoint (which an epoch's end wrote) is done, and logged, once more: with the same numbers.
    assert first_losses.keys() & second_losses.keys() == {7}
    assert first_losses[7] == second_losses[7]
    assert {row[0] for row in second.table("samples")["data"]} == {1, 2}


def test_wandb_that_fails_changes_nothing_in_the_run(world, trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb").write_text("a file where W&B wants a folder")
    result = call("train.py", *world.overrides(folder), "logger=wandb")
    assert result.status == 0, result.output
    assert "W&B failed in experiment (FileExistsError: [Errno 17] File exists: " in result.output
    for name in ("metrics.csv", "adapter.safetensors"):
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes()


@pytest.mark.slow
def test_jobs_of_a_sweep_are_runs_of_one_group(world, tmp_path):
    lengths = world.overrides(None, adapter__prompt_length="2,3")
    result = call("train.py", "-m", *lengths, f"hydra.sweep.dir={tmp_path / 'my_sweep'}", "logger=wandb")
    assert result.status == 0, result.output
    runs = [only(offline_runs(folder.parent)) for folder in sorted((tmp_path / "my_sweep").glob("*/wandb"))]
    assert [run.run.run_group for run in runs] == ["my_sweep", "my_sweep"]
    assert sorted(run.config["adapter"]["prompt_length"] for run in runs) == [2, 3]
    assert len({run.run.run_id for run in runs}) == 2
    assert [run.exit_code for run in runs] == [0, 0]


@pytest.mark.slow
def test_two_processes_are_one_run(world, tmp_path):
    arguments, environment = command("train.py", *world.overrides(tmp_path / "run"), "logger=wandb", "trainer=cpu_2")
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = only(offline_runs(tmp_path / "run"))
    assert set(run.column("train/loss")) == set(range(1, 13))
    assert (ended.stdout + ended.stderr).count("logger=wandb logs offline") == 1
