"""Runs that torchrun or SLURM starts, one process per device, over "machines" that are all this one."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.tiny_run import TinyWorld, call, command, make_world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = call("train.py", *world.overrides(folder, trainer__max_steps=3))
    assert result.status == 0, result.output
    return folder


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@contextmanager
def started(commands: list[list[str]], environments: list[dict[str, str]]):
    processes = [
        subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        )
        for arguments, environment in zip(commands, environments, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def assert_the_run_of_one(commands: list[list[str]], environments: list[dict[str, str]], folder: Path, alone: Path):
    with started(commands, environments) as processes:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
    assert sum(output.count("Written to") for output in outputs) == 1
    one, other = (load_file(path / "adapter.safetensors") for path in (folder, alone))
    for name, tensor in other.items():
        assert_close(one[name], tensor, rtol=1e-4, atol=1e-5)
    assert (folder / "generations.jsonl").read_text() == (alone / "generations.jsonl").read_text()


@pytest.mark.parametrize(
    ("nodes", "keys"),
    [
        (1, []),
        (2, ["trainer.strategy.across_nodes=true"]),
        (2, ["trainer.strategy.across_nodes=false"]),  # each machine has all of the weights
    ],
)
def test_torchrun(world, alone, tmp_path, nodes, keys):
    folder, port = tmp_path / "run", free_port()
    settings = [*world.overrides(folder, trainer__max_steps=3), "trainer=cpu_2", *keys]
    settings += [f"trainer.num_nodes={nodes}", f"trainer.devices={2 // nodes}"]
    arguments, environment = command("train.py", *settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={2 // nodes}", f"--nnodes={nodes}"]
    commands = [
        [*torchrun, f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}", *arguments[1:]]
        for rank in range(nodes)
    ]
    assert_the_run_of_one(commands, [environment] * nodes, folder, alone)


def test_slurm(world, alone, tmp_path):
    """`srun` gives each task these variables; two nodes with a task each."""
    folder, port = tmp_path / "run", free_port()
    settings = [*world.overrides(folder, trainer__max_steps=3), "trainer=cpu_2", "trainer.devices=1"]
    arguments, environment = command("train.py", *settings, "trainer.num_nodes=2")
    of_job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "adapter", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    of_job |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_NODELIST": "127.0.0.1"}
    of_job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_LOCALID": "0"}
    environments = [environment | of_job | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(2)]
    assert_the_run_of_one([arguments] * 2, environments, folder, alone)
