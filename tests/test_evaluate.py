"""Evaluation from the command line: of a run's folder, a file, the frozen model, and of what it must refuse."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llama_adapter.attach import attach
from llama_adapter.checkpoint import export_authors, load_adapter, save_adapter
from llama_adapter.loading import load_backbone
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.tiny_run import TinyWorld, call, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run_folder(world, tmp_path_factory) -> Path:
    """A finished run; its name has what Hydra's grammar gives a meaning to."""
    folder = tmp_path_factory.mktemp("runs") / "0_seed=0,a run"
    result = call("train.py", *world.overrides(folder))
    assert result.status == 0, result.output
    return folder


def evaluate(tmp_path, *arguments: object):
    return call("evaluate.py", *arguments, f"hydra.run.dir='{tmp_path / 'evaluation'}'")


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def settings(world: TinyWorld) -> list[str]:
    """Those of the run, for an adapter whose file says nothing of them."""
    return world.overrides(None)


def test_a_run_folder_alone_brings_its_settings(run_folder, tmp_path):
    result = evaluate(tmp_path, f"adapter_path={run_folder}")
    assert result.status == 0, result.output
    trained, found = metrics(run_folder), metrics(tmp_path / "evaluation")
    common = {name for name in trained if name.startswith("test/")}
    assert {name: found[name] for name in common} == {name: trained[name] for name in common}
    # the frozen model's loss is measured besides
    assert found["test/frozen_loss"] > trained["test/loss"]
    for name in ("generations.jsonl", "generations_frozen.jsonl"):
        assert (tmp_path / "evaluation" / name).read_bytes() == (run_folder / name).read_bytes()
    assert "exact_match" in result.output


def test_evaluation_leaves_the_runs_folder_as_it_is(run_folder, tmp_path):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert evaluate(tmp_path, f"adapter_path={run_folder}", "task.evaluation.max_new_tokens=2").status == 0
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_a_file(world, run_folder, tmp_path):
    file = tmp_path / "mine.safetensors"
    shutil.copy(run_folder / "adapter.safetensors", file)
    assert evaluate(tmp_path, f"adapter_path={file}", *settings(world)).status == 0
    assert metrics(tmp_path / "evaluation")["test/loss"] == metrics(run_folder)["test/loss"]


def test_a_files_own_shape_is_used_whatever_the_configuration_says(run_folder, world, tmp_path):
    arguments = [a for a in settings(world) if not a.startswith("adapter.")]
    file = run_folder / "adapter.safetensors"
    assert evaluate(tmp_path, f"adapter_path={file}", *arguments, "adapter.prompt_length=7").status == 0
    assert metrics(tmp_path / "evaluation")["test/loss"] == metrics(run_folder)["test/loss"]


def test_the_frozen_model(world, run_folder, tmp_path):
    assert evaluate(tmp_path, "adapter_path=null", *settings(world)).status == 0
    found = metrics(tmp_path / "evaluation")
    assert {"test/frozen_loss", "test/frozen_exact_match"} <= set(found)
    assert all(name.startswith("test/frozen_") for name in found)
    assert not (tmp_path / "evaluation/generations.jsonl").exists()


def test_a_file_of_the_authors_layout(world, run_folder, tmp_path):
    model = load_adapter(load_backbone(world.model), run_folder)
    file = export_authors(model, tmp_path / "theirs.pth")
    assert evaluate(tmp_path, f"adapter_path={file}", *settings(world)).status == 0
    assert metrics(tmp_path / "evaluation")["test/loss"] == metrics(run_folder)["test/loss"]


def test_instructions_without_outputs(run_folder, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"instruction": "Name {it}."}\n{"instruction": "Name it.", "input": "the red ball", "id": 7}\n'
    )
    result = evaluate(tmp_path, f"adapter_path={run_folder}", f"instructions={questions}")
    assert result.status == 0, result.output
    lines = (tmp_path / "evaluation/generations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["instruction"], row["input"]) for row in rows] == [("Name {it}.", ""), ("Name it.", "the red ball")]
    assert all(isinstance(row["answer"], str) for row in rows)
    assert not (tmp_path / "evaluation/metrics.json").exists()
    assert "2 answers are in " in result.output


def test_an_adapter_of_another_backbone_is_refused_before_weights_are_read(run_folder, tmp_path, no_weights):
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    model = attach(tiny_model("llama", hidden_size=16), AdapterConfig(prompt_length=2, prompt_layers=1))
    save_adapter(model, other, backbone="tiny_16")
    result = evaluate(tmp_path, f"adapter_path='{other}'")
    assert result.status == 1
    assert result.error.startswith(
        f"{other}/adapter.safetensors does not fit this backbone: hidden_size 16 in the adapter, 32 in the model; "
    )
    assert result.error.endswith("Load the backbone that it was trained on (tiny_16).")


def test_an_adapter_of_other_weights_of_the_same_shape(world, run_folder, tmp_path, no_weights):
    weights = tmp_path / "weights"
    shutil.copytree(world.model, weights)
    tiny_model("llama", seed=1, vocab_size=340).save_pretrained(weights)
    result = evaluate(tmp_path, f"adapter_path={run_folder}", f"model.path={weights}")
    assert "it was trained on other weights of the same shape (fingerprint " in result.error


def changed_adapter(run_folder: Path, folder: Path, change) -> Path:
    """The run's adapter with changed tensors."""
    with safe_open(run_folder / "adapter.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        change(tensors)
        save_file(tensors, folder / "changed.safetensors", metadata=file.metadata())
    return folder / "changed.safetensors"


def test_an_adapter_that_is_cut_off(world, run_folder, tmp_path, no_weights):
    file = tmp_path / "cut.safetensors"
    file.write_bytes((run_folder / "adapter.safetensors").read_bytes()[:-100])
    error = evaluate(tmp_path, f"adapter_path={file}", *settings(world)).error
    assert error.startswith(f"{file} is damaged or not a safetensors file: ")


def test_an_adapter_that_is_not_finite(world, run_folder, tmp_path, no_weights):
    file = changed_adapter(run_folder, tmp_path, lambda tensors: tensors["layers.2.prompt"].fill_(torch.nan))
    assert evaluate(tmp_path, f"adapter_path={file}", *settings(world)).error == (
        f"{file}: layers.2.prompt has 96 of 96 numbers that are not finite."
    )


def test_an_adapter_with_a_tensor_missing(world, run_folder, tmp_path, no_weights):
    file = changed_adapter(run_folder, tmp_path, lambda tensors: tensors.pop("layers.1.gate"))
    assert evaluate(tmp_path, f"adapter_path={file}", *settings(world)).error == (
        f"{file} has no tensor layers.1.gate (1 missing)."
    )


def test_a_tokenizer_of_another_model(world, run_folder, tmp_path, no_weights):
    weights = tmp_path / "weights"
    tiny_model("llama", vocab_size=100).save_pretrained(weights)
    arguments = [f"model.path={weights}", f"model.tokenizer={world.model}", "adapter_path=null"]
    error = evaluate(tmp_path, *(a for a in settings(world) if not a.startswith("model.")), *arguments).error
    assert error.startswith(f"The tokenizer {world.model} has 340 ids, but the model has embeddings for 100.")


class Code:
    def __reduce__(self):
        return Path("ran").touch, ()


def test_a_file_that_would_run_code(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("torch.pth", lambda file: torch.save({"adapter_query.weight": Code()}, file)),
        ("plain.pth", lambda file: file.write_bytes(pickle.dumps(Code()))),
    ):
        file = tmp_path / name
        write(file)
        result = evaluate(tmp_path, f"adapter_path={file}", *settings(world))
        assert result.status == 1
        assert str(file) in result.error
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_is_not_there(world, tmp_path, no_weights):
    assert evaluate(tmp_path, f"adapter_path={tmp_path}/none", *settings(world)).error == (
        f"No adapter {tmp_path}/none. Set adapter_path to an adapter file or to a run's folder."
    )


def test_a_run_that_has_not_finished(run_folder, tmp_path, no_weights):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "adapter.safetensors").unlink()
    assert evaluate(tmp_path, f"adapter_path={folder}").error == (
        f"No adapter {folder}/adapter.safetensors. Set adapter_path to an adapter file or to a run's folder."
    )


def test_a_mistyped_key(world, tmp_path):
    assert evaluate(tmp_path, *settings(world), "adaptor_path=x").error == (
        "Unknown key 'adaptor_path'. Did you mean 'adapter_path'?"
    )
