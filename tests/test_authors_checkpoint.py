"""The authors' files: read onto bare and attached models, written again, and refused when they do not tell."""

import pytest
import torch

from llama_adapter.attach import adapters
from llama_adapter.authors_checkpoint import export_authors
from llama_adapter.checkpoint import load_adapter, save_adapter
from tests.conftest import tiny_model
from tests.test_checkpoint import adapted, logits, trained
from tests.test_meta_checkpoint import Code


def authors_file(path, *, prompt_layers: int = 2, length: int = 3, gated: int = 3, moved: int = 2, **changes):
    """A file for C=32, H=4, N=3 in which the top `gated` layers have a gate and the top `moved` a non-zero one."""
    torch.manual_seed(4)
    tensors = {"adapter_query.weight": torch.randn(prompt_layers * length, 32)}
    for layer in range(3 - gated, 3):
        tensors[f"layers.{layer}.attention.gate"] = torch.randn(1, 4, 1, 1) * (layer >= 3 - moved)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return tensors


def refuses(path, *words: str, model=None, **options) -> None:
    model = tiny_model() if model is None else model
    before = trained(model)
    with pytest.raises(ValueError) as error:
        load_adapter(model, path, **options)
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained(model).items())


@pytest.mark.parametrize("gated", [2, 3])
def test_rows_and_gates_go_to_the_top_layers(tmp_path, gated):
    tensors = authors_file(tmp_path / "a.pth", gated=gated)
    model = load_adapter(tiny_model(), tmp_path / "a.pth")
    assert list(adapters(model)) == [1, 2]
    for index, (layer, adapter) in enumerate(adapters(model).items()):
        assert torch.equal(adapter.prompt, tensors["adapter_query.weight"][index * 3 : index * 3 + 3])
        assert torch.equal(adapter.gate, tensors[f"layers.{layer}.attention.gate"].flatten())
        assert adapter.gate_activation == "tanh"


def test_gate_activation(tmp_path):
    authors_file(tmp_path / "a.pth")
    model = load_adapter(tiny_model(), tmp_path / "a.pth", gate_activation="identity")
    assert {adapter.gate_activation for adapter in adapters(model).values()} == {"identity"}
    attached = load_adapter(adapted(gate_activation="identity"), tmp_path / "a.pth")
    assert torch.equal(logits(attached), logits(model)), "when not given, that of the attached adapter"
    message = "gate_activation 'tanh' in the file, 'identity' in the model"
    refuses(tmp_path / "a.pth", message, model=adapted(gate_activation="identity"), gate_activation="tanh")


def test_names_and_dtypes_of_parallel_and_half_precision_training(tmp_path):
    tensors = authors_file(tmp_path / "a.pth")
    torch.save({f"module.{name}": tensor.half() for name, tensor in tensors.items()}, tmp_path / "b.pth")
    model = load_adapter(tiny_model(), tmp_path / "b.pth")
    expected = tensors["adapter_query.weight"][:3].half().float()
    assert torch.equal(adapters(model)[1].prompt, expected)
    assert adapters(model)[1].prompt.dtype == torch.float32


@pytest.mark.parametrize("prompt_layers", [1, 2, 3])
def test_round_trip(tmp_path, prompt_layers):
    model = adapted(prompt_layers=prompt_layers)
    file = export_authors(model, tmp_path / "new folder/a.pth")
    tensors = torch.load(file, weights_only=True)
    assert list(tensors) == ["adapter_query.weight", *(f"layers.{layer}.attention.gate" for layer in range(3))]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {tuple(tensor.shape) for name, tensor in tensors.items() if "gate" in name} == {(1, 4, 1, 1)}
    loaded = load_adapter(tiny_model(), file)
    assert torch.equal(logits(loaded), logits(model))
    saved = [save_adapter(each, tmp_path / name).read_bytes() for each, name in ((model, "1"), (loaded, "2"))]
    assert saved[0] == saved[1]


def test_layers_that_the_file_does_not_tell(tmp_path):
    authors_file(tmp_path / "a.pth", moved=0)
    words = (
        "a.pth does not tell how many layers are adapted: of 3 layers 3 have a gate and 0 a gate that is not zero.",
    )
    refuses(tmp_path / "a.pth", *words, "Give prompt_layers.")
    for options in ({"prompt_layers": 2}, {"model": adapted()}):
        model = load_adapter(options.pop("model", tiny_model()), tmp_path / "a.pth", **options)
        assert list(adapters(model)) == [1, 2]


def test_a_zero_gate_between_others_does_not_tell(tmp_path):
    gates = {
        "layers__1__attention__gate": torch.zeros(1, 4, 1, 1),
        "layers__0__attention__gate": torch.ones(1, 4, 1, 1),
    }
    authors_file(tmp_path / "a.pth", prompt_layers=3, **gates)
    refuses(tmp_path / "a.pth", "does not tell how many layers are adapted")
    assert list(adapters(load_adapter(tiny_model(), tmp_path / "a.pth", prompt_layers=3))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"adapter_query__weight": None},
            {},
            "has no tensor adapter_query.weight: it is not an adapter in the authors'",
        ),
        ({"adapter_query__weight": torch.zeros(7, 32)}, {}, "has 7 rows, which 2 adapted layers cannot share evenly"),
        ({"adapter_query__weight": torch.zeros(6, 16)}, {}, "adapter_query.weight is [6, 16] instead of [6, 32]"),
        ({"layers__2__attention__gate": torch.ones(4)}, {}, "layers.2.attention.gate is [4] instead of [1, 4, 1, 1]"),
        (
            {"layers__3__attention__gate": torch.ones(1, 4, 1, 1)},
            {"prompt_layers": 2},
            "layers.3.attention.gate that does",
        ),
        ({"norm__weight": torch.ones(32)}, {}, "has a tensor norm.weight that does not belong there"),
        (
            {"layers__1__attention__gate": None},
            {"prompt_layers": 2},
            "has no tensor layers.1.attention.gate (1 missing)",
        ),
        ({"adapter_query__weight": torch.full((6, 32), torch.inf)}, {}, "192 of 192 numbers that are not finite"),
        (
            {},
            {"prompt_layers": 1},
            "layers.1.attention.gate is not zero, but with prompt_layers 1 the adapted layers begin at 2",
        ),
        ({}, {"prompt_layers": 4}, "prompt_layers is 4, but the model has 3 layers. Choose 1 to 3."),
        ({}, {"prompt_layers": 0}, "prompt_layers is 0, but the model has 3 layers."),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, changes, options, message):
    authors_file(tmp_path / "a.pth", **changes)
    refuses(
        tmp_path / "a.pth", str(tmp_path / "a.pth") if "prompt_layers is" not in message else "", message, **options
    )


def test_another_adapter_is_attached(tmp_path):
    authors_file(tmp_path / "a.pth", length=5)
    refuses(tmp_path / "a.pth", "prompt_length 5 in the file, 3 in the model", model=adapted())


def test_code_is_refused(tmp_path):
    torch.save({"adapter_query.weight": Code()}, tmp_path / "a.pth")
    refuses(tmp_path / "a.pth", f"{tmp_path / 'a.pth'} holds more than tensors: loading it could run code")


def test_truncated(tmp_path):
    authors_file(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:300])
    refuses(tmp_path / "a.pth", f"{tmp_path / 'a.pth'} is damaged or not a PyTorch file")


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No adapter .*a\.pth\. Set adapter_path"):
        load_adapter(tiny_model(), tmp_path / "a.pth")


def test_export_refuses(tmp_path):
    with pytest.raises(ValueError, match="The model has no adapter to export"):
        export_authors(tiny_model(), tmp_path / "a.pth")
    model = adapted()
    model.head = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"has no place for head\.bias, head\.weight\. Use save_adapter"):
        export_authors(model, tmp_path / "a.pth")
    model = adapted()
    adapters(model)[1].gate.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"was not exported: layers\.1\.attention\.gate has 1 of 4 numbers"):
        export_authors(model, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())
