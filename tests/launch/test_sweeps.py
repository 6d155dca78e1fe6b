"""Sweeps through Hydra, of jobs that only pretend to train: what is run, skipped, resumed, written and said."""

import csv
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama_adapter.files import write_json
from llama_adapter.launch.run_folder import open_folder
from llama_adapter.launch.sweeps import MetricsTable, SweepJob, swept_folder
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
hydra: {run: {dir: run}, sweep: {dir: sweep, subdir: "${hydra:job.num}"}}
"""
SWEEP = """
# @package _global_
hydra:
  mode: MULTIRUN
  sweep: {subdir: "${swept_folder:${hydra:runtime.choices.task},${hydra:overrides.task}}"}
  sweeper: {params: {task: "group/two,one,three"}}
  callbacks:
    report: {_target_: llama_adapter.launch.sweeps.SweepReport, file: scores.md, table: {_target_: tests.launch.test_sweeps.Table}}
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
    assert result.output.rstrip().endswith(f"Written to {sweep.folder}/sweep: scores.md and sweep.csv")
    assert f"3 jobs. If they are stopped, this goes on with them: hydra.sweep.dir={sweep.folder}/sweep" in result.output
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
    assert "one size=10 10.0\none size=2 2.0\nthree size=10 10.0\nthree size=2 2.0" in result.output


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


def test_jobs_are_in_the_order_of_their_numbers(sweep):
    sweep.call("sweep=all", "task=one", "size=1,2", "hydra.sweep.subdir=${hydra:job.num}")
    (sweep.folder / "sweep/1").rename(sweep.folder / "sweep/10")
    (sweep.folder / "sweep/0").rename(sweep.folder / "sweep/9")
    sweep.call("sweep=all", "task=three", "hydra.sweep.subdir=0")
    assert [row["job"] for row in sweep.rows()] == ["0", "9", "10"]


def test_a_table_of_metrics():
    """Metrics that no job has are left out, and the task where all have one."""
    table = MetricsTable(["train/parameters", "test/accuracy", "test/f1"])
    jobs = [
        SweepJob(Path("a"), {"task": "one"}, "adapter=full", {"train/parameters": 472416.0, "test/accuracy": 93.75}),
        SweepJob(Path("b"), {"task": "one"}, "adapter=head_only", {"train/parameters": 776.0}),
    ]
    assert table(jobs).splitlines() == [
        "| settings          | train/parameters | test/accuracy |",
        "| ----------------- | ---------------: | ------------: |",
        "| adapter=full      |          472,416 |         93.75 |",
        "| adapter=head_only |              776 |             - |",
    ]
    other = SweepJob(Path("c"), {"task": "two"}, "", {})
    assert table([*jobs, other]).splitlines()[-1].split("|")[1].strip() == "two"
