"""Saves and loads adapters: prompts, gates and whatever else was trained, with what is needed to use them.

The base is never in a file. The header is sorted JSON without times or paths, so one adapter gives the same bytes in
every process. The format and its checks are in `adapter_file`, the authors' own files in `authors_checkpoint`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter.adapter_file import (
    FILE_NAME,
    FORMAT_VERSION,
    LAYER_TENSOR,
    METADATA_KEY,
    AdapterFile,
    check_compatible,
    check_finite,
    check_shape,
    describe,
    other_trainable,
    read_adapter,
)
from llama_adapter.attach import adapters, attach
from llama_adapter.authors_checkpoint import AUTHORS_SUFFIXES, export_authors, read_authors
from llama_adapter.files import whole_file
from llama_adapter.fingerprint import fingerprint

__all__ = ["AdapterFile", "check_compatible", "export_authors", "load_adapter", "read_adapter", "save_adapter"]
logger = logging.getLogger(__name__)


def save_adapter(
    model: PreTrainedModel,
    path: str | Path,
    *,
    task: str | None = None,
    template: Mapping[str, str] | str | None = None,
    metrics: Mapping[str, float] | None = None,
    backbone: str | None = None,
) -> Path:
    """Writes the adapter of a model. An old file stays whole until the new one is complete on the disk.

    Args:
        model: with an adapter attached.
        path: a file `*.safetensors`, or a folder, made if needed, in which it is called `adapter.safetensors`.
        task, template: what the adapter was trained for, and the texts (or the name) of the prompts it expects.
        metrics: final numbers, finite.
        backbone: what people call the base, say `llama_7b`; for messages only.

    Returns:
        The file.

    Raises:
        ValueError: no adapter is attached, or a tensor or metric is not finite.
        OSError: the disk refused; nothing has changed then.
    """
    file = _file(path)
    attached = adapters(model)
    if not attached:
        raise ValueError("The model has no adapter to save. Call attach(model, config) first.")
    first = next(iter(attached.values()))
    tensors, others = {}, other_trainable(model)
    for layer, adapter in attached.items():
        tensors |= {f"layers.{layer}.prompt": adapter.prompt, f"layers.{layer}.gate": adapter.gate}
    tensors = {name: _plain(tensor) for name, tensor in (tensors | others).items()}
    check_finite(tensors, "The adapter was not saved: ")
    metadata = {
        "format_version": FORMAT_VERSION,
        "backbone": describe(model.config) | {"name": backbone, "fingerprint": fingerprint(model)},
        "prompt_length": len(first.prompt),
        "prompt_layers": len(attached),
        "gate_activation": first.gate_activation,
        "other_parameters": {name: list(tensors[name].shape) for name in others},
        "task": task,
        "template": template,
        "metrics": dict(metrics or {}),
    }
    try:
        header = json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metrics must be finite plain numbers, got {metadata['metrics']}: {error}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_bytes(save(tensors, metadata={METADATA_KEY: header}))
    return file


def load_adapter(
    model: PreTrainedModel,
    path: str | Path,
    *,
    prompt_layers: int | None = None,
    gate_activation: str | None = None,
) -> PreTrainedModel:
    """Puts an adapter file's numbers into a model; everything is checked first, so nothing is ever loaded by half.

    Args:
        model: bare (the adapter is attached then), or with an adapter of the same shape.
        path: our file or a run's folder, or the authors' `.pth`.
        prompt_layers: L, for an authors' file that does not tell; our files know it.
        gate_activation: for an authors' file, whose format does not tell either: when not given that of the attached
            adapter, else `tanh` as in their training code; `identity` gives the answers of their inference code.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is damaged, or does not fit the model.
    """
    if Path(path).suffix in AUTHORS_SUFFIXES:
        adapter = read_authors(path, model, prompt_layers=prompt_layers, gate_activation=gate_activation)
    else:
        adapter = read_adapter(path)
        for key, value in (("prompt_layers", prompt_layers), ("gate_activation", gate_activation)):
            if value not in (None, getattr(adapter.config, key)):
                raise ValueError(
                    f"{key} is {value!r}, but {adapter.path} was trained with {getattr(adapter.config, key)!r}. Leave "
                    "it out: the file knows it."
                )
        check_compatible(adapter, model.config, fingerprint(model))
    others = other_trainable(model) if adapters(model) else dict(model.named_parameters())
    stored = {name for name in adapter.tensors if not LAYER_TENSOR.fullmatch(name)}
    if surplus := sorted(stored - others.keys()):
        raise ValueError(f"{adapter.path} has a tensor {surplus[0]} that the model has no parameter for.")
    if adapters(model) and (missing := sorted(others.keys() - stored)):
        raise ValueError(f"{adapter.path} has no tensor {missing[0]}, which the model trains besides its prompts.")
    for name in stored:
        check_shape(adapter.path, name, adapter.tensors[name], list(others[name].shape))
    if adapters(model):
        _check_attached(adapter, model)
    else:
        attach(model, adapter.config)
    with torch.no_grad():
        for layer, module in adapters(model).items():
            module.prompt.copy_(adapter.tensors[f"layers.{layer}.prompt"])
            module.gate.copy_(adapter.tensors[f"layers.{layer}.gate"])
        for name in stored:
            others[name].copy_(adapter.tensors[name])
            others[name].requires_grad_(True)  # attach froze it; saved again it must be there again
    logger.info("Loaded the adapter %s: %s.", adapter.path, adapter.config)
    return model


def _file(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix in AUTHORS_SUFFIXES:
        raise ValueError(
            f"{path}: adapters are saved as *.safetensors or into a folder. For the authors' layout use export_authors."
        )
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / FILE_NAME


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _check_attached(adapter: AdapterFile, model: PreTrainedModel) -> None:
    first = next(iter(adapters(model).values()))
    attached = {
        "prompt_length": len(first.prompt),
        "prompt_layers": len(adapters(model)),
        "gate_activation": first.gate_activation,
    }
    differences = [
        f"{key} {getattr(adapter.config, key)!r} in the file, {value!r} in the model"
        for key, value in attached.items()
        if getattr(adapter.config, key) != value
    ]
    if differences:
        raise ValueError(
            f"{adapter.path} does not fit the attached adapter: {'; '.join(differences)}. Set adapter.* to the file's "
            "values, or load it into a bare model, which takes them from the file."
        )
