"""What really goes wrong: processes that are killed, stuck or told to stop, in the middle of anything, and going on."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_adapter.checkpoint_files import newest_checkpoint, step_checkpoints
from llama_adapter.run_checkpoint import logger_run_ids
from tests.tiny_run import Result, TinyWorld, call, command, make_world

STEPS = 28  # two epochs of 14


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"), records=60)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    """The folder of a run of one process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = call("train.py", *world.overrides(folder))
    assert result.status == 0, result.output
    return folder


def start(*arguments: str) -> subprocess.Popen:
    """A run in a process group of its own, whose messages all go into one pipe."""
    line, environment = command("train.py", *arguments)
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def end(process: subprocess.Popen, seconds: float) -> Result:
    """Waits until every process of the group has ended by itself."""
    try:
        output, _ = process.communicate(timeout=seconds)  # until all of them have closed the pipe
    except subprocess.TimeoutExpired:
        pytest.fail(f"the run has not ended after {seconds} seconds")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Result(process.returncode, output)


def run(*arguments: str, seconds: float = 150) -> Result:
    return end(start(*arguments), seconds)


def fault(kind: str, **place: object) -> list[str]:
    """The overrides that make something go wrong."""
    values = {"_target_": f"tests.faults.{kind}"} | place
    return [f"+callbacks.fault.{key}={value}" for key, value in values.items()]


TWO = ("trainer=cpu_2_ddp", "callbacks.watchdog.timeout_seconds=60")


def assert_same_run(folder: Path, finished: Path) -> None:
    """To the last byte, but for what a clock says."""
    for name in ("adapter.safetensors", "metrics.csv", "generations.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def assert_close_run(folder: Path, finished: Path) -> None:
    """Sums of the same numbers in another order, in float32."""
    losses, expected = (
        [float(row["train/loss"]) for row in csv.DictReader((path / "metrics.csv").open()) if row["train/loss"]]
        for path in (folder, finished)
    )
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=1e-5)
    one, other = (load_file(path / "adapter.safetensors") for path in (folder, finished))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-4)


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("save", 10),
        pytest.param("backward", 8, marks=pytest.mark.slow),
        pytest.param("validation", 14, marks=pytest.mark.slow),
    ],
)
def test_the_same_command_goes_on_after_a_kill(world, finished, tmp_path, where, step):
    folder = tmp_path / "run"
    arguments = [
        *world.overrides(folder),
        *fault("Kill", where=where, step=step, marker=tmp_path / "killed"),
        "resume=auto",
    ]
    assert run(*arguments).status == -signal.SIGKILL
    assert (tmp_path / "killed").exists()
    saved = (step - 1) // 5 * 5
    half = folder / f"checkpoints/step_{step:06d}.ckpt.part"
    assert half.exists() == (where == "save")
    assert newest_checkpoint(folder / "checkpoints")[1] == saved
    again = call("train.py", *arguments)
    assert again.status == 0, again.output
    assert f"Resuming after step {saved} from " in again.output
    assert_same_run(folder, finished)
    once_more = call("train.py", *arguments)
    assert (once_more.status, once_more.output) == (
        0,
        f"{folder} holds a finished run (metrics.json): nothing is left to do.\n",
    )


def test_one_of_two_processes_is_killed(world, finished, tmp_path):
    """In a step; the other one ends by itself and says why. One process alone finishes the run."""
    folder = tmp_path / "run"
    result = run(*world.overrides(folder), *TWO, *fault("Kill", where="backward", step=8, rank=1))
    assert result.status == 1
    assert re.search(
        r"Rank 1 has ended while rank 0 is in the backward pass of step 8: where process \d+ on .+ says nothing else "
        rf"above, it was killed, most often for want of memory\. All processes end; go on with resume={folder}\.",
        result.output,
    )
    assert "Rank 1 has ended" in (folder / "train.log").read_text()
    assert newest_checkpoint(folder / "checkpoints")[1] == 5
    again = call("train.py", f"resume={folder}", "trainer=cpu", "~callbacks.fault")
    assert again.status == 0, again.output
    assert_close_run(folder, finished)


@pytest.mark.slow
def test_a_shard_is_killed_and_one_process_goes_on(world, finished, tmp_path):
    """FSDP2's checkpoints are the same small whole files."""
    folder = tmp_path / "run"
    arguments = world.overrides(folder)
    result = run(*arguments, "trainer=cpu_2", *fault("Kill", where="backward", step=8, rank=1))
    assert result.status == 1
    assert "Rank 1 has ended while rank 0 is in the backward pass of step 8" in result.output
    again = call("train.py", f"resume={folder}", "trainer=cpu", "~callbacks.fault")
    assert again.status == 0, again.output
    assert_close_run(folder, finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rank", "where", "step", "saved"),
    [
        ("Kill", 0, "backward", 8, 5),
        ("Kill", 1, "forward", 20, 15),
        ("Kill", 0, "save", 10, 5),
        ("Kill", 1, "validation", 14, 10),
        ("Kill", 0, "validation", 14, 10),
        ("KillAll", 0, "backward", 8, 5),
        ("KillAll", 0, "save", 10, 5),
        ("KillAll", 1, "validation", 28, 25),
    ],
)
def test_two_processes_go_on_after_a_kill(world, finished, tmp_path, kind, rank, where, step, saved):
    folder = tmp_path / "run"
    arguments = [*world.overrides(folder), *TWO, "resume=auto"]
    broken = fault(kind, where=where, step=step, rank=rank, marker=tmp_path / "killed")
    begun = time.monotonic()
    result = run(*arguments, *broken)
    assert result.status in (1, -signal.SIGKILL)
    assert time.monotonic() - begun < 100
    if kind == "Kill":
        assert f"Rank {rank} has ended" in result.output
    assert newest_checkpoint(folder / "checkpoints")[1] == saved
    again = run(*arguments, *broken)
    assert again.status == 0, again.output
    assert f"Resuming after step {saved} from " in again.output
    assert_close_run(folder, finished)
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_a_killed_run_with_dropout_ends_with_the_same_bytes(tmp_path):
    """A RoBERTa of the miniature: the states of the random generators are in the checkpoint."""
    settings = ["task=miniature/squad_v1", "model.dropout=true", "trainer.max_steps=9", "data.global_batch_size=8"]
    settings += ["callbacks.checkpoint.every_n_train_steps=3", "resume=auto"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert call("train.py", *settings, f"hydra.run.dir={whole}").status == 0
    killed = fault("Kill", where="backward", step=5, marker=tmp_path / "marker")
    arguments = [*settings, f"hydra.run.dir={folder}", *killed]
    assert run(*arguments).status == -signal.SIGKILL
    assert newest_checkpoint(folder / "checkpoints")[1] == 3
    assert call("train.py", *arguments).status == 0
    for name in ("adapter.safetensors", "metrics.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


# --- stuck ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "where", "place"),
    [
        (1, "forward", "in the forward pass of step 8"),
        (0, "backward", "in the backward pass of step 8"),
        (0, "data", "on its way to the next batch after step 7"),
        (1, "data", "on its way to the next batch after step 7"),
    ],
)
def test_a_process_that_is_stuck(world, tmp_path, rank, where, place):
    folder = tmp_path / "run"
    hang = fault("Hang", where=where, step=8, rank=rank)
    begun = time.monotonic()
    result = run(*world.overrides(folder), *TWO, "callbacks.watchdog.timeout_seconds=8", *hang)
    assert time.monotonic() - begun < 100
    assert result.status in (1, -signal.SIGKILL)
    assert re.search(
        rf"Rank {rank} has not moved for \d+ seconds \(callbacks\.watchdog\.timeout_seconds\), and the others wait: it "
        rf"is {place} \(rank {rank}: .*tests/faults\.py:\d+ in happen\)\. All processes end; go on with "
        rf"resume={folder}\.",
        result.output,
    ), result.output[-3000:]


# --- told to stop ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_stop_together_and_the_same_command_goes_on(world, finished, tmp_path, number, rank):
    """A signal before a time limit reaches one of them."""
    folder = tmp_path / "run"
    told = fault("Kill", where="forward", step=8, rank=rank, number=int(number), marker=tmp_path / "told")
    arguments = [*world.overrides(folder), *TWO, "resume=auto", *told]
    stopped = run(*arguments)
    assert stopped.status == 128 + number, stopped.output[-3000:]
    assert newest_checkpoint(folder / "checkpoints")[1] == 8
    again = run(*arguments)
    assert again.status == 0, again.output
    assert "Resuming after step 8 from " in again.output
    assert_close_run(folder, finished)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_the_same_run_of_wandb(world, tmp_path):
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    told = fault("Kill", where="forward", step=8, rank=1, number=int(signal.SIGTERM), marker=tmp_path / "told")
    arguments = [*world.overrides(folder), *TWO, "logger=wandb", "logger.wandb.offline=true", "resume=auto", *told]
    assert run(*arguments).status == 128 + signal.SIGTERM
    assert run(*arguments).status == 0
    ids = [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]
    assert len(ids) == 2 and len(set(ids)) == 1
    assert logger_run_ids(folder / "checkpoints/best.ckpt") == {"RunWandbLogger": ids[0]}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(), TWO])
def test_a_second_interrupt_does_not_wait(world, tmp_path, devices):
    """A step that takes for ever, as a user sees it who presses Ctrl-C twice."""
    folder = tmp_path / "run"
    process = start(*world.overrides(folder), *devices, *fault("Hang", where="forward", step=8, rank=0))
    limit = time.monotonic() + 100
    while not (folder / "checkpoints/step_000005.ckpt").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(3)  # until it hangs
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(2)  # within a second they would count as one
    result = end(process, 60)
    assert result.status == 130, result.output[-3000:]
    assert newest_checkpoint(folder / "checkpoints")[1] == 5


# --- started by somebody else ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_torchrun_again_goes_on(world, finished, tmp_path):
    """A process is killed and torchrun ends; the same command goes on from the last checkpoint."""
    folder = tmp_path / "run"
    killed = fault("Kill", where="forward", step=8, rank=1, marker=tmp_path / "killed")
    line, environment = command("train.py", *world.overrides(folder), *TWO, "resume=auto", *killed)

    def torchrun():
        launcher = [line[0], "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        process = subprocess.Popen(
            [*launcher, *line[1:]],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        return end(process, 200)

    assert torchrun().status == 1
    result = torchrun()
    assert result.status == 0, result.output[-3000:]
    assert "Resuming after step 5 from " in result.output
    assert_close_run(folder, finished)
    logs = sorted(path.name for path in folder.glob("*.log"))
    assert logs == ["train.log", "train_process_1.log"]


@pytest.mark.slow
def test_a_job_of_slurm_stops_before_its_limit_and_goes_on(world, finished, tmp_path):
    """Two processes as srun starts them, of which each gets the signal; then the same job again."""
    folder = tmp_path / "run"
    arguments = [*world.overrides(folder), *TWO, "resume=auto"]

    def srun() -> list[subprocess.Popen]:
        job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": str(free_port()), "SLURM_NODEID": "0",
               "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "alpaca",
               "MASTER_PORT": str(free_port())}  # fmt: skip
        line, environment = command("train.py", *arguments)
        return [
            subprocess.Popen(
                line,
                env=environment | job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank in range(2)
        ]

    processes = srun()
    try:
        limit = time.monotonic() + 120
        while not (folder / "checkpoints/step_000005.ckpt").exists():
            assert time.monotonic() < limit and processes[0].poll() is None
            time.sleep(0.01)
        for process in processes:
            process.send_signal(signal.SIGUSR1)
    finally:
        results = [end(process, 100) for process in processes]
    assert [result.status for result in results] == [128 + signal.SIGUSR1] * 2, results[0].output[-3000:]
    assert not list(folder.rglob("hpc_ckpt*")), "Lightning's own requeueing is off"
    step = newest_checkpoint(folder / "checkpoints")[1]
    again = [end(process, 150) for process in srun()]
    assert [result.status for result in again] == [0, 0], again[0].output[-3000:]
    assert f"Resuming after step {step} from " in again[0].output
    assert_close_run(folder, finished)
    assert [end(process, 100).status for process in srun()] == [0, 0], "nothing is left to do"


# --- errors of one process ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_of_one_process_ends_both(world, tmp_path):
    folder = tmp_path / "run"
    result = run(*world.overrides(folder), *TWO, *fault("Fail", where="data", step=8, rank=1))
    assert result.status == 1
    assert "error: The example 7 has no answer.\n" in result.output
    assert (
        "Rank 1 has failed on its way to the next batch after step 7: ValueError: The example 7 has no answer. All "
        f"processes end; go on with resume={folder}." in result.output
    )


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_process(world, tmp_path):
    folder = tmp_path / "run"
    result = run(*world.overrides(folder), *TWO, *fault("Diverge", where="forward", step=8, rank=1))
    assert result.status == 1
    assert result.output.count("error: Step 8 has a loss of nan and a gradient norm of nan.") == 2, "all end together"
    assert result.output.count("The loss of step 8 is no number on rank 1. The examples, the gates") == 1
    report = json.loads((folder / "non_finite_loss.json").read_text())
    assert [device["rank"] for device in report["devices"]] == [1]
    assert report["step"] == 8
    micro_batch = report["devices"][0]["micro_batches"][0]
    assert micro_batch["loss"] == "nan" and len(micro_batch["examples"]) == 2
    assert newest_checkpoint(folder / "checkpoints")[1] == 5


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_first_process_stops_both(world, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/step_000010.ckpt.part").mkdir()  # in the way of the file
    result = run(*world.overrides(folder), *TWO)
    assert result.status == 1
    path = folder / "checkpoints/step_000010.ckpt"
    assert f"error: Cannot write the checkpoint {path}: " in result.output
    assert "error: The first process could not write a checkpoint; its message says why.\n" in result.output
    assert [p.stem for p in step_checkpoints(folder / "checkpoints")] == ["step_000001", "step_000005"]


# --- data workers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_data_worker_that_is_killed(world, finished, tmp_path):
    folder = tmp_path / "run"
    workers = [*world.overrides(folder, data__num_workers=2), "callbacks.checkpoint.every_n_train_steps=1"]
    result = run(*workers, *fault("Kill", where="worker", step=10))
    assert result.status == 1
    assert re.search(
        r"error: A data worker \(process \d+\) has died( of signal KILLED)?, most often for want of memory\. Set "
        r"data\.num_workers lower, or to 0, and go on with resume=<run folder>\.",
        result.output,
    ), result.output[-3000:]
    again = call("train.py", f"resume={folder}", "~callbacks.fault", "data.num_workers=0")
    assert again.status == 0, again.output
    assert_same_run(folder, finished)


@pytest.mark.slow
def test_an_error_in_a_data_worker(world, tmp_path):
    result = run(*world.overrides(tmp_path / "run", data__num_workers=2), *fault("Fail", where="worker", step=10))
    assert result.status == 1
    # the progress bar may write its line once more after it
    assert re.search(
        r"error: Data worker \d has failed\. ValueError: The example 7 has no answer\. With data\.num_workers=0 and "
        r"HYDRA_FULL_ERROR=1 the error shows where it comes from\.\n",
        result.output,
    ), result.output[-3000:]
