"""Sweeps with what is not installed with us: Optuna chooses the settings, submitit hands the jobs to a cluster."""

import csv
import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from llama_adapter.launch import build
from llama_adapter.launch.entry import register_resolvers
from llama_adapter.launch.schema import register_schemas
from tests.conftest import ROOT
from tests.launch.tiny_sweep import ProcessSweep
from tests.tiny_run import call, make_world


@pytest.fixture
def study(tmp_path, monkeypatch) -> ProcessSweep:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'llama-adapter[sweep]'")
    sweep = ProcessSweep(tmp_path, monkeypatch)
    node = OmegaConf.load(ROOT / "conf/hydra/sweeper/optuna_tpe.yaml")
    node.params = {"size": "int(interval(1, 999))"}
    node.n_trials = 3
    (tmp_path / "conf/hydra/sweeper").mkdir()
    OmegaConf.save(node, tmp_path / "conf/hydra/sweeper/optuna_tpe.yaml")
    train = tmp_path / "conf/train.yaml"
    train.write_text(train.read_text() + "seed: 0\n")
    return sweep


def test_optuna_gets_the_values_back(study):
    result = study.call("hydra/sweeper=optuna_tpe")
    assert result.status == 0, result.output
    best = OmegaConf.load(study.folder / "optimization_results.yaml")
    values = [float(row["test/score"]) for row in study.rows()]
    assert len(values) == 3
    assert best.best_value == max(values) == best.best_params["size"]  # objective.direction is maximize
    assert f"Written to {study.folder}: sweep.csv" in result.output
    assert "3 finished. Best test/score:" in result.output


def test_optuna_goes_on_where_it_stopped(study):
    study.call("hydra/sweeper=optuna_tpe")
    before = study.rows()
    result = study.call("hydra/sweeper=optuna_tpe", "hydra.sweeper.n_trials=4")
    assert result.output.count("has finished before.") == 3
    assert all(row in study.rows() for row in before)


def test_a_study_may_be_kept_in_a_file(study):
    stored = [
        "hydra.sweeper.sampler.seed=null",
        "hydra.sweeper.study_name=ours",
        f"hydra.sweeper.storage='sqlite:///{study.folder.parent}/study.db'",
    ]
    for _ in range(2):
        result = study.call("hydra/sweeper=optuna_tpe", "hydra.sweeper.n_trials=2", *stored)
        assert result.status == 0, result.output
    assert len(study.rows()) == 4  # the second call goes on with other settings
    assert OmegaConf.load(study.folder / "optimization_results.yaml").best_value == max(
        float(row["test/score"]) for row in study.rows()
    )


def test_one_trial_that_fails_ends_no_study(study):
    result = study.call("hydra/sweeper=optuna_tpe", "act=choice(fail,fine)")
    assert result.status == 0, result.output
    assert {(row["act"], row["status"]) for row in study.rows()} == {("fail", "failed"), ("fine", "finished")}


@pytest.mark.slow
def test_submitit_runs_jobs_elsewhere(tmp_path):
    """On this machine; the slurm launcher differs in who starts them."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'llama-adapter[slurm]'")
    world, folder = make_world(tmp_path), tmp_path / "sweep"
    arguments = world.overrides(None, task__data__path=f"{world.train},{tmp_path}/none.json", trainer__max_steps=1)
    arguments = [
        "-m",
        *arguments,
        "hydra/launcher=submitit_local",
        f"hydra.sweep.dir={folder}",
        "task.data.test_path=null",
    ]
    result = call("train.py", *arguments)
    assert result.error.startswith(f"No file {tmp_path}/none.json.")
    with (folder / "sweep.csv").open() as file:
        rows = {row["task.data.path"]: row for row in csv.DictReader(file)}
    assert rows[str(world.train)]["status"] == "finished"
    failed = rows[f"{tmp_path}/none.json"]
    assert (failed["status"], failed["error"][:8]) == ("failed", "No file ")
    assert json.loads((folder / failed["job"] / "failed.json").read_text())["error"] == failed["error"]


def cluster_sweep(*overrides: str) -> DictConfig:
    """The configuration of a sweep's job on a cluster, as it is in the job."""
    register_schemas()
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        arguments = ["task=alpaca", "trainer=8xa100_ddp", "hydra/launcher=slurm", "hydra.mode=MULTIRUN", *overrides]
        config = compose("train", arguments, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


@pytest.fixture
def _no_hydra():
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.mark.usefixtures("_no_hydra")
def test_a_cluster_starts_the_processes_of_all_devices():
    config = cluster_sweep()
    launcher = HydraConfig.get().launcher
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.nodes) == (8, 8, 1)
    build._check_in_process_sweep(config)
    config = cluster_sweep("hydra.launcher.tasks_per_node=1")
    with pytest.raises(ValueError) as error:
        build._check_in_process_sweep(config)
    assert str(error.value) == (
        "hydra.launcher asks the cluster for 1 processes on each of 1 nodes, but the trainer has 8 devices on each of 1. "
        "hydra.launcher.tasks_per_node must be trainer.devices, and hydra.launcher.nodes trainer.num_nodes."
    )


def test_the_slurm_launchers_keys_are_submitits():
    config = pytest.importorskip(
        "hydra_plugins.hydra_submitit_launcher.config", reason="needs pip install 'llama-adapter[slurm]'"
    )
    assert set(OmegaConf.load(ROOT / "conf/hydra/launcher/slurm.yaml")) <= set(
        OmegaConf.structured(config.SlurmQueueConf)
    )


def test_the_optuna_sweepers_keys_are_the_plugins():
    config = pytest.importorskip(
        "hydra_plugins.hydra_optuna_sweeper.config", reason="needs pip install 'llama-adapter[sweep]'"
    )
    ours, its = (
        OmegaConf.load(ROOT / "conf/hydra/sweeper/optuna_tpe.yaml"),
        OmegaConf.structured(config.OptunaSweeperConf),
    )
    assert set(ours) == set(its) - {"defaults"}
