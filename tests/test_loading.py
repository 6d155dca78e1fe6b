"""Backbones from folders in both layouts; what is wrong with a folder is said, and nothing is made up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_adapter.loading import backbone_config, load_backbone
from tests.conftest import ROOT, tiny_model
from tests.test_meta_checkpoint import Code, save_meta

IDS = torch.tensor([[1, 7, 9, 11, 13, 17]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def save_hugging_face(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def refuses_both(path, kind: type[Exception], *words: str, **options) -> None:
    """With and without its weights."""
    refuses(path, kind, *words, **options)
    refuses(path, kind, *words, **options, device="meta")


def refuses(path, kind: type[Exception], *words: str, **options) -> None:
    with pytest.raises(kind) as error:
        load_backbone(path, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("shape", ["llama", "llama_grouped_scaled_rope", "mistral_sliding_window", "qwen2"])
def test_hugging_face_folder(tmp_path, shape):
    model = tiny_model(shape)
    loaded = load_backbone(save_hugging_face(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config._attn_implementation == "sdpa"
    assert backbone_config(tmp_path).num_hidden_layers == 3


def test_sharded_hugging_face_folder(tmp_path):
    model = tiny_model()
    save_hugging_face(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(load_backbone(tmp_path)), logits(model))


def test_bin_folder(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load_backbone(tmp_path)), logits(model))


def test_tied_embeddings(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    save_hugging_face(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(logits(load_backbone(tmp_path)), logits(model))


@pytest.mark.parametrize("shards", [1, 2])
def test_meta_folder(tmp_path, shards):
    model = tiny_model(num_key_value_heads=2)
    save_meta(model, tmp_path, shards=shards)
    loaded = load_backbone(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_meta_folder_with_scaled_rope(tmp_path):
    """Llama 3.1's rotary frequencies, which no checkpoint holds, against transformers' own."""
    save_meta(tiny_model(), tmp_path, params={"use_scaled_rope": True, "rope_theta": 500000.0})
    loaded = load_backbone(tmp_path)
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    expected = tiny_model(rope_parameters=rope, max_position_embeddings=131072)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)
    assert torch.equal(logits(loaded), logits(expected))


@pytest.mark.parametrize("layout", ["hugging_face", "meta"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_dtype(tmp_path, layout, dtype):
    model = tiny_model()
    folder = save_meta(model, tmp_path) if layout == "meta" else save_hugging_face(model, tmp_path)
    loaded = load_backbone(folder, dtype=dtype)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32, "rounded angles would be wrong at far positions"
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.to(expected))


def test_unknown_dtype(tmp_path):
    refuses(tmp_path, ValueError, "model.dtype is 'bf16'. Choose float32, bfloat16, float16.", dtype="bf16")
    refuses(tmp_path, ValueError, "model.dtype is torch.int8", dtype=torch.int8)


def test_config_json_wins_over_params_json(tmp_path):
    """Mistral's folders on the hub hold both; only one of them is Meta's format."""
    save_hugging_face(tiny_model("mistral"), tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 32, "sliding_window": 6}')
    assert backbone_config(tmp_path).model_type == "mistral"


def test_no_such_folder(tmp_path):
    missing = tmp_path / "llama_7b"
    words = (f"No folder {missing}.", "Set model.path=<folder with the model>", "LLAMA_ADAPTER_WEIGHTS")
    refuses(missing, FileNotFoundError, *words)
    refuses(str(missing), FileNotFoundError, *words)


def test_hub_id_without_a_network():
    words = ("No folder nobody/nothing, and no model of that name could be fetched", "LLAMA_ADAPTER_WEIGHTS")
    refuses("nobody/nothing", FileNotFoundError, *words)


def test_folder_with_neither_layout(tmp_path):
    words = (f"No model in {tmp_path}.", "config.json and model.safetensors", "params.json and consolidated.00.pth")
    refuses(tmp_path, FileNotFoundError, *words)


def test_folder_without_weights(tmp_path):
    tiny_model().config.save_pretrained(tmp_path)
    refuses(tmp_path, FileNotFoundError, f"Weights are missing in {tmp_path}", "config.json and model.safetensors")


def test_missing_shard_of_a_hugging_face_folder(tmp_path):
    save_hugging_face(tiny_model(), tmp_path, max_shard_size="20KB")
    name = sorted(tmp_path.glob("model-*.safetensors"))[1].name
    (tmp_path / name).unlink()
    refuses_both(tmp_path, FileNotFoundError, f"Weights are missing in {tmp_path}", name)


def test_unknown_family_is_refused_before_the_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    refuses(tmp_path, ValueError, "No family for model_type 'gpt2'. Known: llama")


def test_model_type_that_transformers_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    refuses(tmp_path, ValueError, f"{tmp_path}: transformers does not know this model.", "lama")


def test_broken_config(tmp_path):
    (tmp_path / "config.json").write_text("{")
    refuses(tmp_path, ValueError, f"{tmp_path / 'config.json'} cannot be read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "model.norm.weight is missing"),
        ({"lm_head.weight": None}, "lm_head.weight is missing"),
        ({"model.extra": torch.zeros(1)}, "model.extra is not part of the model"),
        ({"model.norm.weight": torch.zeros(5)}, "model.norm.weight is [5] instead of [32]"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    """transformers would fill in random numbers and warn."""
    save_hugging_face(tiny_model(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(file) | change).items() if tensor is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    refuses_both(tmp_path, ValueError, f"The weights in {tmp_path} are not those of its config.json", message)


def test_many_problems_are_counted(tmp_path):
    save_hugging_face(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    refuses_both(tmp_path, ValueError, "model.layers.3.input_layernorm.weight is missing", "and 6 more")


def test_without_weights(tmp_path):
    """Each device will read its shards: names and shapes are checked, and only what no file has has its values."""
    whole = load_backbone(save_hugging_face(tiny_model("llama_grouped_scaled_rope"), tmp_path, max_shard_size="20KB"))
    model = load_backbone(tmp_path, dtype="bfloat16", device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, whole.model.rotary_emb.inv_freq)
    assert model.backbone_fingerprint == whole.backbone_fingerprint
    assert model.name_or_path == str(tmp_path)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_without_weights_where_no_part_can_be_read(tmp_path):
    save_meta(tiny_model(), tmp_path / "meta", shards=1)
    words = (
        f"{tmp_path / 'meta'} is in Meta's layout, of which no",
        "python -m llama_adapter.convert",
        "set model.path",
    )
    refuses(tmp_path / "meta", ValueError, *words, device="meta")
    model = tiny_model()
    model.config.save_pretrained(tmp_path / "bin")
    refuses(tmp_path / "bin", FileNotFoundError, f"No weights in {tmp_path / 'bin'}.", device="meta")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    words = ("are in pytorch_model.bin, of which no device can read a part. Save the model", "trainer=8xa100_ddp")
    refuses(tmp_path / "bin", ValueError, *words, device="meta")


def test_rotary_frequencies_in_an_old_file_are_fine(tmp_path):
    model = tiny_model()
    save_hugging_face(model, tmp_path)
    file = tmp_path / "model.safetensors"
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for layer in range(3)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    assert torch.equal(logits(load_backbone(tmp_path)), logits(model))


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_truncated_safetensors(tmp_path, kept):
    file = save_hugging_face(tiny_model(), tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refuses_both(tmp_path, ValueError, f"The weights in {tmp_path} are damaged")


def test_truncated_bin(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    file.write_bytes(file.read_bytes()[:5000])
    refuses(tmp_path, ValueError, f"The weights in {tmp_path} are damaged", "Copy or download them again")


def test_code_in_a_bin_file_is_refused(tmp_path):
    tiny_model().config.save_pretrained(tmp_path)
    torch.save({"model.norm.weight": Code()}, tmp_path / "pytorch_model.bin")
    refuses(tmp_path, ValueError, f"The weights in {tmp_path} hold more than tensors", "refused")


def test_tokenizer_with_more_ids_than_embeddings(tmp_path, shared):
    save_meta(tiny_model(), tmp_path)  # 64 rows
    tokenizer = shared / "golden/alpaca/tokenizer_tiny.model"
    words = (f"The tokenizer {tokenizer} has 512 ids, but the model has embeddings for 64.", "Set model.tokenizer")
    refuses(tmp_path, ValueError, *words, tokenizer=tokenizer)


PEAK = r"""
import re, sys
from pathlib import Path
from llama_adapter.loading import load_backbone

def peak():  # not getrusage: its maximum is inherited from the process that started this one
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

load_backbone(sys.argv[1], dtype="bfloat16")  # everything that is imported on first use is there now
before = peak()
model = load_backbone(sys.argv[2], dtype=sys.argv[3])
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "shards"), [("float16", 1), ("float32", 2)])
def test_memory_holds_a_meta_model_once(tmp_path, dtype, shards):
    """Peak resident memory of loading, over the size of the loaded model."""
    save_meta(tiny_model(), tmp_path / "small")
    big = tiny_model(hidden_size=768, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=8,
                     num_key_value_heads=8, vocab_size=2000)  # fmt: skip
    save_meta(big.half(), tmp_path / "big", shards=shards)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "big"), dtype]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Once, plus the pages of one of ten layers of the files.
    assert 0.9 < float(run.stdout) < 1.15
