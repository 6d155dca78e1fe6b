"""The same command again and again, and processes that somebody else has started."""

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment

from llama_adapter.launch import requeue
from llama_adapter.launch.requeue import (
    automatic_arguments,
    cluster_plugins,
    process_of_run,
    settled_text,
    started_arguments,
)

VARIABLES = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}  # fmt: skip
SLURM = {"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_JOB_NAME": "alpaca", "SLURM_NTASKS_PER_NODE": "8"}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


# --- resume=auto ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["resume=null"], ["resume=outputs/run"]])
def test_only_auto_is_touched(arguments):
    assert automatic_arguments(arguments) == arguments


@pytest.mark.parametrize("name", ["run", "a run", "it's"])
def test_auto_begins_then_goes_on_then_ends(tmp_path, name, capsys):
    folder = tmp_path / name
    quoted = f'hydra.run.dir="{folder}"'
    command = ["seed=1", "resume=auto", quoted]
    assert automatic_arguments(command) == ["seed=1", quoted]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    assert automatic_arguments(command) == ["seed=1", quoted], "it has come to no checkpoint"
    (folder / "checkpoints/step_000001.ckpt.part").touch()
    assert automatic_arguments(command) == ["seed=1", quoted]
    (folder / "checkpoints/step_000001.ckpt").touch()
    assert automatic_arguments(command) == ["seed=1", f"resume={folder}", quoted]
    (folder / "metrics.json").touch()
    assert automatic_arguments(command) is None
    assert capsys.readouterr().out == f"{folder} holds a finished run (metrics.json): nothing is left to do.\n"


def test_one_of_many_processes_says_that_a_run_has_finished(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").touch()
    set_all(monkeypatch, SLURM)
    assert automatic_arguments(["resume=auto", f"hydra.run.dir={tmp_path}"]) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=auto"], "resume=auto needs the run's folder: give hydra.run.dir=<folder>, the same every time."),
        (
            ["resume=auto", "hydra.run.dir=outputs/${seed}"],
            "resume=auto needs a plain folder, got hydra.run.dir=outputs/${seed}. Write it out.",
        ),
        (
            ["-m", "resume=auto", "seed=0,1"],
            "resume=auto is for a single run. A sweep goes on by itself: leave resume out, and give "
            "hydra.sweep.dir=<its folder>.",
        ),
    ],
)
def test_auto_needs_a_folder(arguments, message):
    with pytest.raises(ValueError) as error:
        automatic_arguments(arguments)
    assert str(error.value) == message


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        (TORCHRUN, (3, 16)),
        (SLURM, (9, 16)),
        (SLURM | TORCHRUN, (3, 16)),  # torchrun within srun
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, (0, 1)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),  # Lightning's own launcher
    ],
)
def test_who_has_started_this_process(monkeypatch, variables, expected):
    set_all(monkeypatch, variables)
    assert process_of_run() == expected


def test_one_process_writes_the_hydra_folder_and_each_its_own_log(monkeypatch):
    command = ["task=alpaca", "hydra.run.dir=out"]
    assert started_arguments(command) == command
    set_all(monkeypatch, SLURM)
    assert started_arguments(command) == [*command, "hydra.output_subdir=null", "hydra.job.name=train_process_9"]
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert started_arguments(command) == command
    assert started_arguments(["resume=out"]) == ["resume=out"], "which brings the folder with it"


def test_many_processes_need_one_folder(monkeypatch):
    set_all(monkeypatch, TORCHRUN)
    with pytest.raises(ValueError) as error:
        started_arguments(["task=alpaca"])
    assert str(error.value) == (
        "torchrun or SLURM has started 16 processes of this run, which need one folder: give hydra.run.dir=<folder>."
    )


def test_a_file_that_the_first_process_is_writing(tmp_path, monkeypatch):
    path = tmp_path / "overrides.yaml"
    path.write_text("")
    assert settled_text(path) == "", "one process alone: nobody else writes"
    set_all(monkeypatch, TORCHRUN)
    contents = iter(["- seed", "", "- seed=1", "- seed=1"])
    monkeypatch.setattr("time.sleep", lambda seconds: path.write_text(next(contents)))
    assert settled_text(path) == "- seed=1"


def test_lightning_does_not_put_a_job_into_the_queue_again(monkeypatch):
    assert cluster_plugins() == []
    set_all(monkeypatch, SLURM)
    plugins = cluster_plugins()
    assert [type(plugin) for plugin in plugins] == [SLURMEnvironment]
    assert not plugins[0].auto_requeue
    set_all(monkeypatch, TORCHRUN)
    assert cluster_plugins() == [], "torchrun's own environment comes first"


def test_the_environment_is_read_as_lightning_reads_it(monkeypatch):
    set_all(monkeypatch, SLURM)
    environment = SLURMEnvironment(auto_requeue=False)
    assert requeue.process_of_run() == (environment.global_rank(), environment.world_size())
