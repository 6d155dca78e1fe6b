"""One model, one fingerprint: in both layouts, dtypes, from files and in memory. Other weights, another one."""

import pytest
import torch

from llama_adapter.attach import attach
from llama_adapter.fingerprint import fingerprint, fingerprint_of_path
from llama_adapter.loading import load_backbone
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.test_meta_checkpoint import save_meta

EXPECTED = fingerprint(tiny_model())


@pytest.mark.parametrize("layout", ["one file", "sharded", "bin", "base model only"])
def test_hugging_face_files(tmp_path, layout):
    model = tiny_model()
    if layout == "bin":
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    elif layout == "base model only":
        model.model.save_pretrained(tmp_path)
    else:
        model.save_pretrained(tmp_path, max_shard_size="20KB" if layout == "sharded" else "1GB")
    assert fingerprint_of_path(tmp_path) == fingerprint_of_path(str(tmp_path)) == EXPECTED


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("embeddings_split", [0, 1])
def test_meta_files(tmp_path, shards, embeddings_split):
    save_meta(tiny_model(), tmp_path, shards=shards, embeddings_split=embeddings_split)
    assert fingerprint_of_path(tmp_path) == EXPECTED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["hugging_face", "meta"])
def test_loaded_models(tmp_path, layout, dtype):
    if layout == "meta":
        save_meta(tiny_model(), tmp_path)
    else:
        tiny_model().save_pretrained(tmp_path)
    model = load_backbone(tmp_path, dtype=dtype)
    assert fingerprint(model) == model.backbone_fingerprint == EXPECTED
    if dtype != "float16":  # a second rounding may differ, so it is the files' fingerprint that is stored
        del model.backbone_fingerprint
        assert fingerprint(model) == EXPECTED


def test_adapter_and_freezing_change_nothing():
    assert fingerprint(attach(tiny_model(), AdapterConfig(prompt_layers=2))) == EXPECTED


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"model.layers.{i}.self_attn.v_proj.weight" for i in range(3)),
    ],
)
def test_other_weights(name):
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name).flatten()[5] += 0.1  # row 0 of a matrix
    assert fingerprint(model) != EXPECTED


def test_added_tokens_change_nothing():
    """A padding token added at the end: the vocabulary differs, the weights are the same."""
    model = tiny_model()
    model.resize_token_embeddings(65, mean_resizing=False)
    samples = fingerprint(model)
    model.resize_token_embeddings(100, mean_resizing=False)
    assert samples != EXPECTED, "row 64 is a sample only of vocabularies above 64"
    assert fingerprint(model) == samples


def test_where_there_is_none(tmp_path):
    assert fingerprint_of_path("nobody/nothing") is None
    assert fingerprint_of_path(tmp_path) is None
    tiny_model().config.save_pretrained(tmp_path)
    assert fingerprint_of_path(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    assert fingerprint_of_path(tmp_path) is None, "loading says what is wrong with it"
    assert fingerprint(tiny_model().to("meta")) is None


def test_the_stored_one_is_given():
    model = tiny_model()
    model.backbone_fingerprint = "0123456789abcdef"
    assert fingerprint(model) == "0123456789abcdef"
