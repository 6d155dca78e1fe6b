"""Meta's layout to Hugging Face's: the same numbers, in files of a size, and nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama_adapter import convert as module
from llama_adapter.convert import convert
from llama_adapter.fingerprint import fingerprint_of_path
from llama_adapter.loading import load_backbone
from tests.conftest import ROOT


@pytest.fixture(params=["mp1", "mp2"])
def meta(shared, request) -> Path:
    return shared / "golden/meta_checkpoint" / request.param


def test_the_same_model(meta, tmp_path):
    target = convert(meta, tmp_path / "deep" / "new", dtype="float32")
    one, other = load_backbone(meta), load_backbone(target)
    assert one.backbone_fingerprint == other.backbone_fingerprint
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    differing = {"transformers_version", "_name_or_path", "architectures", "dtype"}
    before, after = one.config.to_dict(), other.config.to_dict()
    assert {key for key in before if before[key] != after[key]} <= differing
    assert fingerprint_of_path(convert(meta, tmp_path / "half")) == one.backbone_fingerprint  # bfloat16


def test_many_files_and_the_tokenizer(shared, tmp_path):
    source = tmp_path / "llama" / "7B"
    shutil.copytree(shared / "golden/meta_checkpoint/mp2", source)
    (source.parent / "tokenizer.model").write_bytes(b"of all sizes")
    target = convert(source, tmp_path / "new", file_gib=1e-4)
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert files == [f"model-{number:05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {*files}
    assert index["metadata"]["total_size"] == sum(
        p.nbytes for p in load_backbone(target, dtype="bfloat16").parameters()
    )
    assert (target / "tokenizer.model").read_bytes() == b"of all sizes"
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_refused(meta, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'int8'. Choose float32, bfloat16, float16."):
        convert(meta, tmp_path / "new", dtype="int8")
    with pytest.raises(FileNotFoundError, match="No params.json in .*: it does not hold weights in Meta's layout."):
        convert(tmp_path, tmp_path / "new")
    with pytest.raises(FileExistsError, match="is there already. Give another folder, or remove it."):
        convert(meta, tmp_path)
    source = tmp_path / "cut"
    shutil.copytree(meta, source)
    (source / "consolidated.00.pth").write_bytes((meta / "consolidated.00.pth").read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged or not a PyTorch file"):
        convert(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(meta, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match=r"Cannot write .*model-00001.safetensors: No space left.*Is the disk full\?"):
        convert(meta, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_command(shared, tmp_path):
    def call(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "llama_adapter.convert", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)

    done = call(shared / "golden/meta_checkpoint/mp1", tmp_path / "new", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert f"Written to {tmp_path / 'new'}: 4 layers in float16." in done.stderr
    refused = call(tmp_path, tmp_path / "other")
    assert refused.returncode == 1
    assert refused.stderr == f"error: No params.json in {tmp_path}: it does not hold weights in Meta's layout.\n"
