"""What a run leaves on W&B, read back from its offline files; and runs that W&B fails, which go on."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from llama_adapter import wandb_logger
from llama_adapter.attach import attach
from llama_adapter.charts import gate_heat_map
from llama_adapter.checkpoint import save_adapter
from llama_adapter.wandb_logger import RunWandbLogger, without_secrets
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import ROOT, tiny_model
from tests.test_wandb_server import closed_port, server
from tests.wandb_files import offline_runs, wandb_alone

__all__ = ["server"]
KEY = "a" * 40


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory):
    with wandb_alone(tmp_path_factory.mktemp("wandb")):
        yield


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter file in the folder of a run."""
    model = attach(tiny_model(), AdapterConfig(prompt_length=3, prompt_layers=2))
    return save_adapter(model, tmp_path, task="alpaca", backbone="llama_7b")


def warnings(caplog) -> list[str]:
    """Ours; W&B has its own to say."""
    ours = [record for record in caplog.records if record.name == "llama_adapter.wandb_logger"]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


# --- what is written --------------------------------------------------------------------------------------------------


def test_everything_is_in_the_offline_files(tmp_path, adapter, caplog):
    import torch

    logger = RunWandbLogger(
        wandb, folder=tmp_path, project="p", group="a sweep", job_type="train", tags=["alpaca"], offline=True
    )
    task = {"name": "alpaca", "data": {"path": "alpaca.json", "seed": None, "max_length": 512, "hub_token": "hf_1"}}
    logger.log_hyperparams({"seed": 3, "task": task, "optimizer": {"betas": [0.9, 0.95]}})
    for step in (1, 2):
        logger.log_metrics({"train/loss": 1.0 / step}, step)
    gate_heat_map(torch.randn(2, 4), tmp_path / "gates.png", "Gates")
    logger.log_image("gates", [str(tmp_path / "gates.png")], step=2)
    logger.log_table("samples", columns=["epoch", "answer"], data=[[1, "red"]], step=2)
    logger.log_summary({"test/exact_match": 0.5, "throughput/tflops_per_device": 9.0})
    logger.log_adapter(adapter, {"test/exact_match": 0.5, "throughput/tflops_per_device": 9.0})
    logger.close()

    (run,) = offline_runs(tmp_path)
    found = run.run
    assert (found.project, found.run_group, found.job_type) == ("p", "a sweep", "train")
    assert (found.display_name, list(found.tags), found.run_id) == (tmp_path.name, ["alpaca"], logger.run_id)
    assert run.exit_code == 0
    assert run.config["seed"] == 3
    assert run.config["task"]["data"] == task["data"] | {"hub_token": "<hidden>"}
    assert run.config["optimizer"] == {"betas": [0.9, 0.95]}
    assert run.column("train/loss") == {1: 1.0, 2: 0.5}
    assert {key: run.table("samples")[key] for key in ("columns", "data")} == {
        "columns": ["epoch", "answer"],
        "data": [[1, "red"]],
    }
    assert [path.read_bytes() for path in run.pictures("gates")] == [(tmp_path / "gates.png").read_bytes()]
    assert (run.summary["test/exact_match"], run.summary["throughput/tflops_per_device"]) == (0.5, 9.0)

    (artifact,) = [artifact for artifact in run.artifacts if artifact.type == "model"]
    assert artifact.name == "adapter-alpaca-llama_7b"
    assert set(artifact.aliases) == {"k3-l2", f"run-{logger.run_id}", "latest"}
    metadata = json.loads(artifact.metadata)
    assert (metadata["prompt_length"], metadata["prompt_layers"], metadata["task"]) == (3, 2, "alpaca")
    assert (metadata["base"]["name"], metadata["base"]["hidden_size"]) == ("llama_7b", 32)
    assert len(metadata["base"]["fingerprint"]) == 16
    assert metadata["data"] == {"path": "alpaca.json", "max_length": 512, "hub_token": "<hidden>"}
    assert metadata["metrics"] == {"test/exact_match": 0.5}
    (content,) = artifact.manifest.contents
    # The run's own file, not a copy in the user's home that a cleaning would take away before the run is sent.
    assert (content.path, content.local_path) == ("adapter.safetensors", str(adapter))
    assert not warnings(caplog)


def test_a_run_that_is_continued_keeps_its_id(tmp_path):
    first = RunWandbLogger(wandb, folder=tmp_path, offline=True)
    assert first.run_id is None
    first.log_metrics({"train/loss": 1.0}, 1)
    first.close(failed=True)
    second = RunWandbLogger(wandb, folder=tmp_path, offline=True, run_id=first.run_id)
    assert second.run_id == first.run_id
    second.log_metrics({"train/loss": 0.5}, 2)
    second.close()
    runs = offline_runs(tmp_path)
    assert {run.run.run_id for run in runs} == {first.run_id}
    assert sorted(run.exit_code for run in runs) == [0, 1]
    assert {step for run in runs for step in run.column("train/loss")} == {1, 2}


def test_runs_side_by_side_in_one_process(tmp_path):
    """A comparison within a run, jobs of a sweep, a user's own run."""
    with wandb.init(mode="offline", dir=str(tmp_path), project="mine") as own:
        outer, inner = (RunWandbLogger(wandb, folder=tmp_path / name, offline=True) for name in ("outer", "inner"))
        for logger in (outer, inner, outer):
            logger.log_metrics({"train/loss": 1.0}, 1)
            own.log({"mine": 1})
        inner.close()
        outer.close()
        assert wandb.run is own
    assert [len(offline_runs(tmp_path / name)[0].rows) for name in ("outer", "inner")] == [2, 1]


def test_after_the_end_nothing_is_logged(tmp_path, caplog):
    logger = RunWandbLogger(wandb, folder=tmp_path, offline=True)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.close()
    logger.log_metrics({"train/loss": 2.0}, 2)
    logger.close()
    assert [run.column("train/loss") for run in offline_runs(tmp_path)] == [{1: 1.0}]
    assert not warnings(caplog)


def test_only_the_first_device_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RunWandbLogger(SimpleNamespace(), folder=tmp_path / "run")  # nothing of W&B is touched
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_summary({})
    logger.log_adapter(tmp_path / "none", {})
    logger.close()
    assert logger.run_id is None
    assert not (tmp_path / "run").exists()


def test_secrets_of_a_configuration():
    given = {"api_key": "1", "data": [{"password": "2", "hub_token": None}], "max_tokens": 3, "tokenizer": "4"}
    hidden = {"api_key": "<hidden>", "data": [{"password": "<hidden>", "hub_token": None}]}
    assert without_secrets(given) == given | hidden


# --- without a key, without a network, switched off -------------------------------------------------------------------


def sentence(reason: str, folder: Path) -> str:
    return (
        f"logger=wandb logs offline ({reason}): `wandb sync {folder}/wandb` sends the run to W&B later, and "
        "logger.wandb.offline=true, which says that this is meant, silences this message."
    )


def log_one(folder: Path, **options: object) -> RunWandbLogger:
    logger = RunWandbLogger(wandb, folder=folder, **options)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.close()
    return logger


@pytest.mark.parametrize("server", [404], indirect=True)
def test_no_key(server, tmp_path, tmp_path_factory, caplog):
    with wandb_alone(tmp_path_factory.mktemp("other"), WANDB_BASE_URL=server):
        log_one(tmp_path)
    assert warnings(caplog) == [sentence("No API key configured. Use `wandb login` to log in", tmp_path)]
    assert offline_runs(tmp_path)[0].column("train/loss") == {1: 1.0}


def test_a_key_but_no_network(tmp_path, tmp_path_factory, caplog):
    url = f"http://127.0.0.1:{closed_port()}"
    start = time.perf_counter()
    with wandb_alone(tmp_path_factory.mktemp("other"), WANDB_BASE_URL=url, WANDB_API_KEY=KEY):
        log_one(tmp_path)
    assert time.perf_counter() - start < 10  # W&B itself tries for 90 seconds
    (message,) = warnings(caplog)
    assert message.startswith(f"logger=wandb logs offline ({url} cannot be reached: [Errno")
    assert offline_runs(tmp_path)[0].column("train/loss") == {1: 1.0}


def test_the_folder_is_told_as_a_user_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "`wandb sync outputs/run/wandb`" in wandb_logger.fallback("no network", tmp_path / "outputs/run")


@pytest.mark.parametrize("server", [404], indirect=True)
def test_a_server_that_refuses_the_key(server, tmp_path, tmp_path_factory, caplog):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {server.removeprefix('http://')} login user password {KEY}\n")
    with wandb_alone(tmp_path_factory.mktemp("other"), WANDB_BASE_URL=server, NETRC=str(netrc)):
        log_one(tmp_path / "run")
    (message,) = warnings(caplog)
    assert message.startswith("logger=wandb logs offline (Failed to get resume status for run")
    assert offline_runs(tmp_path / "run")[0].column("train/loss") == {1: 1.0}


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_offline_by_the_environment_asks_nobody(mode, tmp_path, tmp_path_factory, caplog, monkeypatch):
    monkeypatch.setattr(wandb_logger, "unreachable", lambda url: pytest.fail("asked"))
    with wandb_alone(tmp_path_factory.mktemp("other"), WANDB_MODE=mode):
        log_one(tmp_path)
    assert offline_runs(tmp_path)[0].column("train/loss") == {1: 1.0}
    assert not warnings(caplog)


def test_disabled_by_the_environment(tmp_path, tmp_path_factory, adapter, caplog):
    with wandb_alone(tmp_path_factory.mktemp("other"), WANDB_MODE="disabled"):
        logger = RunWandbLogger(wandb, folder=tmp_path)
        logger.log_hyperparams({"seed": 0})
        logger.log_metrics({"train/loss": 1.0}, 1)
        logger.log_table("samples", columns=["a"], data=[[1]])
        logger.log_adapter(adapter, {})
        logger.use_adapter(adapter)
        logger.close()
    assert logger.run_id is None
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]
    assert not warnings(caplog)


def test_names_from_the_environment(tmp_path, tmp_path_factory):
    with wandb_alone(tmp_path_factory.mktemp("other"), WANDB_NAME="mine"):
        log_one(tmp_path / "a", offline=True)
    log_one(tmp_path / "b", offline=True, name="given")
    assert [offline_runs(tmp_path / name)[0].run.display_name for name in "ab"] == ["mine", "given"]


# --- W&B fails --------------------------------------------------------------------------------------------------------


def failed(method: str, error: str) -> str:
    return f"W&B failed in {method} ({error}); the run goes on, and its folder has everything."


def test_files_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    logger = log_one(tmp_path, offline=True)
    error = f"FileExistsError: [Errno 17] File exists: '{tmp_path}/wandb'"
    assert warnings(caplog) == [failed("experiment", error)]
    assert logger.run_id is None


def test_a_picture_that_is_not_there(tmp_path, caplog):
    logger = RunWandbLogger(wandb, folder=tmp_path, offline=True)
    for step in (1, 2):
        logger.log_image("gates", [str(tmp_path / "nothing.png")], step=step)
        logger.log_table("samples", columns=["a"], data=[[1, 2]])
        logger.log_adapter(tmp_path / "nothing.safetensors", {})
        logger.log_metrics({"train/loss": 1.0}, step)
    logger.close()
    assert [message.split(" (")[0] for message in warnings(caplog)] == [  # once each
        f"W&B failed in {method}" for method in ("log_image", "log_table", "log_adapter")
    ]
    assert "nothing.png" in warnings(caplog)[0]
    assert offline_runs(tmp_path)[0].column("train/loss") == {1: 1.0, 2: 1.0}


def test_a_full_disk(tmp_path, caplog, monkeypatch):
    logger = RunWandbLogger(wandb, folder=tmp_path, offline=True)
    logger.log_metrics({"train/loss": 1.0}, 1)

    def write(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.experiment, "log", write)
    for step in (2, 3):
        logger.log_metrics({"train/loss": 1.0}, step)
    run_id = logger.run_id
    logger.close()
    assert warnings(caplog) == [failed("log_metrics", "OSError: [Errno 28] No space left on device")]
    assert [run.exit_code for run in offline_runs(tmp_path)] == [0]  # what there is of it is whole
    assert logger.run_id == run_id  # a resumed run goes on with it


@pytest.mark.slow
def test_a_service_that_dies(tmp_path, caplog):
    """In a process of its own, whose end must not hang either."""
    code = (
        "import logging, os, signal, subprocess, sys, time, wandb\n"
        "from llama_adapter.wandb_logger import RunWandbLogger\n"
        "logger = RunWandbLogger(wandb, folder=sys.argv[1], offline=True)\n"
        "logger.log_metrics({'train/loss': 1.0}, 1)\n"
        "listed = subprocess.run(['ps', '-o', 'pid=,comm=', '--ppid', str(os.getpid())], capture_output=True, text=True)\n"
        "(service,) = [int(line.split()[0]) for line in listed.stdout.splitlines() if 'wandb' in line]\n"
        "os.kill(service, signal.SIGKILL)\n"
        "for step in range(2, 200):\n"
        "    logger.log_metrics({'train/loss': 1.0}, step)\n"
        "    time.sleep(0.005)\n"
        "logger.close()\n"
        "sys.exit(7)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 7, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("W&B failed in log_metrics (")]
    assert len(said) == 1


# --- online, with W&B's answers made up -------------------------------------------------------------------------------


class OnlineRun:
    """Takes what a run that is online takes."""

    offline, disabled, id, entity, project, group = False, False, "abc123", "our-team", "llama-adapter", "alpaca"

    def __init__(self, calls: list) -> None:
        self.calls, self.config = calls, {}

    def define_metric(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.fixture
def online(monkeypatch) -> SimpleNamespace:
    """The package wandb, whose server is there."""
    monkeypatch.setattr(wandb_logger, "unreachable", lambda url: "")
    calls: list = []

    def init(**options: object) -> OnlineRun:
        calls.append(("init", (), options))
        return OnlineRun(calls)

    settings = SimpleNamespace(mode="online", base_url="https://api.example")
    return SimpleNamespace(
        init=init,
        calls=calls,
        setup=lambda: SimpleNamespace(settings=settings),
        Artifact=wandb.Artifact,
    )


def test_online_a_run_uses_its_backbone_and_data(online, tmp_path, adapter):
    logger = RunWandbLogger(online, folder=tmp_path, run_id="abc123")
    logger.log_hyperparams({"task": {"name": "alpaca", "data": {"path": "alpaca.json"}}})
    logger.log_adapter(adapter, {"test/loss": 1.0})
    start = online.calls[0][2]
    assert "mode" not in start
    assert (start["id"], start["resume"], start["reinit"]) == ("abc123", "allow", "create_new")
    assert start["settings"] == {"init_timeout": 10.0, "finish_timeout": 300.0}
    logged = [args[0] for name, args, _ in online.calls if name == "log_artifact"]
    used = [args[0] for name, args, _ in online.calls if name == "use_artifact"]
    assert [artifact.type for artifact in logged] == ["model"]
    assert [(artifact.type, artifact.name) for artifact in used] == [("base", "base-llama_7b"), ("data", "data-alpaca")]
    assert [list(artifact.manifest.entries) for artifact in used] == [["base.json"], ["data.json"]]
    assert used[0].metadata == logged[0].metadata["base"]
    assert used[1].metadata == {"path": "alpaca.json"}


def test_the_same_backbone_is_the_same_version(online, tmp_path, adapter):
    for name in ("a", "b"):
        RunWandbLogger(online, folder=tmp_path / name).log_adapter(adapter, {"test/loss": float(ord(name))})
    bases = [args[0] for name, args, _ in online.calls if name == "use_artifact" and args[0].type == "base"]
    assert bases[0].digest == bases[1].digest


def test_an_evaluation_links_to_the_run_that_trained(online, tmp_path, adapter):
    RunWandbLogger(online, folder=tmp_path).log_adapter(adapter, {})
    online.calls.clear()
    evaluation = RunWandbLogger(online, folder=tmp_path / "evaluation", job_type="evaluate")
    evaluation.use_adapter(tmp_path)
    trained_by = {"run_id": "abc123", "artifact": "adapter-alpaca-llama_7b", "entity": "our-team"}
    told = evaluation.experiment.config["adapter_file"]
    assert told["trained_by"] == trained_by | {"project": "llama-adapter"}
    assert told["base"]["name"] == "llama_7b"
    used = [args for name, args, _ in online.calls if name == "use_artifact"]
    assert used == [("our-team/llama-adapter/adapter-alpaca-llama_7b:run-abc123",)]


def test_an_evaluation_of_an_adapter_that_nobody_logged(online, tmp_path, adapter):
    RunWandbLogger(online, folder=tmp_path / "evaluation").use_adapter(adapter)
    (used,) = [args[0] for name, args, _ in online.calls if name == "use_artifact"]
    assert (used.type, used.name, list(used.manifest.entries)) == (
        "model",
        "adapter-alpaca-llama_7b",
        ["adapter.safetensors"],
    )


def test_waiting_times_of_the_environment_win(online, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "60")
    RunWandbLogger(online, folder=tmp_path).log_metrics({"train/loss": 1.0}, 1)
    assert online.calls[0][2]["settings"] == {"finish_timeout": 300.0}
