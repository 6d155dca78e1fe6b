"""Jobs of a sweep as processes of their own: what they are given, what comes back, and how they stop."""

import csv
import json
import os
import signal
import subprocess
import time

import pytest

from tests.launch.tiny_sweep import ProcessSweep
from tests.tiny_run import call, command, make_world


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> ProcessSweep:
    return ProcessSweep(tmp_path, monkeypatch)


def test_each_job_is_a_single_run_in_a_process_of_its_own(sweep, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MARK", "kept")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    result = sweep.call("size=2,3", "hydra.verbose=[x]", "hydra.launcher.log_seconds=30")
    assert result.status == 0, result.output
    job = sweep.job(size=3)
    folder = sweep.folder / "run_size=3"
    assert job["arguments"] == ["size=3", "hydra.verbose=[x]", "hydra.mode=RUN", f"hydra.run.dir='{folder}'"]
    assert job["environment"] == {"MARK": "kept"}
    assert job["pid"] not in (os.getpid(), sweep.job(size=2)["pid"])
    assert [(row["size"], row["status"], row["test/score"]) for row in sweep.rows()] == [
        ("2", "finished", "2.0"),
        ("3", "finished", "3.0"),
    ]
    assert "size=3: finished, test/score 3, after 0:00:00. 2 finished. Best test/score: 3 (size=3)." in result.output
    assert sweep.job(size=2)["end"] <= job["start"]  # one at a time


def test_the_same_command_runs_what_is_left(sweep):
    sweep.call("size=2,3")
    (sweep.folder / "run_size=3/metrics.json").unlink()
    before = sweep.job(size=2)
    result = sweep.call("size=2,3")
    assert f"{sweep.folder}/run_size=2 has finished before." in result.output
    assert sweep.job(size=2) == before
    assert [row["status"] for row in sweep.rows()] == ["finished", "finished"]


@pytest.mark.parametrize("kind", ["a finished", "an unfinished"])
def test_jobs_of_other_settings_are_not_taken(sweep, kind):
    folder = sweep.folder / "run_size=2"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("act: wait")
    if kind == "a finished":
        (folder / "metrics.json").write_text('{"test/score": 1.0}')
    else:
        (folder / "checkpoints/step_000001.ckpt").touch()
    result = sweep.call("size=2,3", "act=null")
    assert result.error == (
        f"{folder} holds {kind} job with act=wait, and this one has act=None. Choose another hydra.sweep.dir, or "
        "remove the folder."
    )
    assert [row["status"] for row in sweep.rows()] == ["failed", "finished"]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        ("fail", "This job is broken."),
        (
            "die",
            "The job was killed by SIGKILL. Where memory runs out, the system does that. What it wrote is in "
            "{folder}/console.log. Its last line is: step 2",
        ),
        (
            "exit",
            "The job ended with exit status 3. What it wrote is in {folder}/console.log. Its last line is: half way",
        ),
    ],
)
def test_a_job_that_fails_does_not_stop_the_others(sweep, act, sentence):
    result = sweep.call(f"act={act},null")
    folder = sweep.folder / f"run_act={act}"
    sentence = sentence.replace("{folder}", str(folder))
    assert (result.status, result.error) == (1, sentence)
    assert f"The last lines of {folder}/console.log:" in result.output
    assert {row["act"]: (row["status"], row["error"]) for row in sweep.rows()} == {
        act: ("failed", sentence),
        "null": ("finished", ""),
    }


def test_the_first_that_fails_ends_the_sweep_on_request(sweep):
    started = time.monotonic()
    result = sweep.call("act=wait,fail,null", "sweep.fail_fast=true", "hydra.launcher.parallel=2")
    assert (result.status, result.error) == (1, "This job is broken.")
    assert time.monotonic() - started < 30
    assert "Jobs that run save a checkpoint and stop: 1. Once more stops them at once." in result.output
    assert (sweep.folder / "run_act=wait/checkpoints/step_000001.ckpt").exists()
    assert not (sweep.folder / "run_act=null").exists()


def test_a_sweep_that_is_told_to_stop_stops_its_jobs_and_goes_on(sweep):
    result = sweep.call("act=stop,null")
    assert result.status == 128 + signal.SIGTERM
    assert f"The sweep stops. The same command with hydra.sweep.dir={sweep.folder} goes on with it." in result.output
    assert not (sweep.folder / "run_act=null").exists()
    assert sweep.call("act=stop,null").status == 0
    folder = sweep.folder / "run_act=stop"
    assert sweep.job(act="stop")["arguments"][-2:] == [f"hydra.run.dir='{folder}'", f"resume='{folder}'"]


@pytest.mark.parametrize("seconds", [0.2, 60])
def test_jobs_that_do_not_stop_are_killed(sweep, seconds):
    """After a while, or when the sweep is told once more."""
    started = time.monotonic()
    result = sweep.call("act=stuck", f"hydra.launcher.stop_seconds={seconds}")
    assert result.status == 128 + signal.SIGTERM
    assert time.monotonic() - started < 30


def test_failed_jobs_begin_again(sweep):
    sweep.call("act=fail,null")
    sweep.call("act=fail,null", "sweep.redo=failed")
    assert (sweep.folder / "run_act=fail/console.log").read_text().count("This job is broken.") == 1
    sweep.call("act=fail,null")
    assert (sweep.folder / "run_act=fail/console.log").read_text().count("This job is broken.") == 2


def test_gpus_are_dealt_out(sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-x,7")
    assert sweep.call("size=1,2,3", "act=slow", "trainer.accelerator=gpu").status == 0
    jobs = [sweep.job(size=size) for size in (1, 2, 3)]
    assert [job["environment"]["CUDA_VISIBLE_DEVICES"] for job in jobs] == ["3", "GPU-x", "7"]
    assert max(job["start"] for job in jobs) < min(job["end"] for job in jobs)  # side by side


def test_a_job_with_several_gpus_waits_for_them(sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert sweep.call("size=1,2", "act=slow", "trainer.accelerator=gpu", "trainer.devices=2").status == 0
    jobs = [sweep.job(size=size) for size in (1, 2)]
    assert [job["environment"]["CUDA_VISIBLE_DEVICES"] for job in jobs] == ["3,5", "7,3"]
    assert jobs[0]["end"] <= jobs[1]["start"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trainer.accelerator=gpu", "trainer.devices=3"],
            "trainer.devices=3 of run are GPUs, of which this process sees 2. Choose fewer, or look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES.",
        ),
        (
            ["trainer.accelerator=gpu", "trainer.devices=[0,1]"],
            "trainer.devices is [0, 1]. hydra/launcher=subprocess deals the GPUs out itself: give the number that a job "
            "needs; CUDA_VISIBLE_DEVICES chooses which there are.",
        ),
        (
            ["trainer.num_nodes=2"],
            "trainer.num_nodes is 2, and hydra/launcher=subprocess starts jobs on this machine alone. Use "
            "hydra/launcher=slurm.",
        ),
        (["hydra.launcher.parallel=0"], "hydra.launcher.parallel must be at least 1, or null, got 0."),
    ],
)
def test_what_this_machine_cannot_do(sweep, monkeypatch, arguments, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,-1,2")  # CUDA stops at -1
    result = sweep.call(*arguments)
    assert (result.status, result.error) == (1, message)


@pytest.mark.slow
def test_jobs_stop_when_the_sweep_is_killed(sweep):
    arguments, environment = command(sweep.script, "-m", "hydra/launcher=subprocess", "act=wait,null")
    process = subprocess.Popen(arguments, env=environment, cwd=sweep.folder.parent, start_new_session=True)
    folder = sweep.folder / "run_act=wait"
    try:
        wait_for(lambda: (folder / "progress.json").exists())
        process.kill()
        process.wait()
        wait_for(lambda: (folder / "checkpoints/step_000001.ckpt").exists())
    finally:
        process.kill()


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.05)


@pytest.mark.parametrize("layers", ["1", pytest.param("1,2", marks=pytest.mark.slow)])
def test_jobs_of_two_devices_are_one_run_each(tmp_path, layers):
    """For real: one command, which within a sweep would be the whole sweep, is repeated by the second device."""
    world, folder = make_world(tmp_path), tmp_path / "a sweep"
    arguments = world.overrides(None, adapter__prompt_length=2, adapter__prompt_layers=layers, trainer__max_steps=1)
    launcher = ["-m", "trainer=cpu_2_ddp", "hydra/launcher=subprocess", f"hydra.sweep.dir='{folder}'"]
    launcher += ["hydra.launcher.parallel=2", "task.data.test_path=null"]
    result = call("train.py", *launcher, *arguments)
    assert result.status == 0, result.output
    jobs = sorted(path.parent for path in folder.glob("*/adapter.safetensors"))
    assert [path.is_dir() and path.name for path in sorted(folder.iterdir()) if path.is_dir()] == [j.name for j in jobs]
    assert len(jobs) == len(layers.split(","))
    for job in jobs:
        said = (job / "train.log").read_text()
        assert said.count("4 = 2 devices x 2 examples x 1 accumulated") == said.count("Written to") == 1
        progress = json.loads((job / "progress.json").read_text())
        assert (progress["step"], progress["steps"]) == (1, 1)
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["adapter.prompt_layers"], row["status"]) for row in rows] == [
        (n, "finished") for n in layers.split(",")
    ]
    again = call("train.py", *launcher, *arguments)
    assert (again.status, again.output.count("has finished before.")) == (0, len(jobs))
