"""The format of adapter files, and what is checked when one is read.

`adapter.safetensors` holds tensors in float32 under names that no transformers version changes,

    layers.<i>.prompt [K, C]     layers.<i>.gate [H]     any other trained parameter under its own name

and in its header, under the single key `llama_adapter`, JSON with the shape of the adapter and of its backbone, so that
a file can be checked without either.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llama_adapter.attach import adapters
from llama_adapter.backbones import query_heads
from llama_adapter.zero_init import AdapterConfig

FILE_NAME = "adapter.safetensors"
METADATA_KEY = "llama_adapter"
FORMAT_VERSION = 1
LAYER_TENSOR = re.compile(r"layers\.(\d+)\.(prompt|gate)")


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds, checked.

    Args:
        path: where it was read, for messages.
        config: K, L and the gate activation.
        metadata: the header: `backbone`, `task`, `template`, `metrics` and the shapes.
        tensors: by name, float32, on the CPU.
    """

    path: Path
    config: AdapterConfig
    metadata: dict
    tensors: dict[str, Tensor]


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads and checks an adapter file without a model.

    Args:
        path: the file, or the folder of a run that holds `adapter.safetensors`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is damaged, of another kind or version, or its tensors are not those its header promises.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No adapter {file}. Set adapter_path to an adapter file or to a run's folder.")
    try:
        with safe_open(file, framework="pt") as content:
            header = (content.metadata() or {}).get(METADATA_KEY)
            tensors = {name: content.get_tensor(name) for name in content.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}.") from error
    if header is None:
        raise ValueError(f"{file} is a safetensors file, but not an adapter: its header has no {METADATA_KEY!r}.")
    metadata = _metadata(file, header)
    try:
        config = AdapterConfig(**{key: metadata[key] for key in ("prompt_length", "prompt_layers", "gate_activation")})
    except ValueError as error:
        raise ValueError(f"{file}: its header is not that of an adapter. {error}") from error
    check_shapes(file, tensors, _expected_shapes(file, config, metadata))
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{file}: {name} is {tensor.dtype}, but adapters are stored as torch.float32.")
    check_finite(tensors, f"{file}: ")
    return AdapterFile(file, config, metadata, tensors)


def check_compatible(adapter: AdapterFile, config: PretrainedConfig, fingerprint: str | None = None) -> None:
    """Checks that an adapter was trained on this backbone, before or after its weights are loaded.

    Args:
        adapter: what `read_adapter` gave.
        config: the backbone's, say from `backbone_config(path)`.
        fingerprint: of the backbone's weights. They are compared only when both sides have one.

    Raises:
        ValueError: with all that differs.
    """
    trained = adapter.metadata["backbone"]
    differences = [
        f"{key} {trained.get(key)!r} in the adapter, {value!r} in the model"
        for key, value in describe(config).items()
        if trained.get(key) != value
    ]
    if not differences and None not in (fingerprint, trained["fingerprint"]) and fingerprint != trained["fingerprint"]:
        differences = [
            f"it was trained on other weights of the same shape (fingerprint {trained['fingerprint']} in the adapter, "
            f"{fingerprint} in the model)"
        ]
    if differences:
        name = f" ({trained['name']})" if trained.get("name") else ""
        raise ValueError(
            f"{adapter.path} does not fit this backbone: {'; '.join(differences)}. "
            f"Load the backbone that it was trained on{name}."
        )


def describe(config: PretrainedConfig) -> dict[str, str | int]:
    """What an adapter's backbone must agree in."""
    heads = query_heads(config)
    sizes = {key: getattr(config, key) for key in ("image_size", "patch_size") if hasattr(config, key)}
    return sizes | {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "vocabulary_size": getattr(config, "vocab_size", None),
    }


def other_trainable(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a model trains besides prompts and gates, by its own names."""
    inside = {id(parameter) for adapter in adapters(model).values() for parameter in adapter.parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses infinities and NaN, naming the tensor."""
    for name, tensor in tensors.items():
        if bad := int((~tensor.isfinite()).sum()):
            raise ValueError(f"{where}{name} has {bad} of {tensor.numel()} numbers that are not finite.")


def check_shapes(file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, list[int]]) -> None:
    """Refuses a missing, surplus or misshapen tensor, naming file and tensor."""
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{file} has no tensor {missing[0]} ({len(missing)} missing).")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{file} has a tensor {surplus[0]} that does not belong there ({len(surplus)} in all).")
    for name, shape in expected.items():
        check_shape(file, name, tensors[name], shape)


def check_shape(file: Path, name: str, tensor: Tensor, expected: list[int]) -> None:
    """Refuses a misshapen tensor, naming file, tensor and both shapes."""
    if list(tensor.shape) != list(expected):
        raise ValueError(f"{file}: {name} is {list(tensor.shape)} instead of {list(expected)}.")


def _metadata(file: Path, header: str) -> dict:
    try:
        metadata = json.loads(header)
        version = metadata["format_version"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: its header is not that of an adapter ({error}).") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, but this program reads version {FORMAT_VERSION}. Install the "
            "llama-adapter that wrote it, or a newer one."
        )
    needed = {"backbone", "prompt_length", "prompt_layers", "gate_activation", "other_parameters"}
    if missing := sorted(needed - metadata.keys()):
        raise ValueError(f"{file}: its header does not say {', '.join(missing)}.")
    backbone = {"hidden_size", "layers", "heads", "fingerprint"}
    if not isinstance(metadata["backbone"], dict):
        raise ValueError(f"{file}: its header is not that of an adapter (backbone is {metadata['backbone']!r}).")
    if missing := sorted(backbone - metadata["backbone"].keys()):
        raise ValueError(f"{file}: its header does not say the backbone's {', '.join(missing)}.")
    return metadata


def _expected_shapes(file: Path, config: AdapterConfig, metadata: dict) -> dict[str, list[int]]:
    base = metadata["backbone"]
    if config.prompt_layers > base["layers"]:
        raise ValueError(f"{file}: its header says {config.prompt_layers} adapted layers of {base['layers']}.")
    shapes = dict(metadata["other_parameters"])
    for layer in range(base["layers"] - config.prompt_layers, base["layers"]):
        shapes[f"layers.{layer}.prompt"] = [config.prompt_length, base["hidden_size"]]
        shapes[f"layers.{layer}.gate"] = [base["heads"]]
    return shapes
