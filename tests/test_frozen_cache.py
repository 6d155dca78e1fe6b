"""The frozen layers' outputs on disk: the same losses, gradients and runs as without, and which file is used again."""

import csv
import json
import logging
import os
import pickle
import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_adapter.attach import attach
from llama_adapter.backbones import layers_of
from llama_adapter.data import PaddedCollator
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.frozen_cache import ABANDONED, ROW_TOKENS, CachedExamples, cache_frozen
from llama_adapter.frozen_states import frozen_layers_skipped
from llama_adapter.launch import build
from llama_adapter.layer_modes import checkpoint_layers
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import FAMILY_SHAPES, tiny_model
from tests.launch.test_build import config
from tests.test_flat_training import adapted, assert_equal, examples, step
from tests.tiny_run import TinyWorld, call, make_world

# Here a layer's number tells which mask it gets.
MIXED_WINDOWS = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 6,
    "use_sliding_window": True,
}
SHAPES = {shape: {} for shape in FAMILY_SHAPES} | {"qwen2_mixed_windows": MIXED_WINDOWS}
FLAT, PADDED = FlatCollator(0), PaddedCollator(0)


def cached(model, data, folder: Path) -> CachedExamples:
    return cache_frozen(model, {"train": data}, folder)["train"]


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


class Calls:
    """Counts the calls of a model's lowest layer."""

    def __init__(self, model) -> None:
        self.number = 0
        layers_of(model)[0].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.number += 1


@pytest.mark.parametrize("collator", [FLAT, FlatCollator(0, share_prefixes=False, multiple=64), PADDED])
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_those_without(tmp_path, shape, collator):
    model, data = adapted(shape.removesuffix("_mixed_windows"), **SHAPES[shape]), examples(10)
    expected = step(model, collator(data))
    states, calls = cached(model, data, tmp_path), Calls(model)
    assert_equal(step(model, collator([*states])), expected)
    assert calls.number == 0


def test_the_shared_prefixes_are_still_shared(tmp_path):
    model, data = adapted(), examples(10)
    batch = FLAT([*cached(model, data, tmp_path)])
    assert torch.equal(batch["input_ids"], FLAT(data)["input_ids"])
    assert batch["states"].shape == (*batch["input_ids"].shape, 32)
    assert batch["counts"].computed < batch["counts"].useful


@pytest.mark.parametrize("kept", ["layer", "products"])
def test_layers_that_are_computed_again_are_the_adapted_ones(tmp_path, kept):
    model, data = adapted(), examples(6)
    expected = step(model, FLAT(data))
    states, calls = cached(model, data, tmp_path), Calls(model)
    checkpoint_layers(model, kept)
    assert_equal(step(model, FLAT([*states])), expected)
    assert calls.number == 0


def test_half_precision_keeps_its_bits(tmp_path):
    model, data = adapted(dtype=torch.bfloat16), examples(4)
    states = cached(model, data, tmp_path)
    assert states[3]["states"].dtype == torch.bfloat16
    given = []
    layers_of(model)[1].register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0][0]))
    step(model, FlatCollator(0, share_prefixes=False)(data))
    assert torch.equal(torch.cat([example["states"] for example in states]), given[0])


def test_a_device_without_examples_computes_padding(tmp_path):
    model = adapted()
    cached(model, examples(4), tmp_path)
    loss, trained = step(model, FLAT([]))[:2]
    assert (loss, trained) == (0.0, 0)


def test_more_tokens_than_are_computed_at_once(tmp_path):
    model, data = adapted(max_position_embeddings=ROW_TOKENS), examples(3) + examples(150, seed=1)
    long = {"input_ids": torch.arange(ROW_TOKENS) % 64, "labels": torch.full((ROW_TOKENS,), -100)}
    data = [*data, long, *examples(2, seed=2)]
    states = cached(model, data, tmp_path)
    expected = cached(model, data[-1:], tmp_path / "alone")[0]["states"]
    torch.testing.assert_close(states[len(data) - 1]["states"], expected, rtol=0, atol=1e-5)  # of float32 sums


def test_the_layers_come_back_after_an_error():
    model = adapted()
    before = layers_of(model)
    with pytest.raises(KeyError), frozen_layers_skipped(model):
        raise KeyError
    assert layers_of(model) == before


def test_a_file_is_used_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, "llama_adapter")
    data = examples(6)
    cached(adapted(), data, tmp_path)
    file = only_file(tmp_path)
    before = file.stat().st_mtime_ns
    again = adapted()
    calls = Calls(again)
    states = cached(again, data, tmp_path)
    assert (only_file(tmp_path), file.stat().st_mtime_ns) == (file, before)
    assert calls.number == 1  # of the first example, to be compared
    assert caplog.messages[-1] == f"train: the outputs of the frozen layers are in {file}."
    assert file.stat().st_mode & 0o777 == 0o644
    assert load_file(file)["states"].shape == (sum(len(e["input_ids"]) for e in data), 32)
    step(again, FLAT([*states]))
    assert calls.number == 1


def test_a_data_worker_maps_the_file_itself(tmp_path):
    states = cached(adapted(), examples(4), tmp_path)
    first = states[0]["states"]
    copy = pickle.loads(pickle.dumps(states))
    assert copy._states is None
    assert torch.equal(copy[0]["states"], first)


def test_what_states_depend_on_has_a_file_of_its_own(tmp_path):
    data = examples(4)
    for model in (
        adapted(),
        adapted(prompt_layers=1),
        adapted(dtype=torch.bfloat16),
        adapted(rms_norm_eps=1e-3),
        attach(tiny_model(seed=5), AdapterConfig(prompt_length=3, prompt_layers=2)),
    ):
        cached(model, data, tmp_path)
    cached(adapted(), examples(4, seed=1), tmp_path)
    assert len([*tmp_path.iterdir()]) == 6
    torch.manual_seed(3)
    other_prompts = attach(tiny_model(), AdapterConfig(prompt_length=8, prompt_layers=2))
    other_labels = [example | {"labels": torch.full_like(example["labels"], -100)} for example in data]
    cached(other_prompts, other_labels, tmp_path)
    assert len([*tmp_path.iterdir()]) == 6


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: os.truncate(file, file.stat().st_size - 1), ".+"),
        (lambda file: file.write_bytes(b""), ".+"),
        (
            lambda file: file.write_bytes(file.read_bytes().replace(b"token_ids", b"token_ide")),
            "it is of another model or of other examples",
        ),
    ],
)
def test_a_damaged_file_is_made_again(tmp_path, caplog, damage, reason):
    model, data = adapted(), examples(4)
    cached(model, data, tmp_path)
    file = only_file(tmp_path)
    whole = file.read_bytes()
    damage(file)
    cached(model, data, tmp_path)
    warning = caplog.messages[-1]
    assert re.fullmatch(rf"{re.escape(str(file))} is not used: {reason}\. It is made again\.", warning), warning
    assert file.read_bytes() == whole


def test_weights_that_the_fingerprint_does_not_see(tmp_path, caplog):
    model, data = adapted(), examples(4)
    cached(model, data, tmp_path)
    with torch.no_grad():
        layers_of(model)[0].mlp.up_proj.weight.mul_(1.5)
    expected = step(model, FLAT(data))
    assert_equal(step(model, FLAT([*cached(model, data, tmp_path)])), expected)
    assert re.search(r"its first example is off by [\d.]+%, so the frozen weights are others\.", caplog.text)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: namedtuple("Usage", "free")(1000))
    data = examples(2)
    needed = sum(len(example["input_ids"]) for example in data) * 32 * 4
    message = (
        f"data.cache_frozen needs {needed} bytes (0.0 GiB) in {tmp_path}, where 1000 (0.0 GiB) are free. Set "
        "data.cache_folder to a larger disk, or data.cache_frozen=false."
    )
    with pytest.raises(OSError, match=re.escape(message)):
        cached(adapted(), data, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_is_left_of_failed_and_killed_jobs(tmp_path, monkeypatch):
    model, data = adapted(), examples(4)
    cached(model, data, tmp_path)
    file = only_file(tmp_path)
    file.unlink()
    killed, running = (tmp_path / f"{file.stem}.{name}.part" for name in ("killed", "running"))
    killed.touch()
    running.touch()
    os.utime(killed, (0, running.stat().st_mtime - ABANDONED - 10))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("os.fsync", full)
        cached(model, data, tmp_path)
    assert only_file(tmp_path) == running
    cached(model, data, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([file, running])


def test_many_adapted_layers_gain_little(tmp_path, caplog):
    cached(adapted(prompt_layers=1), examples(2), tmp_path)
    assert not caplog.records
    cached(adapted(), examples(2), tmp_path)
    assert caplog.messages == [
        "data.cache_frozen gains little with adapter.prompt_layers=2 of 3: a step still takes 80 % of the time. It "
        "is for adapter.prompt_layers of at most 1."
    ]


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("batching", ["flat", pytest.param("padded", marks=pytest.mark.slow)])
def test_a_run_has_the_numbers_of_one_without(world, tmp_path, batching):
    cache = {"data__cache_frozen": "true", "data__cache_folder": tmp_path / "frozen"}
    folders = tmp_path / "with", tmp_path / "without"
    for folder, keys in zip(folders, (cache, {}), strict=True):
        result = call("train.py", *world.overrides(folder, data__batching=batching, **keys))
        assert result.status == 0, result.output
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[1].items():
        if not name.startswith("throughput/"):
            assert metrics[0][name] == pytest.approx(value, rel=1e-6), name
    losses = [[row["train/loss"] for row in csv.DictReader((f / "metrics.csv").open())] for f in folders]
    assert [float(x or 0) for x in losses[0]] == pytest.approx([float(x or 0) for x in losses[1]], rel=1e-6)
    assert len([*(tmp_path / "frozen").iterdir()]) == 3  # training, validation and test examples


def test_the_jobs_of_a_sweep_over_k_share_their_files(world, tmp_path):
    keys = {"data__cache_frozen": "true", "data__cache_folder": tmp_path / "frozen", "trainer__max_epochs": 1}
    overrides = [key for key in world.overrides(None, **keys) if not key.startswith("adapter.prompt_length")]
    swept = ["adapter.prompt_length=2,4", f"hydra.sweep.dir={tmp_path}/sweep"]
    result = call("train.py", "-m", *overrides, *swept)
    assert result.status == 0, result.output
    assert result.output.count("train: the frozen layers are computed once, into ") == 1
    assert result.output.count("train: the outputs of the frozen layers are in ") == 1
    assert len([*(tmp_path / "frozen").iterdir()]) == 3


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["task=squad_v1", "model=roberta_large", "adapter.prompt_layers=2"],
            "task=squad_v1 trains an encoder, and the cache is for decoders of text",
        ),
        (["task=coco_captions"], "task=coco_captions has images, and the cache is for text alone"),
        (["trainer=8xa100_ddp"], "trainer.devices asks for 8 devices in all, and the cache is for one"),
        (
            ["trainer=8xa100", "trainer.devices=1"],
            "the trainer's strategy shards the weights, and the cache needs them whole",
        ),
        (
            ["adapter=full", "adapter.prompt_layers=2"],
            "adapter.trained=all trains all layers: what the lower ones put out changes",
        ),
        (["model.dropout=true"], "with model.dropout=true the lower layers put out something else every time"),
        (["adapter.prompt_layers=32"], "adapter.prompt_layers is 32 of 32 layers: none is below"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_weights(no_weights, overrides, reason):
    task = [] if any(key.startswith("task=") for key in overrides) else ["task=alpaca"]
    message = f"data.cache_frozen is true, but {reason}. Set data.cache_frozen=false."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build.plan_run(config(*task, *overrides, "data.cache_frozen=true"))
