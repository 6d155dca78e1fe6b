"""Saving and loading: the same bytes, the old file or the new one, and all or nothing of what is loaded."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from llama_adapter.adapter_file import METADATA_KEY, read_adapter
from llama_adapter.attach import adapters, attach
from llama_adapter.checkpoint import load_adapter, save_adapter
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import ROOT, tiny_model

IDS = torch.tensor([[1, 7, 9, 11, 13, 17]])
DETAILS = {"task": "alpaca", "template": "alpaca", "metrics": {"val/loss": 1.25}, "backbone": "tiny"}


def adapted(seed: int = 1, *, prompt_length: int = 3, prompt_layers: int = 2, gate_activation: str = "tanh", **options):
    torch.manual_seed(seed)
    config = AdapterConfig(prompt_length, prompt_layers, gate_activation, gate_init="random")
    return attach(tiny_model(**options), config)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def trained(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_round_trip_into_a_bare_model(tmp_path, activation):
    model = adapted(gate_activation=activation)
    file = save_adapter(model, tmp_path / "run", **DETAILS)
    assert file == tmp_path / "run/adapter.safetensors"
    for path in (file, str(file), tmp_path / "run"):
        loaded = load_adapter(tiny_model(), path)
        assert torch.equal(logits(loaded), logits(model))
        assert trained(loaded).keys() == trained(model).keys()


def test_round_trip_into_an_attached_model(tmp_path):
    file = save_adapter(adapted(1), tmp_path / "any name.safetensors")
    other = adapted(2)
    assert load_adapter(other, file) is other
    assert torch.equal(logits(other), logits(adapted(1)))


def test_what_a_file_holds(tmp_path):
    model = adapted()
    file = save_adapter(model, tmp_path, **DETAILS)
    tensors = load_file(file)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "layers.1.prompt": [3, 32],
        "layers.2.prompt": [3, 32],
        "layers.1.gate": [4],
        "layers.2.gate": [4],
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    with safe_open(file, framework="pt") as content:
        assert list(content.metadata()) == [METADATA_KEY], "one key: safetensors would write several in any order"
        header = json.loads(content.metadata()[METADATA_KEY])
    assert header == {
        "format_version": 1,
        "backbone": {
            "model_type": "llama",
            "name": "tiny",
            "hidden_size": 32,
            "layers": 3,
            "heads": 4,
            "key_value_heads": 4,
            "head_size": 8,
            "vocabulary_size": 64,
            "fingerprint": header["backbone"]["fingerprint"],
        },
        "prompt_length": 3,
        "prompt_layers": 2,
        "gate_activation": "tanh",
        "other_parameters": {},
        "task": "alpaca",
        "template": "alpaca",
        "metrics": {"val/loss": 1.25},
    }
    assert len(header["backbone"]["fingerprint"]) == 16


SAVE = """
import sys
from tests.test_checkpoint import DETAILS, adapted
from llama_adapter.checkpoint import save_adapter
save_adapter(adapted(), sys.argv[1], **DETAILS)
"""


def test_same_bytes_in_every_process(tmp_path):
    first = save_adapter(adapted(), tmp_path / "first", **DETAILS).read_bytes()
    assert METADATA_KEY.encode() in first
    for metrics in ({"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}):
        save_adapter(adapted(), tmp_path / next(iter(metrics)), metrics=metrics)
    assert (tmp_path / "a/adapter.safetensors").read_bytes() == (tmp_path / "b/adapter.safetensors").read_bytes()
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / "second")], env=environment, check=True, cwd=tmp_path)
    assert (tmp_path / "second/adapter.safetensors").read_bytes() == first
    assert save_adapter(load_adapter(tiny_model(), tmp_path / "first"), tmp_path, **DETAILS).read_bytes() == first


def test_bfloat16_base(tmp_path):
    model = attach(tiny_model().bfloat16(), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random"))
    file = save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(tiny_model().bfloat16(), file)), logits(model))
    load_adapter(tiny_model(), file)  # the same weights in another dtype are the same backbone


def test_other_trainable_parameters_travel(tmp_path):
    def with_head(seed: int):
        model = adapted(seed)
        model.head = nn.Linear(32, 2)
        return model

    model = with_head(1)
    file = save_adapter(model, tmp_path)
    assert read_adapter(file).metadata["other_parameters"] == {"head.weight": [2, 32], "head.bias": [2]}
    bare = tiny_model()
    bare.head = nn.Linear(32, 2)
    for other in (with_head(2), bare):
        load_adapter(other, file)
        assert torch.equal(other.head.weight, model.head.weight)
        assert trained(other).keys() == trained(model).keys()
        assert save_adapter(other, tmp_path / "again").read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match=r"has a tensor head\.bias that the model has no parameter for"):
        load_adapter(tiny_model(), file)
    with pytest.raises(ValueError, match=r"has no tensor head\.bias, which the model trains besides its prompts"):
        load_adapter(with_head(3), save_adapter(adapted(), tmp_path / "without"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = save_adapter(adapted(1), tmp_path)
    old = file.read_bytes()

    def full(*_args) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="No space left"):
                save_adapter(adapted(2), tmp_path)
        assert file.read_bytes() == old
        assert os.listdir(tmp_path) == [file.name], "no temporary file stays"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, value):
    model = adapted()
    adapters(model)[2].prompt.data[0, 3] = value
    with pytest.raises(ValueError, match=r"was not saved: layers\.2\.prompt has 1 of 96 numbers that are not finite"):
        save_adapter(model, tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="metrics must be finite plain numbers"):
        save_adapter(adapted(), tmp_path, metrics={"val/loss": value})


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match=r"The model has no adapter to save\. Call attach\(model, config\) first\."):
        save_adapter(tiny_model(), tmp_path)


def test_the_authors_suffix_is_not_ours(tmp_path):
    with pytest.raises(ValueError, match=r"adapter\.pth: adapters are saved as \*\.safetensors .* use export_authors"):
        save_adapter(adapted(), tmp_path / "adapter.pth")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"prompt_length": 5}, "prompt_length 3 in the file, 5 in the model"),
        ({"prompt_layers": 1}, "prompt_layers 2 in the file, 1 in the model"),
        ({"gate_activation": "identity"}, "gate_activation 'tanh' in the file, 'identity' in the model"),
    ],
)
def test_another_adapter_is_attached(tmp_path, other, message):
    file = save_adapter(adapted(), tmp_path)
    model = adapted(2, **other)
    before = trained(model)
    with pytest.raises(ValueError, match=f"{file} does not fit the attached adapter: {message}"):
        load_adapter(model, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained(model).items())


@pytest.mark.parametrize(("key", "value"), [("prompt_layers", 1), ("gate_activation", "identity")])
def test_our_file_knows_its_settings(tmp_path, key, value):
    file = save_adapter(adapted(), tmp_path)
    with pytest.raises(ValueError, match=f"{key} is {value!r}, but .* Leave it out: the file knows it"):
        load_adapter(tiny_model(), file, **{key: value})
    load_adapter(tiny_model(), file, prompt_layers=2, gate_activation="tanh")


def test_other_weights_are_refused(tmp_path):
    file = save_adapter(adapted(), tmp_path, backbone="llama_7b")
    model = tiny_model(seed=5)
    message = r"trained on other weights of the same shape \(fingerprint .*Load the backbone .* on \(llama_7b\)\."
    with pytest.raises(ValueError, match=message):
        load_adapter(model, file)
    assert adapters(model) == {}


def test_nothing_is_loaded_by_half(tmp_path):
    """A file whose last tensor is wrong leaves a bare model bare and an attached one as it was."""
    file = save_adapter(adapted(), tmp_path)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
    save_file(tensors | {"layers.2.prompt": torch.full((3, 32), float("nan"))}, file, metadata=metadata)
    bare, attached = tiny_model(), adapted(2)
    before = trained(attached)
    for model in (bare, attached):
        with pytest.raises(ValueError, match=r"layers\.2\.prompt has 96 of 96 numbers that are not finite"):
            load_adapter(model, file)
    assert adapters(bare) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained(attached).items())
