"""Reading and checking adapter files without a model: each kind of damage has its sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file

from llama_adapter.adapter_file import METADATA_KEY, check_compatible, read_adapter
from llama_adapter.checkpoint import save_adapter
from llama_adapter.fingerprint import fingerprint
from tests.conftest import tiny_model
from tests.test_checkpoint import adapted

GOOD = object()


@pytest.fixture
def file(tmp_path):
    return save_adapter(adapted(), tmp_path)


def rewrite(file, tensors: dict | None = None, header: object = GOOD, **metadata) -> None:
    """Writes the file again with other tensors (None removes one) or another header."""
    adapter = read_adapter(file)
    changed = {key: value for key, value in (adapter.metadata | metadata).items() if value is not None}
    text = json.dumps(changed) if header is GOOD else header
    kept = {name: tensor for name, tensor in (adapter.tensors | (tensors or {})).items() if tensor is not None}
    save_file(kept, file, metadata=None if text is None else {METADATA_KEY: text})


def refuses(file, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        read_adapter(file)
    for word in (str(file), *words):
        assert word in str(error.value)


def test_read(file):
    for path in (file, file.parent, str(file.parent)):
        adapter = read_adapter(path)
        assert adapter.path == file
        assert (adapter.config.prompt_length, adapter.config.prompt_layers) == (3, 2)
        assert adapter.config.gate_activation == "tanh"
        assert sorted(adapter.tensors) == ["layers.1.gate", "layers.1.prompt", "layers.2.gate", "layers.2.prompt"]


def test_missing(tmp_path):
    for path in (tmp_path, tmp_path / "other.safetensors"):
        with pytest.raises(
            FileNotFoundError, match=r"No adapter .*\.safetensors\. Set adapter_path to an adapter file or"
        ):
            read_adapter(path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    refuses(file, "is damaged or not a safetensors file")


def test_other_bytes(file):
    file.write_bytes(b"these are not tensors" * 10)
    refuses(file, "is damaged or not a safetensors file")


def test_another_safetensors_file(file):
    rewrite(file, header=None)
    refuses(file, "is a safetensors file, but not an adapter: its header has no 'llama_adapter'.")


@pytest.mark.parametrize("header", ["{", "[]", "3", "{}", '"text"'])
def test_broken_header(file, header):
    rewrite(file, header=header)
    refuses(file, "its header is not that of an adapter")


def test_later_version(file):
    rewrite(file, format_version=2)
    refuses(file, "has format version 2, but this program reads version 1. Install the llama-adapter that wrote it")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"prompt_length": None}, "its header does not say prompt_length."),
        ({"backbone": {"layers": 3}}, "its header does not say the backbone's fingerprint, heads, hidden_size."),
        ({"backbone": [1]}, "its header is not that of an adapter"),
        (
            {"prompt_length": 0},
            "its header is not that of an adapter. adapter.prompt_length must be at least 1, got 0.",
        ),
        ({"gate_activation": "relu"}, "adapter.gate_activation is 'relu'. Choose tanh or identity."),
        ({"prompt_layers": 9}, "its header says 9 adapted layers of 3."),
    ],
)
def test_header_that_says_too_little_or_nonsense(file, metadata, message):
    rewrite(file, **metadata)
    refuses(file, message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layers.1.gate": None}, "has no tensor layers.1.gate (1 missing)."),
        ({"layers.0.gate": torch.zeros(4)}, "has a tensor layers.0.gate that does not belong there (1 in all)."),
        ({"head.weight": torch.zeros(4)}, "has a tensor head.weight that does not belong there (1 in all)."),
        ({"layers.2.prompt": torch.zeros(4, 32)}, "layers.2.prompt is [4, 32] instead of [3, 32]."),
        ({"layers.2.gate": torch.zeros(1, 4, 1, 1)}, "layers.2.gate is [1, 4, 1, 1] instead of [4]."),
        ({"layers.2.gate": torch.zeros(4).half()}, "layers.2.gate is torch.float16, but adapters are stored as"),
        ({"layers.1.gate": torch.tensor([1.0, float("nan"), 0, 0])}, "layers.1.gate has 1 of 4 numbers that are not"),
    ],
)
def test_tensors_that_are_not_those_of_the_header(file, tensors, message):
    rewrite(file, tensors)
    refuses(file, message)


def test_compatible(file):
    model = tiny_model()
    for known in (None, fingerprint(model)):
        check_compatible(read_adapter(file), model.config, known)


@pytest.mark.parametrize(
    ("shape", "options", "messages"),
    [
        (
            "llama",
            {"hidden_size": 48},
            ["hidden_size 32 in the adapter, 48 in the model", "head_size 8 in the adapter, 12"],
        ),
        ("llama", {"num_hidden_layers": 2}, ["layers 3 in the adapter, 2 in the model"]),
        ("llama", {"num_attention_heads": 8, "num_key_value_heads": 8}, ["; heads 4 in the adapter, 8 in the model"]),
        ("llama", {"num_key_value_heads": 2}, ["key_value_heads 4 in the adapter, 2 in the model"]),
        ("llama", {"vocab_size": 65}, ["vocabulary_size 64 in the adapter, 65 in the model"]),
        ("mistral", {"num_key_value_heads": 4}, ["model_type 'llama' in the adapter, 'mistral' in the model"]),
    ],
)
def test_another_backbone(file, shape, options, messages):
    with pytest.raises(ValueError, match=f"{file} does not fit this backbone") as error:
        check_compatible(read_adapter(file), tiny_model(shape, **options).config)
    for message in messages:
        assert message.removeprefix("; ") in str(error.value)
    assert "Load the backbone that it was trained on." in str(error.value)


def test_other_weights(file):
    other = tiny_model(seed=3)
    with pytest.raises(ValueError, match=r"it was trained on other weights of the same shape \(fingerprint"):
        check_compatible(read_adapter(file), other.config, fingerprint(other))
