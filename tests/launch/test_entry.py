"""What a user sees who mistypes, and how a run folder that is named again brings its settings back."""

import signal
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from llama_adapter.launch import entry
from llama_adapter.run_checkpoint import StoppedAtOnce
from tests.conftest import ROOT
from tests.tiny_run import call

PLAN = ("task=alpaca", "trainer=8xa100", "plan=true")


CONF = ROOT / "conf/task"
TASKS = ", ".join(sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("task=alpacca", f"task=alpacca does not exist. Choose {TASKS}. Did you mean 'alpaca'?"),
        (
            "trainer=8xA100",
            "trainer=8xA100 does not exist. Choose 1gpu, 1xh200, 2nodes_8xa100, 8xa100, 8xa100_ddp, cpu, cpu_2, cpu_2_ddp. Did you mean '8xa100'?",
        ),
        ("experiment=alpaca", "experiment=alpaca does not exist. Choose alpaca_paper. Did you mean 'alpaca_paper'?"),
        (
            "adapter.prompt_lenght=5",
            "Unknown key 'adapter.prompt_lenght'. Did you mean 'adapter.prompt_length'?",
        ),
        ("trainer.max_epoch=5", "Unknown key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
        (
            "adapter.prompt_length=ten",
            "adapter.prompt_length: Value 'ten' of type 'str' could not be converted to Integer.",
        ),
        (
            "adapter.prompt_length=2.5",
            "adapter.prompt_length: Value '2.5' of type 'float' could not be converted to Integer.",
        ),
        (
            "++hardware.memory_gib=much",
            "hardware.memory_gib: Value 'much' of type 'str' could not be converted to Float.",
        ),
        ("adapter.prompt_length=0", "adapter.prompt_length must be at least 1, got 0."),
        (
            "+adapter.prompt_lenght=5",
            "adapter: AdapterConfig.__init__() got an unexpected keyword argument 'prompt_lenght'. "
            "Did you mean 'prompt_length'?",
        ),
        ("+sead=1", "Unknown key 'sead'. Did you mean 'seed'?"),
        ("+model.dtipe=float32", "Unknown key 'model.dtipe'. Did you mean 'dtype'?"),
        ("+model.architecture.layer=2", "Unknown key 'model.architecture.layer'. Did you mean 'layers'?"),
        ("model.quantization=int3", "model.quantization is 'int3'. Choose int8, nf4 or null."),
        ("trainer.max_epochs=ten", "trainer.max_epochs must be a whole number of at least -1, got 'ten'."),
        ("model=custom", "model.path has no value. Give it: model.path=<value>."),
        ("seed=-1", "seed must be a whole number of at least 0, got -1."),
        ("trainer.devices=auto", "trainer.devices is 'auto'. Give their number, or a list of their indices."),
        ("adapter.prompt_length=[1", "Cannot read the argument 'adapter.prompt_length=[1': no viable alternative at input '[1'"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_sentence(tmp_path, typed, message):
    overrides = [override for override in PLAN if override.split("=")[0] != typed.split("=")[0]]
    result = call("train.py", *overrides, typed, f"hydra.run.dir={tmp_path}")
    assert (result.status, result.error) == (1, message)
    assert "Traceback" not in result.output


def test_the_trace_is_there_for_those_who_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match=r"adapter\.prompt_length must be at least 1, got 0\."):
        call("train.py", *PLAN, "adapter.prompt_length=0", f"hydra.run.dir={tmp_path}")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("one\n  two."), "one two."),
        (FileNotFoundError("No file."), "No file."),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            "A data worker (process 71) has died of signal KILLED, most often for want of memory. Set "
            "data.num_workers lower, or to 0, and go on with resume=<run folder>.",
        ),
        (KeyError("x"), "KeyError: 'x' Set HYDRA_FULL_ERROR=1 to see where it comes from."),
    ],
)
def test_sentences(error, sentence):
    assert entry.sentence(error) == sentence


def stopped(number: int) -> Exception:
    error = RuntimeError("stopped")
    error.signal_number = number
    return error


def as_lightning_exits(interrupt: KeyboardInterrupt) -> SystemExit:
    try:
        try:
            raise interrupt
        except KeyboardInterrupt:
            sys.exit(1)
    except SystemExit as end:
        return end


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (stopped(signal.SIGTERM), 143),
        (stopped(signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
        (ValueError("x"), 1),
        (as_lightning_exits(KeyboardInterrupt()), 130),
        (as_lightning_exits(StoppedAtOnce(signal.SIGTERM)), 143),
        (SIGTERMException(), 143),
        (SystemExit(3), 3),
    ],
)
def test_exit_statuses(monkeypatch, error, status):
    def main() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["train.py"])
    for name in (entry.FULL_ERROR, entry.ONE_SENTENCE):
        monkeypatch.setenv(name, "")  # so that what `run` sets is taken back
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as end:
        entry.run(main, restore="resume")
    assert end.value.code == status


def make_folder(folder, *overrides: str):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra/overrides.yaml")
    return folder


def values(arguments) -> dict[str, object]:
    """As Hydra reads them."""
    return {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(arguments)}


def test_resume_brings_the_overrides_back_in_front_of_the_typed_ones(tmp_path):
    folder = make_folder(tmp_path / "run", "task=alpaca", "trainer.max_epochs=3", "plan=true", "resume=old")
    assert entry.restored_arguments([f"resume={folder}", "trainer.max_epochs=5"], "resume") == [
        "task=alpaca",
        f"resume='{folder}'",
        "trainer.max_epochs=5",
        f"hydra.run.dir='{folder}'",
    ]


def test_an_adapters_folder_is_only_read(tmp_path):
    folder = make_folder(tmp_path / "run", "task=alpaca", "resume=old")
    arguments = entry.restored_arguments([f"adapter_path={folder}"], "adapter_path")
    assert arguments == ["task=alpaca", f"adapter_path='{folder}'"]


@pytest.mark.parametrize(
    "name", ["a run", "0_seed=1,model.path=x", "it's", "a (b) [c] {d}", 'say "x"', "back\\slash", "end\\", "b\\'q", "ü"]
)
def test_names_of_folders_that_hydra_would_not_read(tmp_path, name):
    folder = make_folder(tmp_path / name, "seed=1")
    given = values(entry.restored_arguments([f"resume={folder}"], "resume"))
    assert given == {"seed": 1, "resume": str(folder), "hydra.run.dir": str(folder)}


def test_a_folder_that_the_user_quoted_for_hydra(tmp_path):
    folder = make_folder(tmp_path / "a run", "seed=1")
    assert values(entry.restored_arguments([f"resume='{folder}'"], "resume"))["resume"] == str(folder)


@pytest.mark.parametrize(
    ("stored", "typed", "expected"),
    [
        ("seed=1", "seed=2", ["seed=2"]),
        ("task=alpaca", "task=miniature/alpaca", ["task=miniature/alpaca"]),
        ("+trainer.x=1", "+trainer.x=2", ["+trainer.x=2"]),
        ("+trainer.x=1", "++trainer.x=2", ["++trainer.x=2"]),
        ("+trainer.x=1", "trainer.x=2", ["+trainer.x=1", "trainer.x=2"]),
        ("seed=1", "trainer.x=2", ["seed=1", "trainer.x=2"]),
        ("~callbacks.samples", "~callbacks.samples", ["~callbacks.samples"]),
        ("sweep=grid_k_l", "seed=2", ["seed=2"]),
        ("sweep.redo=all", "seed=2", ["seed=2"]),
    ],
)
def test_an_override_typed_again(tmp_path, stored, typed, expected):
    folder = make_folder(tmp_path / "run", stored)
    restored = entry.restored_arguments([f"adapter_path={folder}", typed], "adapter_path")
    assert [argument for argument in restored if not argument.startswith("adapter_path=")] == expected


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", "3"),
        ("adapter.prompt_length=5,model.dtype=float32", "3_adapter.prompt_length=5,model.dtype=float32"),
        ("model.path=/data/llama", "3_model.path=_data_llama"),
        ("a=" + "x" * 300, "3_a=" + "x" * 96),
    ],
)
def test_the_folder_of_a_sweeps_job(overrides, name):
    assert entry.job_folder(3, overrides) == name


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["resume=null"], ["resume="], ["--help"]])
def test_nothing_to_restore(arguments):
    assert entry.restored_arguments(arguments, "resume") == arguments


def test_a_file_brings_no_overrides(tmp_path):
    file = tmp_path / "adapter.safetensors"
    file.touch()
    assert entry.restored_arguments([f"adapter_path={file}"], "adapter_path") == [f"adapter_path='{file}'"]


def test_auto_resumes_with_the_runs_own_settings(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "a run", "seed=3", "trainer.max_epochs=3")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step_000001.ckpt").touch()
    monkeypatch.setattr("sys.argv", ["train.py", "seed=3", "resume=auto", f"hydra.run.dir='{folder}'"])
    seen = []
    entry.run(lambda: seen.extend(sys.argv[1:]), restore="resume")
    assert values(seen) == {"trainer.max_epochs": 3, "seed": 3, "resume": str(folder), "hydra.run.dir": str(folder)}


def test_auto_without_a_folder_ends_in_one_sentence():
    result = call("train.py", "resume=auto")
    assert (result.status, result.error) == (
        1, "resume=auto needs the run's folder: give hydra.run.dir=<folder>, the same every time."
    )  # fmt: skip


def test_resuming_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        entry.restored_arguments([f"resume={tmp_path}"], "resume")
    assert str(error.value) == f"resume={tmp_path} is no run folder: it has no .hydra/overrides.yaml."
