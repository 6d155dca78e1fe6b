"""Sweeps through Hydra, of jobs that only pretend to train: what is run, skipped, resumed, written and said."""

import csv
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama_adapter.files import write_json
from llama_adapter.launch import entry
from llama_adapter.launch.run_folder import open_folder
from llama_adapter.launch.sweep_jobs import SweepJob, swept_folder
from llama_adapter.run_checkpoint import RunInterrupted
from tests.tiny_run import Result, call

SCRIPT = """
from pathlib import Path
import hydra
from llama_adapter.launch import entry

@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config):
    from llama_adapter.launch.sweeps import train_job
    return train_job(config, Path(config.output_dir), typed=entry.typed)["test/score"]

entry.run(main, restore="resume")
"""
TRAIN = """
defaults: [_self_, {task: one}, {sweep: null}]
output_dir: ${hydra:runtime.output_dir}
resume: null
size: 1
objective: {metric: test/score}
sweep: {_target_: llama_adapter.launch.schema.SweepConfig, redo: null, fail_fast: false}
hydra:
  run: {dir: run}
  sweep: {dir: sweep, subdir: "${hydra:job.num}"}
  callbacks: {report: {_target_: llama_adapter.launch.sweep_report.SweepReport}}
"""
SWEEP = """
# @package _global_
hydra:
  mode: MULTIRUN
  sweep: {subdir: "${swept_folder:${hydra:runtime.choices.task},${hydra:overrides.task}}"}
  sweeper: {params: {task: "group/two,one,three"}}
  callbacks:
    report: {file: scores.md, table: {_target_: tests.launch.test_sweeps.Table}}
"""


class Table:
    """The scores of a sweep, one to a line."""

    def __call__(self, jobs: Sequence[SweepJob]) -> str:
        return "\n".join(f"{job.task} {job.settings} {job.metrics.get('test/score', '-')}" for job in jobs)


class Sweep:
    """A script with a sweep of three tasks, in a folder of its own.

    Attributes:
        started: the jobs that trained, with what they resumed.
        failing, stopped: the tasks whose jobs fail, or are told to stop after a first checkpoint.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.started: list[tuple[str, str | None]] = []
        self.failing: set[str] = set()
        self.stopped: set[str] = set()
        for name, text in {"app.py": SCRIPT, "conf/train.yaml": TRAIN, "conf/sweep/all.yaml": SWEEP}.items():
            self._write(name, text)
        for task in ("one", "group/two", "three"):
            self._write(f"conf/task/{task}.yaml", f"name: {task}")
        monkeypatch.chdir(folder)
        monkeypatch.setattr("llama_adapter.launch.training.train", self._train)

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def _train(self, config, folder: Path, *, typed: list[str]) -> dict[str, float]:
        name = config.task.name
        if name in self.failing:
            raise ValueError(f"{name} is\nbroken.")
        open_folder(config, folder, typed)
        self.started.append((name, config.resume))
        if name in self.stopped:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints/step_000001.ckpt").touch()
            raise RunInterrupted(signal.SIGTERM, 1)
        metrics = {"test/score": float(config.size), "train/loss": 0.5}
        write_json(folder / "metrics.json", metrics)
        return metrics

    def call(self, *arguments: str) -> Result:
        """One call; `started` is that of this call alone."""
        self.started.clear()
        return call(self.folder / "app.py", *arguments)

    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "sweep/sweep.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Sweep:
    return Sweep(tmp_path, monkeypatch)


TABLE = "group/two  1.0\none  1.0\nthree  1.0"


def test_one_command_runs_all_jobs_and_prints_their_table(sweep):
    result = sweep.call("sweep=all")
    assert result.status == 0, result.output
    assert sweep.started == [("group/two", None), ("one", None), ("three", None)]
    assert result.output.count(TABLE) == 1
    assert result.output.rstrip().endswith(f"Written to {sweep.folder}/sweep: sweep.csv, scores.md")
    said = f"3 jobs. Stopped, this goes on with it: the same command with hydra.sweep.dir={sweep.folder}/sweep"
    assert said in result.output
    assert (sweep.folder / "sweep/scores.md").read_text() == TABLE + "\n"
    assert sweep.rows()[0] == {
        "job": "group_two",
        "task": "group/two",
        "sweep": "all",
        "status": "finished",
        "error": "",
        "test/score": "1.0",
        "train/loss": "0.5",
    }


def test_a_job_that_fails_does_not_stop_the_others(sweep):
    sweep.failing = {"one"}
    result = sweep.call("sweep=all")
    assert (result.status, result.error) == (1, "one is broken.")
    assert [name for name, _ in sweep.started] == ["group/two", "three"]
    assert "one failed: one is broken." in result.output
    assert "group/two  1.0\none  -\nthree  1.0" in result.output
    assert "Failed: one." in result.output
    assert [(row["status"], row["error"]) for row in sweep.rows()] == [
        ("finished", ""),
        ("failed", "one is broken."),
        ("finished", ""),
    ]


def test_the_same_command_runs_what_is_left(sweep):
    sweep.failing = {"one"}
    sweep.call("sweep=all")
    sweep.failing.clear()
    result = sweep.call("sweep=all")
    assert result.status == 0, result.output
    assert sweep.started == [("one", None)]
    assert f"{sweep.folder}/sweep/group_two has finished before." in result.output
    assert result.output.count(TABLE) == 1
    assert sweep.call("sweep=all").output.count(TABLE) == 1  # nothing is left: the table alone
    assert sweep.started == []


def test_a_sweep_that_is_told_to_stop_stops_and_goes_on(sweep):
    sweep.stopped = {"one"}
    result = sweep.call("sweep=all")
    assert result.status == 128 + signal.SIGTERM
    assert [name for name, _ in sweep.started] == ["group/two", "one"]
    assert f"The same command with hydra.sweep.dir={sweep.folder}/sweep goes on with it." in result.output
    sweep.stopped.clear()
    assert sweep.call("sweep=all").status == 0
    assert sweep.started == [("one", str(sweep.folder / "sweep/one")), ("three", None)]


def test_finished_jobs_with_other_settings_are_not_taken(sweep):
    sweep.call("sweep=all", "size=1")
    result = sweep.call("sweep=all", "size=2")
    assert (result.status, sweep.started) == (1, [])
    assert result.error == (
        f"{sweep.folder}/sweep/group_two holds a finished job with size=1, and this one has size=2. Choose another "
        "hydra.sweep.dir, or remove the folder."
    )
    assert "test/score" not in sweep.rows()[0]  # what they measured is not of these settings
    assert sweep.call("sweep=all", "size=1", "objective.metric=train/loss").status == 0  # measures nothing else


def test_unfinished_jobs_with_other_settings_are_not_resumed(sweep):
    sweep.stopped = {"one"}
    sweep.call("sweep=all", "task=one", "size=1")
    sweep.stopped.clear()
    result = sweep.call("sweep=all", "task=one", "size=2")
    assert result.status == 1
    assert result.error.startswith(f"size was 1 when {sweep.folder}/sweep/one was started and is 2 now.")


def test_parts_of_a_sweep_meet_in_its_table(sweep):
    sweep.call("sweep=all", "task=one")
    assert [row["task"] for row in sweep.rows()] == ["one"]
    result = sweep.call("sweep=all", "task=three,group/two")
    assert result.output.count(TABLE) == 1


def test_more_settings_than_the_task(sweep):
    result = sweep.call("sweep=all", "task=one,three", "size=2,10")
    assert sorted(path.name for path in (sweep.folder / "sweep").iterdir() if path.is_dir()) == [
        "one_size=10",
        "one_size=2",
        "three_size=10",
        "three_size=2",
    ]
    assert "one size=2 2.0\none size=10 10.0\nthree size=2 2.0\nthree size=10 10.0" in result.output


def test_the_first_job_that_fails_ends_the_sweep_on_request(sweep):
    sweep.failing = {"one"}
    result = sweep.call("sweep=all", "sweep.fail_fast=true")
    assert (result.status, result.error) == (1, "one is broken.")
    assert [name for name, _ in sweep.started] == ["group/two"]
    assert [row["status"] for row in sweep.rows()] == ["finished", "failed"]


def test_why_a_job_failed_is_remembered(sweep):
    sweep.failing = {"one", "three"}
    sweep.call("sweep=all")
    sweep.failing.clear()
    sweep.call("sweep=all", "task=three")
    assert [(row["status"], row["error"]) for row in sweep.rows()] == [
        ("finished", ""),
        ("failed", "one is broken."),
        ("finished", ""),
    ]


def leave_checkpoint(folder: Path) -> Path:
    path = folder / "checkpoints/step_000001.ckpt"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_failed_jobs_go_on_from_their_checkpoint_or_begin_again(sweep):
    sweep.failing = {"one"}
    sweep.call("sweep=all")
    checkpoint = leave_checkpoint(sweep.folder / "sweep/one")
    sweep.failing.clear()
    sweep.stopped = {"one"}
    sweep.call("sweep=all", "sweep.redo=failed", "size=1")
    assert sweep.started == [("one", None)]  # from nothing
    sweep.stopped.clear()
    result = sweep.call("sweep=all", "sweep.redo=failed", "size=1")
    assert sweep.started == [("one", str(checkpoint.parents[1]))]  # it was stopped, it had not failed
    assert result.status == 0
    assert "sweep.redo" not in sweep.rows()[0]


def test_a_failed_job_may_begin_again_with_other_settings(sweep):
    sweep.failing = {"one"}
    sweep.call("sweep=all", "task=one", "size=2")
    leave_checkpoint(sweep.folder / "sweep/one")
    sweep.failing.clear()
    result = sweep.call("sweep=all", "task=one", "size=1", "sweep.redo=failed")
    assert result.status == 0, result.output
    assert "These begin again from nothing: one." in result.output
    assert (sweep.started, sweep.rows()[0]["test/score"]) == ([("one", None)], "1.0")


@pytest.mark.parametrize(("tasks", "names"), [("one,three", ["one", "three"]), ("three", ["three"])])
def test_all_jobs_of_the_command_begin_again(sweep, tasks, names):
    """And no other job of the folder."""
    sweep.call("sweep=all")
    result = sweep.call("sweep=all", f"task={tasks}", "sweep.redo=all")
    assert result.status == 0, result.output
    assert [name for name, _ in sweep.started] == names
    assert [row["status"] for row in sweep.rows()] == ["finished"] * 3


def test_what_is_not_done_again(sweep):
    result = sweep.call("sweep=all", "sweep.redo=some")
    assert (result.status, result.error) == (1, "sweep.redo is 'some'. Choose failed, all or null.")
    assert sweep.started == []


@pytest.mark.parametrize(
    ("key", "target", "message"),
    [
        (
            "launcher",
            "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
            "hydra/launcher is SlurmLauncher, whose package is not installed: pip install 'llama-adapter[slurm]', or use "
            "hydra/launcher=basic.",
        ),
        (
            "sweeper",
            "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
            "hydra/sweeper is OptunaSweeper, whose package is not installed: pip install 'llama-adapter[sweep]', or use "
            "hydra/sweeper=basic.",
        ),
    ],
)
def test_a_plugin_that_is_not_installed(sweep, monkeypatch, key, target, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = sweep.call("sweep=all", f"hydra.{key}._target_={target}")
    assert (result.status, result.error) == (1, message)


def test_a_run_knows_its_sweep(sweep):
    sweep.call("sweep=all", "task=one")
    assert entry.sweep_group(str(sweep.folder / "sweep/one"), "task") == "sweep"
    assert entry.sweep_group(str(sweep.folder / "run"), "task") == "task"


def test_a_sweep_without_a_file_goes_on_too(sweep):
    sweep.failing = {"three"}
    sweep.call("-m", "task=one,three")
    sweep.failing.clear()
    assert sweep.call("-m", "task=one,three").status == 0
    assert sweep.started == [("three", None)]


def test_a_single_run_is_not_a_sweep(sweep):
    assert sweep.call("size=2").status == 0
    result = sweep.call("size=2")
    assert (result.status, sweep.started) == (1, [])
    assert "holds a finished run (metrics.json)" in result.error


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["task=a/b", "seed=1"], "a_b"),
        (["task=a/b", "seed=1", "size=2"], "a_b_size=2"),
        (["task=a/b", "+path=/x/y", "size=2"], "a_b_+path=_x_y,size=2"),
    ],
)
def test_the_folder_of_a_job(overrides, name):
    assert swept_folder("a/b", overrides, swept={"task", "size", "+path"}) == name


def test_folders_of_long_settings_differ():
    names = {swept_folder("one", [f"size={'1' * 100}{end}"], swept={"size"}) for end in (1, 2)}
    assert len(names) == 2
    assert all(len(name) <= 100 and name.startswith("one_size=1111") for name in names)


def test_jobs_are_in_the_order_of_their_numbers(sweep):
    sweep.call("sweep=all", "task=one", "size=1,2", "hydra.sweep.subdir=${hydra:job.num}")
    (sweep.folder / "sweep/1").rename(sweep.folder / "sweep/10")
    (sweep.folder / "sweep/0").rename(sweep.folder / "sweep/9")
    sweep.call("sweep=all", "task=three", "hydra.sweep.subdir=0")
    assert [row["job"] for row in sweep.rows()] == ["0", "9", "10"]
