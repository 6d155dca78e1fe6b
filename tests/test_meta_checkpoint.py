"""Meta's layout: shards, both splits of the embeddings, grouped heads, and what can be wrong with a folder."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter.meta_checkpoint import MetaCheckpoint, load_tensors, paired_view
from tests.conftest import tiny_model


def paired(weight: Tensor, head_size: int) -> Tensor:
    """Rows in Meta's order, as a list: pair j of a head is transformers' entries j and j + D/2."""
    order = [
        start + half * (head_size // 2) + pair
        for start in range(0, len(weight), head_size)
        for pair in range(head_size // 2)
        for half in (0, 1)
    ]
    return weight[order]


def save_meta(
    model: PreTrainedModel, folder: Path, *, shards: int = 1, embeddings_split: int = 1, params: dict | None = None
) -> Path:
    """Writes a LLaMA of transformers as Meta would have published it."""
    config, state = model.config, model.state_dict()
    size = config.hidden_size // config.num_attention_heads

    def parts(name: str, dim: int | None) -> list[Tensor]:
        weight = state[name]
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = paired(weight, size)
        return [weight] * shards if dim is None else list(weight.chunk(shards, dim=dim))

    table = {
        "tok_embeddings.weight": parts("model.embed_tokens.weight", embeddings_split),
        "norm.weight": parts("model.norm.weight", None),
        "output.weight": parts("lm_head.weight", 0),
    }
    for layer in range(config.num_hidden_layers):
        there, here = f"model.layers.{layer}", f"layers.{layer}"
        for name, attention, dim in (("wq", "q", 0), ("wk", "k", 0), ("wv", "v", 0), ("wo", "o", 1)):
            table[f"{here}.attention.{name}.weight"] = parts(f"{there}.self_attn.{attention}_proj.weight", dim)
        for name, mlp, dim in (("w1", "gate", 0), ("w2", "down", 1), ("w3", "up", 0)):
            table[f"{here}.feed_forward.{name}.weight"] = parts(f"{there}.mlp.{mlp}_proj.weight", dim)
        table[f"{here}.attention_norm.weight"] = parts(f"{there}.input_layernorm.weight", None)
        table[f"{here}.ffn_norm.weight"] = parts(f"{there}.post_attention_layernorm.weight", None)
    table["rope.freqs"] = [torch.zeros(size // 2)] * shards
    table["layers.0.attention.inner_attention.rope.freqs"] = [torch.zeros(size // 2)] * shards  # in some LLaMA 1 files
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        tensors = {name: split[shard].clone() for name, split in table.items()}
        torch.save(tensors, folder / f"consolidated.{shard:02d}.pth")
    said = {
        "dim": config.hidden_size,
        "multiple_of": 16,
        "n_heads": config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": -1,
    }
    if config.num_key_value_heads != config.num_attention_heads:
        said["n_kv_heads"] = config.num_key_value_heads
    (folder / "params.json").write_text(json.dumps(said | (params or {})))
    return folder


def change(file: Path, **tensors: Tensor | None) -> None:
    """Replaces tensors of a shard; None removes one. `__` stands for a dot."""
    state = torch.load(file)
    for name, tensor in tensors.items():
        state.pop(name.replace("__", "."), None)
        if tensor is not None:
            state[name.replace("__", ".")] = tensor
    torch.save(state, file)


def test_reordered_rows_are_transformers_order():
    """Rotating pairs as Meta does gives what rotating halves as transformers does gives on the reordered rows."""
    torch.manual_seed(0)
    weight, x = torch.randn(3 * 8, 16), torch.randn(16)
    angles = torch.randn(4)
    turned = torch.view_as_complex((weight @ x).view(3, 4, 2)) * torch.polar(torch.ones(4), angles)
    meta = torch.view_as_real(turned)  # [3 heads, 4 pairs, 2]
    reordered = torch.empty_like(weight)
    paired_view(reordered, 8).copy_(weight.unflatten(0, (-1, 4, 2)))
    first, second = (reordered @ x).view(3, 2, 4).unbind(dim=1)
    ours = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    torch.testing.assert_close(torch.stack(ours, dim=-1), meta, atol=1e-5, rtol=0)  # float32 rounding of 16 products
    assert torch.equal(paired(reordered, 8), weight)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("embeddings_split", [0, 1])
@pytest.mark.parametrize("shape", ["llama", "llama_grouped_scaled_rope"])
def test_every_tensor_comes_back(tmp_path, shape, shards, embeddings_split):
    model = tiny_model(shape)
    checkpoint = MetaCheckpoint(save_meta(model, tmp_path, shards=shards, embeddings_split=embeddings_split))
    config = checkpoint.config
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads"):
        assert getattr(config, key) == getattr(model.config, key), key
    state = checkpoint.load(config, torch.float32, torch.device("cpu"))
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    rows = [0, 1, 40, 63]
    assert torch.equal(checkpoint.rows("tok_embeddings.weight", rows), expected["model.embed_tokens.weight"][rows])
    value = expected["model.layers.2.self_attn.v_proj.weight"]
    assert torch.equal(checkpoint.rows("layers.2.attention.wv.weight", [0]), value[:1])


def test_loaded_tensors_do_not_hold_the_files(tmp_path):
    checkpoint = MetaCheckpoint(save_meta(tiny_model(), tmp_path))
    state = checkpoint.load(checkpoint.config, torch.float32, torch.device("cpu"))
    before = state["model.norm.weight"].clone()
    (tmp_path / "consolidated.00.pth").write_bytes(b"")  # a mapping of it would now be invalid memory
    assert torch.equal(state["model.norm.weight"], before)


def refuses(folder: Path, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as error:
        _ = MetaCheckpoint(folder).config
    for word in words:
        assert word in str(error.value)


def test_missing_shard(tmp_path):
    save_meta(tiny_model(), tmp_path, shards=2)
    (tmp_path / "consolidated.01.pth").unlink()
    file = str(tmp_path / "consolidated.01.pth")
    refuses(tmp_path, FileNotFoundError, f"No file {file}", "are 2 files, consolidated.00.pth to consolidated.01.pth")


def test_missing_first_shard(tmp_path):
    save_meta(tiny_model(), tmp_path, shards=2)
    (tmp_path / "consolidated.00.pth").unlink()
    refuses(tmp_path, FileNotFoundError, f"No file {tmp_path / 'consolidated.00.pth'}")


def test_no_shard(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 32, "n_heads": 4, "n_layers": 3, "norm_eps": 1e-5}')
    refuses(tmp_path, FileNotFoundError, f"{tmp_path} has a params.json, but no consolidated.00.pth beside it.")


def test_surplus_shard(tmp_path):
    save_meta(tiny_model(), tmp_path, shards=2)
    (tmp_path / "consolidated.02.pth").write_bytes((tmp_path / "consolidated.01.pth").read_bytes())
    refuses(tmp_path, ValueError, f"{tmp_path / 'consolidated.02.pth'} is one file too many", "the weights are 2 files")


def test_missing_tensor(tmp_path):
    save_meta(tiny_model(), tmp_path, shards=2)
    change(tmp_path / "consolidated.01.pth", layers__1__attention__wv__weight=None)
    refuses(tmp_path, ValueError, "consolidated.01.pth has no tensor layers.1.attention.wv.weight (1 missing)")


def test_missing_embeddings(tmp_path):
    save_meta(tiny_model(), tmp_path)
    change(tmp_path / "consolidated.00.pth", tok_embeddings__weight=None)
    refuses(tmp_path, ValueError, "consolidated.00.pth has no tensor tok_embeddings.weight: it is not a complete LLaMA")


def test_surplus_tensor(tmp_path):
    save_meta(tiny_model(), tmp_path)
    change(tmp_path / "consolidated.00.pth", layers__3__ffn_norm__weight=torch.zeros(32))
    refuses(tmp_path, ValueError, "has a tensor layers.3.ffn_norm.weight that LLaMA with 3 layers lacks (1 in all)")


def test_misshapen_tensor(tmp_path):
    save_meta(tiny_model(), tmp_path, shards=2)
    change(tmp_path / "consolidated.01.pth", layers__2__feed_forward__w2__weight=torch.zeros(32, 23))
    name = "consolidated.01.pth: layers.2.feed_forward.w2.weight"
    refuses(tmp_path, ValueError, f"{name} is [32, 23], but params.json and 2 file(s) make it [32, 24]")


def test_embeddings_of_another_width(tmp_path):
    save_meta(tiny_model(), tmp_path, shards=2)
    change(tmp_path / "consolidated.00.pth", tok_embeddings__weight=torch.zeros(64, 24))
    refuses(
        tmp_path, ValueError, "tok_embeddings.weight is [64, 24]. With dim 32 and 2 files it should be 32 or 16 wide."
    )


def test_shards_that_split_a_head(tmp_path):
    save_meta(tiny_model(num_key_value_heads=1), tmp_path, shards=2)
    refuses(tmp_path, ValueError, f"{tmp_path} has 2 files for 1 key/value heads", "use the Hugging Face layout")


def test_params_of_another_model(tmp_path):
    save_meta(tiny_model(), tmp_path, params={"dim": 40})
    refuses(tmp_path, ValueError, "layers.0.attention.wq.weight is [32, 32], but params.json says dim 40")


def test_vocabulary_that_differs(tmp_path):
    save_meta(tiny_model(), tmp_path, params={"vocab_size": 100})
    refuses(tmp_path, ValueError, "params.json says vocab_size 100, but the embeddings have 64 rows.")


def test_vocabulary_that_agrees(tmp_path):
    save_meta(tiny_model(), tmp_path, params={"vocab_size": 64})
    assert MetaCheckpoint(tmp_path).config.vocab_size == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "params.json is not valid JSON"),
        ("3", "is not valid JSON"),
        ('{"dim": 32}', "does not say n_heads, n_layers"),
    ],
)
def test_broken_params(tmp_path, content, message):
    save_meta(tiny_model(), tmp_path)
    (tmp_path / "params.json").write_text(content)
    refuses(tmp_path, ValueError, message)


class Code:
    """Unpickled, it would run a function."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint ran')",)


def test_code_in_a_file_is_refused(tmp_path):
    save_meta(tiny_model(), tmp_path)
    torch.save({"layers.0.attention.wq.weight": Code()}, tmp_path / "consolidated.00.pth")
    refuses(tmp_path, ValueError, f"{tmp_path / 'consolidated.00.pth'} holds more than tensors", "it is refused")


@pytest.mark.parametrize("kept", [0, 20, 2000])
def test_truncated_file(tmp_path, kept):
    file = save_meta(tiny_model(), tmp_path) / "consolidated.00.pth"
    file.write_bytes(file.read_bytes()[:kept])
    refuses(tmp_path, ValueError, f"{file} is damaged or not a PyTorch file")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 3}])
def test_something_else_in_a_file(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is not a table of named tensors"):
        load_tensors(tmp_path / "x.pth")
