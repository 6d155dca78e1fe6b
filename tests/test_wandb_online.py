"""Runs that are online, with the real package wandb and a server of our own that keeps what it was told."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import wandb

from llama_adapter.attach import attach
from llama_adapter.checkpoint import save_adapter
from llama_adapter.wandb_logger import RunWandbLogger
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.test_wandb_logger import KEY, warnings
from tests.tiny_run import TinyWorld, command, make_world
from tests.wandb_backend import Backend, backend
from tests.wandb_files import wandb_alone


@pytest.fixture
def server(tmp_path_factory):
    given = {"WANDB_API_KEY": KEY, "WANDB_FINISH_TIMEOUT": "10"}
    with backend() as running, wandb_alone(tmp_path_factory.mktemp("wandb"), WANDB_BASE_URL=running.url, **given):
        yield running


def used_by(server: Backend, run_id: str) -> list[str]:
    """The collections of artifacts that a run used."""
    return [server.artifacts[id]["artifactCollectionName"] for id, user in server.used if user == run_id]


def test_a_training_and_its_evaluation(server, tmp_path, caplog):
    model = attach(tiny_model(), AdapterConfig(prompt_length=3, prompt_layers=2))
    adapter = save_adapter(model, tmp_path / "run", task="alpaca", backbone="llama_7b")
    training = RunWandbLogger(wandb, folder=tmp_path / "run", group="a sweep", job_type="train")
    training.log_hyperparams({"task": {"name": "alpaca", "data": {"path": "alpaca.json"}}})
    for step in (1, 2):
        training.log_metrics({"train/loss": 1.0 / step}, step)
    training.log_table("samples", columns=["epoch", "answer"], data=[[1, "red"]], step=2)
    training.log_adapter(adapter, {"test/loss": 1.0})
    training.close()
    evaluation = RunWandbLogger(wandb, folder=tmp_path / "evaluation", group="alpaca", job_type="evaluate")
    evaluation.use_adapter(tmp_path / "run")
    evaluation.close()

    assert not warnings(caplog)
    told = server.runs[training.run_id]
    assert (told["project"], told["groupName"], told["jobType"]) == ("llama-adapter", "a sweep", "train")
    assert json.loads(told["config"])["task"]["value"]["name"] == "alpaca"
    losses = {
        row["trainer/global_step"]: row["train/loss"] for row in server.history[training.run_id] if "train/loss" in row
    }
    assert losses == {1: 1.0, 2: 0.5}
    assert server.uploads["adapter.safetensors"] == adapter.read_bytes()
    assert used_by(server, training.run_id) == ["base-llama_7b", "data-alpaca"]
    assert used_by(server, evaluation.run_id) == ["adapter-alpaca-llama_7b"]
    (logged,) = [told for told in server.artifacts.values() if told["artifactTypeName"] == "model"]
    assert {alias["alias"] for alias in logged["aliases"]} == {"k3-l2", f"run-{training.run_id}", "latest"}
    assert json.loads(server.runs[evaluation.run_id]["config"])["adapter_file"]["value"]["trained_by"] == {
        "run_id": training.run_id,
        "artifact": "adapter-alpaca-llama_7b",
        "entity": "our-team",
        "project": "llama-adapter",
    }


def test_a_continued_run_asks_for_its_id(server, tmp_path):
    for _ in range(2):
        logger = RunWandbLogger(wandb, folder=tmp_path, run_id="abc12345")
        logger.log_metrics({"train/loss": 1.0}, 1)
        logger.close()
    assert list(server.runs) == ["abc12345"]


@pytest.mark.slow
def test_an_offline_run_and_its_continuation_are_sent_as_one(server, tmp_path):
    """By the command that the fallback's sentence names."""
    model = attach(tiny_model(), AdapterConfig(prompt_length=3, prompt_layers=2))
    adapter = save_adapter(model, tmp_path, task="alpaca", backbone="llama_7b")
    run_id = None
    for step in (1, 2):
        logger = RunWandbLogger(wandb, folder=tmp_path, offline=True, run_id=run_id)
        logger.log_metrics({"train/loss": 1.0 / step}, step)
        run_id = logger.run_id
        if step == 2:
            logger.log_adapter(adapter, {})
        logger.close(failed=step == 1)
        time.sleep(1.1)  # folders of W&B have names with seconds
    sent = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", tmp_path / "wandb"],
        cwd=tmp_path,  # where it writes a log
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert sent.returncode == 0, sent.stderr
    assert list(server.runs) == [run_id]
    assert {row["trainer/global_step"]: row["train/loss"] for row in server.history[run_id]} == {1: 1.0, 2: 0.5}
    assert server.uploads["adapter.safetensors"] == adapter.read_bytes()


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    line, environment = command(script, *arguments)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_train_and_evaluate(server, world, tmp_path):
    ended = run("train.py", *world.overrides(tmp_path / "run"), "logger=wandb")
    assert ended.returncode == 0, ended.stderr
    (training,) = server.runs
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    summary = json.loads(server.uploads["wandb-summary.json"])
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)
    ended = run("evaluate.py", f"adapter_path={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'evaluation'}")
    assert ended.returncode == 0, ended.stderr
    (evaluation,) = server.runs.keys() - {training}
    assert used_by(server, evaluation) == ["adapter-miniature-alpaca-miniature_llama"]
    assert "W&B failed" not in ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_server_that_is_gone_at_the_end(server, world, tmp_path):
    """The run's own files are whole, and it waits for the server no longer than it was told to."""
    line, environment = command("train.py", *world.overrides(tmp_path / "run", trainer__max_epochs=4), "logger=wandb")
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: server.runs)
        server.stop()
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    for name in ("metrics.json", "metrics.csv", "adapter.safetensors", "loss.png"):
        assert (tmp_path / "run" / name).is_file()


@pytest.mark.slow
def test_a_small_disk_for_w_and_b_alone(world, tmp_path_factory, tmp_path):
    """A full disk under wandb/, a real one: the run ends with the same adapter."""
    folder, small = tmp_path / "run", tmp_path / "run/wandb"
    small.mkdir(parents=True)
    mounted = shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small])
    if not mounted or mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        with wandb_alone(tmp_path_factory.mktemp("wandb"), WANDB_MODE="offline"):
            ended = run("train.py", *world.overrides(folder), "logger=wandb")
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    plain = run("train.py", *world.overrides(tmp_path / "plain"))
    assert (ended.returncode, plain.returncode) == (0, 0), ended.stderr
    for name in ("adapter.safetensors", "metrics.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
