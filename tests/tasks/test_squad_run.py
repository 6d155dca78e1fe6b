"""SQuAD end to end: training on the official slice, evaluation of the adapter, and scores of files without a model."""

import json
import math
import subprocess

import pytest

from tests.conftest import ROOT, tiny_encoder
from tests.tiny_run import call, command
from tests.tiny_squad import byte_tokenizer, make_articles, roberta_tokenizer, write_squad

SLICE = "dev-v2.0-slice.json"


def write_model(folder, tokenizer):
    """A random RoBERTa in the Hugging Face layout."""
    tokenizer.save_pretrained(folder)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 200, "pad_token_id": 1}
    tiny_encoder("roberta", **options).save_pretrained(folder)
    return folder


def overrides(model, folder, **changed) -> list[str]:
    """The command line of a run of seconds."""
    values = {
        "task": "squad_v2", "trainer": "cpu", "model.path": model, "adapter.prompt_length": 3, "adapter.prompt_layers": 2,
        "task.data.max_length": 192, "task.data.doc_stride": 40, "task.data.max_question_length": 40,
        "data.global_batch_size": 4, "data.micro_batch_size": 2, "trainer.max_epochs": 2, "hydra.run.dir": folder,
    } | {key.replace("__", "."): value for key, value in changed.items()}  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    write_squad(folder, *make_articles(12), name="train-v2.0.json")
    write_squad(folder, *make_articles(3, start=50))
    return folder, write_model(folder / "model", byte_tokenizer())


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    more = {"task.data.root": world[0], "task.data.cache": folder / "cache", "task.data.validation_share": 0.2}
    result = call("train.py", *overrides(world[1], folder), *(f"{key}={value}" for key, value in more.items()))
    assert result.status == 0, result.output
    return folder


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run(finished):
    metrics = metrics_of(finished)
    assert {
        "test/exact",
        "test/f1",
        "test/HasAns_f1",
        "test/NoAns_exact",
        "test/best_f1",
        "test/best_f1_thresh",
    } <= metrics.keys()
    assert metrics["test/total"] == 9
    assert all(math.isfinite(metrics[name]) for name in ("train/loss", "val/loss", "test/loss"))
    assert len(list((finished / "cache").iterdir())) == 2
    for name in ("predictions", "nbest_predictions", "null_odds", "best_spans"):
        assert (finished / f"{name}.json").is_file()


def test_the_adapter_answers_as_at_the_end_of_its_run(world, finished, tmp_path):
    result = call("evaluate.py", *overrides(world[1], tmp_path, task__data__root=world[0], adapter_path=finished))
    assert result.status == 0, result.output
    assert (tmp_path / "predictions.json").read_text() == (finished / "predictions.json").read_text()
    assert metrics_of(tmp_path)["test/f1"] == metrics_of(finished)["test/f1"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["cpu_2", "cpu_2_ddp"])
def test_two_devices_train_the_run_of_one(world, finished, tmp_path, trainer):
    """An encoder in shards: its head is whole, and its one embedding of a segment is on the first device alone."""
    more = {"task.data.root": world[0], "task.data.cache": tmp_path / "cache", "task.data.validation_share": 0.2}
    settings = [*overrides(world[1], tmp_path / "run", trainer=trainer), *(f"{key}={more[key]}" for key in more)]
    arguments, environment = command("train.py", *settings)
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    two, one = ({k: v for k, v in metrics_of(f).items() if "throughput" not in k} for f in (tmp_path / "run", finished))
    assert two == pytest.approx(one, rel=1e-4)


def test_its_files_are_scored_again_without_a_model(world, finished, tmp_path, no_weights):
    arguments = [f"predictions={finished}/best_spans.json", f"na_probs={finished}/null_odds.json"]
    more = [f"task.data.root={world[0]}", "task.scoring.na_threshold=0", f"hydra.run.dir={tmp_path}"]
    result = call("evaluate.py", "task=squad_v2", *arguments, *more)
    assert result.status == 0, result.output
    metrics, trained = metrics_of(tmp_path), metrics_of(finished)
    assert metrics == {name: trained[f"test/{name}"] for name in metrics}
    assert {"exact", "f1", "total", "best_exact", "best_f1_thresh"} <= metrics.keys()
    assert "zero-init attention" in (tmp_path / "scores.txt").read_text()


@pytest.mark.parametrize(("version", "dataset"), [("v1", "dev-v1.1.rebuilt"), ("v2", "dev-v2.0.rebuilt")])
def test_published_predictions_from_the_command_line(shared, tmp_path, version, dataset, no_weights):
    """`dev-v1.1.json` in the root, gzipped: the official numbers stand in metrics.json under their own names."""
    golden = json.loads((shared / "data/squad/golden/official_scores.json").read_text())
    name = {"v1": "pred-v1.1-bert-ensemble", "v2": "pred-v2.0-bert-single"}[version]
    (tmp_path / "root").mkdir()
    (tmp_path / f"root/{dataset.removesuffix('.rebuilt')}.json.gz").symlink_to(shared / f"data/squad/{dataset}.json.gz")
    arguments = [f"predictions={shared}/data/squad/{name}.json.gz", f"task.data.root={tmp_path}/root"]
    result = call("evaluate.py", f"task=squad_{version}", *arguments, f"hydra.run.dir={tmp_path}/run")
    assert result.status == 0, result.output
    assert metrics_of(tmp_path / "run") == golden[name]["official"]


def test_na_probs_from_the_command_line(shared, tmp_path, no_weights):
    golden = json.loads((shared / "data/squad/golden/official_scores.json").read_text())["golden/pred-v2.0-mixed"]
    folder = shared / "data/squad/golden"
    arguments = [f"predictions={folder}/pred-v2.0-mixed.json.gz", f"na_probs={folder}/na_prob-v2.0-mixed.json.gz"]
    more = [
        f"task.data.root={shared}/data/squad",
        "task.data.test_file=dev-v2.0.rebuilt.json",
        f"hydra.run.dir={tmp_path}",
    ]
    result = call("evaluate.py", "task=squad_v2", *arguments, *more)
    assert result.status == 0, result.output
    assert metrics_of(tmp_path) == golden["official_with_na_prob_thresh_1.0"]


@pytest.mark.parametrize("encoder", ["random, RoBERTa's vocabulary", pytest.param("miniature", marks=pytest.mark.slow)])
def test_training_on_the_official_slice(shared, tmp_path, encoder):
    """The untouched file as training and as test data: the loss falls, and every question is answered."""
    data = {"root": shared / "data/squad", "train_file": SLICE, "test_file": SLICE, "validation_share": 0.2}
    if encoder == "miniature":  # with a tokenizer of its own, in which real text takes many pieces
        model = ROOT / "miniature/roberta"
        data |= {"max_length": 128, "max_question_length": 60, "doc_stride": 20}
    else:
        model = write_model(tmp_path / "model", roberta_tokenizer(shared))
    values = {f"task.data.{key}": value for key, value in data.items()}
    values |= {
        "data.global_batch_size": 16,
        "data.micro_batch_size": 16,
        "trainer.max_steps": 30,
        "optimizer.warmup_epochs": 0.1,
        "optimizer.base_learning_rate": 0.8,
    }
    result = call("train.py", *overrides(model, tmp_path / "run", **values))
    assert result.status == 0, result.output
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    losses = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert len(losses) == 30
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8]), losses
    metrics = metrics_of(tmp_path / "run")
    assert (metrics["test/total"], metrics["test/HasAns_total"]) == (1407, 705)
    assert len(json.loads((tmp_path / "run/predictions.json").read_text())) == 1407


def test_what_is_refused_before_any_weight_is_read(world, tmp_path, no_weights):
    more = {"task__data__root": world[0], "task__data__doc_stride": 9999}
    assert call("train.py", *overrides(world[1], tmp_path, **more)).error.startswith(
        "task.data.max_length 192 leaves 148 tokens of context beside a question of 40 and 4 special tokens, but "
    )
    assert call("train.py", *overrides(world[1], tmp_path, task__data__root=tmp_path)).error == (
        f"No file {tmp_path}/train-v2.0.json, nor train-v2.0.json.gz. Set task.data.root to the folder of SQuAD, or "
        "task.data.train_file to the file's name there."
    )
