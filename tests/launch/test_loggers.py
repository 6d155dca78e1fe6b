"""The loggers of a run, and what each is handed at the end: only what it takes."""

import json
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig

from llama_adapter.csv_logger import RunCsvLogger
from llama_adapter.launch.entry import register_resolvers
from llama_adapter.launch.loggers import close, log_results, loggers_of, predictions
from llama_adapter.launch.schema import register_schemas
from llama_adapter.wandb_logger import RunWandbLogger
from tests.conftest import ROOT


def config(*overrides: str) -> DictConfig:
    register_schemas()
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["output_dir=/nowhere", *overrides])


def wandb_of(given: DictConfig, **options: object) -> RunWandbLogger:
    csv, logger = loggers_of(given, job_type="train", **options)
    assert isinstance(csv, RunCsvLogger)
    return logger


def test_metrics_csv_is_beside_wandb(tmp_path):
    settings = wandb_of(config("logger=wandb", f"output_dir={tmp_path}"))._wandb_init
    assert (settings["project"], settings["group"], settings["job_type"]) == (
        "llama-adapter",
        "miniature/alpaca",
        "train",
    )
    assert settings["tags"] == ["miniature/alpaca", "miniature_llama"]
    assert (settings["name"], settings["dir"], settings["id"]) == (tmp_path.name, str(tmp_path), None)
    assert not list(tmp_path.iterdir())  # nothing begins before it is used


def test_jobs_of_a_sweep_stand_together(tmp_path):
    (tmp_path / "my_sweep").mkdir()
    (tmp_path / "my_sweep/sweep.csv").touch()
    folder = tmp_path / "my_sweep/0_adapter.prompt_length=5,seed=1"
    settings = wandb_of(config("logger=wandb", f"output_dir='{folder}'"))._wandb_init
    assert (settings["group"], settings["name"]) == ("my_sweep", "0_adapter.prompt_length=5,seed=1")


def test_a_resumed_run_keeps_its_id():
    given = config("logger=wandb")
    assert wandb_of(given, run_ids={"RunWandbLogger": "abc123"}).run_id == "abc123"
    assert wandb_of(given, run_ids={}).run_id is None
    typed = config("logger=wandb", "logger.wandb.run_id=mine", "logger.wandb.job_type=probe")
    assert wandb_of(typed, run_ids={"RunWandbLogger": "abc123"}).run_id == "mine"
    assert wandb_of(typed)._wandb_init["job_type"] == "probe"


def test_the_project_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    assert wandb_of(config("logger=wandb")).name == "ours"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "import of wandb halted; None in sys.modules"),  # as the interpreter says it of one that is not there
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("raise TypeError('Descriptors cannot be\\ncreated directly.')", "Descriptors cannot be created directly."),
    ],
)
def test_wandb_that_cannot_be_imported(content, reason, monkeypatch, tmp_path, caplog):
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    if content is None:
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        (tmp_path / "wandb.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
    (csv,) = loggers_of(config("logger=wandb"), job_type="train")
    assert isinstance(csv, RunCsvLogger)
    assert caplog.messages == [
        f"logger=wandb needs the package wandb, which cannot be imported ({reason}): the run has metrics.csv alone."
    ]


def test_a_misspelt_key():
    with pytest.raises(ValueError, match="wandb: .*unexpected keyword argument 'grup'. Did you mean 'group'?"):
        loggers_of(config("logger=wandb", "+logger.wandb.grup=x"), job_type="train")


# --- what is handed over ----------------------------------------------------------------------------------------------


class Taking(DummyLogger):
    """Notes what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def log_table(self, key: str, columns: list[str], data: list[list]) -> None:
        self.calls.append((key, columns, data))

    def log_image(self, key: str, images: list[str]) -> None:
        self.calls.append((key, images))

    def log_summary(self, metrics: dict[str, float]) -> None:
        self.calls.append(("summary", metrics))

    def log_adapter(self, path: Path, metrics: dict[str, float]) -> None:
        self.calls.append(("adapter", path, metrics))

    def finalize(self, status: str) -> None:
        self.calls.append(("finalize", status))

    def close(self, *, failed: bool) -> None:
        self.calls.append(("close", failed))


def test_everything_is_handed_to_a_logger_that_takes_it(tmp_path):
    (tmp_path / "predictions.json").write_text('{"a": "red"}')
    for name in ("loss.png", "adapter.safetensors"):
        (tmp_path / name).touch()
    csv, taking = RunCsvLogger(tmp_path), Taking()
    log_results([csv, taking], tmp_path, {"test/loss": 1.0})
    assert taking.calls == [
        ("summary", {"test/loss": 1.0}),
        ("predictions", ["id", "prediction"], [["a", "red"]]),
        ("loss", [str(tmp_path / "loss.png")]),
        ("adapter", tmp_path / "adapter.safetensors", {"test/loss": 1.0}),
    ]
    assert csv.rows == {}


def test_what_a_run_did_not_write_is_not_handed_over(tmp_path):
    taking = Taking()
    log_results([taking], tmp_path, {})
    assert taking.calls == [("summary", {})]


@pytest.mark.parametrize(("failed", "status"), [(False, "success"), (True, "failed")])
def test_the_end(tmp_path, failed, status):
    taking = Taking()
    close([RunCsvLogger(tmp_path), taking], failed=failed)
    assert taking.calls == [("finalize", status), ("close", failed)]
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("name", "content", "columns", "rows"),
    [
        # Alpaca: records with an answer; an input may be missing. The first file that there is counts.
        (
            "generations.jsonl",
            '{"instruction": "Say.", "answer": "a"}\n{"instruction": "Do.", "input": "it", "answer": "b"}\n',
            ["instruction", "answer", "input"],
            [["Say.", "a", ""], ["Do.", "b", "it"]],
        ),
        ("captions.json", '[{"image_id": 7, "caption": "a dog"}]', ["image_id", "caption"], [[7, "a dog"]]),
        ("predictions.json", '{"q1": "in 1066", "q2": ""}', ["id", "prediction"], [["q1", "in 1066"], ["q2", ""]]),
        ("predictions.json", '{"results": {"11": 0, "12": 2}}', ["id", "prediction"], [["11", 0], ["12", 2]]),
        (
            "generations.jsonl",
            '{"score": 1, "spans": [1, 2]}\n{"score": 0.5}\n',
            ["score", "spans"],
            [["1", "[1, 2]"], ["0.5", "null"]],
        ),
    ],
)
def test_predictions_of_every_format(tmp_path, name, content, columns, rows):
    (tmp_path / name).write_text(content)
    assert predictions(tmp_path) == (columns, rows)


def test_two_hundred_predictions_at_most(tmp_path):
    (tmp_path / "predictions.json").write_text(json.dumps({str(n): "x" for n in range(1000)}))
    columns, rows = predictions(tmp_path)
    assert (columns, len(rows), rows[-1]) == (["id", "prediction"], 200, ["199", "x"])


def test_no_predictions(tmp_path):
    assert predictions(tmp_path) == ([], [])
    (tmp_path / "predictions.json").write_text("{}")
    assert predictions(tmp_path) == ([], [])
