"""Tells one set of frozen weights from another, from a few of their numbers.

An adapter is worth nothing on other weights than those it was trained on, even of the same shape, and nothing would
fail: the answers would only be bad. So the adapter file remembers the fingerprint of its base.

The numbers are rounded to bfloat16 and come from tensors that both file layouts store alike, so one model has one
fingerprint: in Meta's and in the Hugging Face layout, loaded as float32 or bfloat16, quantised or not, adapted or not.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from llama_adapter.backbones import family_of
from llama_adapter.meta_checkpoint import MetaCheckpoint, is_meta_folder, load_tensors

HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")  # each also as shards, with an index beside them


def fingerprint(model: PreTrainedModel) -> str | None:
    """The fingerprint of a model's frozen weights: 16 hexadecimal digits.

    Returns:
        What `load_backbone` stored on the model as `backbone_fingerprint`, else what its weights give; None where they
        are quantised, on the meta device, or not named as in the known families.
    """
    stored = getattr(model, "backbone_fingerprint", None)
    if stored is not None:
        return stored
    parameters = dict(model.base_model.named_parameters())
    embeddings = family_of(model.config).embeddings
    names = [embeddings, *_whole_names(model.config)]
    if any(name not in parameters for name in names):
        return None
    if any(parameters[name].is_meta or not parameters[name].is_floating_point() for name in names):
        return None
    rows = _rows(len(parameters[embeddings]))
    return _digest(
        (name, parameters[name].detach()[rows] if name == embeddings else _sample(parameters[name].detach()))
        for name in names
    )


def fingerprint_of_path(path: str | Path) -> str | None:
    """The same from the files of a model, reading only those numbers, so that a wrong adapter is refused at once.

    Args:
        path: a folder in either layout.

    Returns:
        None for a path that is no folder (a hub id), and for files without these tensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    if is_meta_folder(folder) and not (folder / "config.json").is_file():
        return _digest(_meta_samples(MetaCheckpoint(folder)))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return _digest(_hugging_face_samples(folder, config))
    except (KeyError, OSError, ValueError, SafetensorError):
        return None  # another family, no such tensors or no readable files; the loader says which


def _whole_names(config: PretrainedConfig) -> list[str]:
    family = family_of(config)
    attention = f"{family.attention}.{family.value_projection}.weight"
    return [family.norm, *(f"{family.layers}.{layer}.{attention}" for layer in range(config.num_hidden_layers))]


def _rows(vocabulary: int) -> list[int]:
    """Rows 0, 1, 2, 4, 8, ... of the embeddings: the same ones when tokens were added at the end."""
    return [0, *(1 << bit for bit in range((vocabulary - 1).bit_length()))]


def _sample(tensor: Tensor) -> Tensor:
    """All of a vector, the first row of a matrix."""
    return tensor if tensor.dim() == 1 else tensor[0]


def _digest(samples: Iterator[tuple[str, Tensor]]) -> str | None:
    digest = hashlib.sha256()
    for name, tensor in samples:
        if not tensor.is_floating_point():
            return None
        digest.update(name.encode())
        digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _meta_samples(checkpoint: MetaCheckpoint) -> Iterator[tuple[str, Tensor]]:
    config = checkpoint.config
    source = {target.removeprefix("model."): name for name, (target, _) in checkpoint.names().items()}
    family = family_of(config)
    yield family.embeddings, checkpoint.rows(source[family.embeddings], _rows(config.vocab_size))
    for name in _whole_names(config):
        indices = range(config.hidden_size) if name == family.norm else [0]
        yield name, checkpoint.rows(source[name], list(indices)).flatten()


def _hugging_face_samples(folder: Path, config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
    files, family = files_by_tensor(folder), family_of(config)
    # `model.` in a causal LM's file, nothing in a bare base model's.
    prefix = next((name for name in files if name.endswith(family.embeddings)), "").removesuffix(family.embeddings)
    rows = _rows(getattr(config, "vocab_size", config.hidden_size))  # of the words, or of the filters of patches
    yield family.embeddings, _read(files[prefix + family.embeddings], prefix + family.embeddings, rows)
    for name in _whole_names(config):
        yield name, _sample(_read(files[prefix + name], prefix + name, None if name == family.norm else [0]))


def files_by_tensor(folder: Path) -> dict[str, Path]:
    """Which file of a folder in the Hugging Face layout holds which tensor.

    Raises:
        FileNotFoundError: it holds no weights.
    """
    for name in HUGGING_FACE_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return dict.fromkeys(_names(folder / name), folder / name)
        if index.is_file():
            table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {tensor: folder / file for tensor, file in table.items()}
    raise FileNotFoundError(f"No weights in {folder}. Expected {' or '.join(HUGGING_FACE_FILES)}.")


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(load_tensors(file))
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _read(file: Path, name: str, rows: list[int] | None) -> Tensor:
    """Some rows of a tensor in a file, or all of it."""
    if file.suffix != ".safetensors":
        tensor = load_tensors(file)[name]
        return tensor if rows is None else tensor[rows]
    with safe_open(file, framework="pt") as tensors:
        if rows is None:
            return tensors.get_tensor(name)
        part = tensors.get_slice(name)
        return torch.cat([part[row : row + 1] for row in rows])
