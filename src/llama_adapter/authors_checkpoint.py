"""The authors' adapter files: `.pth` with one table of prompts and a gate for every layer.

    adapter_query.weight [L * K, C]: rows i * K to (i + 1) * K - 1 are the prompt of layer N - L + i
    layers.<i>.attention.gate [1, H, 1, 1]: zero, or absent, below the adapted layers

The format does not say L, nor whether the gates go through tanh: in their training code they do, in their inference
code they do not.
"""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter.adapter_file import AdapterFile, check_finite, check_shapes, describe, other_trainable
from llama_adapter.attach import adapters
from llama_adapter.backbones import query_heads
from llama_adapter.files import whole_file
from llama_adapter.meta_checkpoint import load_tensors
from llama_adapter.zero_init import AdapterConfig

AUTHORS_SUFFIXES = (".pth", ".pt", ".bin")
PROMPTS = "adapter_query.weight"
GATE = re.compile(r"layers\.(\d+)\.attention\.gate")
logger = logging.getLogger(__name__)


def read_authors(
    path: str | Path,
    model: PreTrainedModel,
    *,
    prompt_layers: int | None = None,
    gate_activation: str | None = None,
) -> AdapterFile:
    """Reads and checks an authors' file for a model.

    Args:
        path: the `.pth` file. Names may begin with `module.`, tensors may be in half precision.
        model: bare or with an adapter; its shape decides what fits.
        prompt_layers: L. When not given: that of the attached adapter, else the number of layers whose gate has moved.
        gate_activation: when not given that of the attached adapter, else `tanh`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is damaged, holds code, does not fit the model, or does not tell L.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No adapter {file}. Set adapter_path to an adapter file or to a run's folder.")
    tensors = {name.removeprefix("module."): tensor.float() for name, tensor in load_tensors(file).items()}
    if PROMPTS not in tensors:
        raise ValueError(f"{file} has no tensor {PROMPTS}: it is not an adapter in the authors' layout.")
    check_finite(tensors, f"{file}: ")
    layers, width, heads = model.config.num_hidden_layers, model.config.hidden_size, query_heads(model.config)
    gates = {int(match[1]): tensor for name, tensor in tensors.items() if (match := GATE.fullmatch(name))}
    attached = adapters(model)
    if prompt_layers is None:
        prompt_layers = len(attached) or _adapted_layers(file, gates, layers)
    if not 1 <= prompt_layers <= layers:
        raise ValueError(f"prompt_layers is {prompt_layers}, but the model has {layers} layers. Choose 1 to {layers}.")
    rows = tensors[PROMPTS].shape[0]
    if rows % prompt_layers:
        raise ValueError(
            f"{file}: {PROMPTS} has {rows} rows, which {prompt_layers} adapted layers cannot share evenly. Give the "
            "prompt_layers that the adapter was trained with."
        )
    bottom = layers - prompt_layers
    gated = [layer for layer in range(layers) if layer >= bottom or layer in gates]
    expected = {PROMPTS: [rows, width]} | {f"layers.{layer}.attention.gate": [1, heads, 1, 1] for layer in gated}
    check_shapes(file, tensors, expected)
    for layer in range(bottom):
        if layer in gates and gates[layer].any():
            raise ValueError(
                f"{file}: layers.{layer}.attention.gate is not zero, but with prompt_layers {prompt_layers} the "
                f"adapted layers begin at {bottom}. Give the prompt_layers that the adapter was trained with."
            )
    length = rows // prompt_layers
    activation = gate_activation or (next(iter(attached.values())).gate_activation if attached else "tanh")
    config = AdapterConfig(prompt_length=length, prompt_layers=prompt_layers, gate_activation=activation)
    named = {}
    for index, layer in enumerate(range(bottom, layers)):
        named[f"layers.{layer}.prompt"] = tensors[PROMPTS][index * length : (index + 1) * length].clone()
        named[f"layers.{layer}.gate"] = gates[layer].flatten().clone()
    logger.info("%s: %d prompts in each of %d layers, gate activation %s.", file, length, prompt_layers, activation)
    metadata = {"backbone": describe(model.config) | {"name": None, "fingerprint": None}}
    return AdapterFile(file, config, metadata, named)


def export_authors(model: PreTrainedModel, path: str | Path) -> Path:
    """Writes the adapter of a model in the authors' layout: only tensors, float32.

    Raises:
        ValueError: no adapter is attached, something is not finite, or more than prompts and gates was trained.
    """
    attached = adapters(model)
    if not attached:
        raise ValueError("The model has no adapter to export. Call attach(model, config) first.")
    if others := sorted(other_trainable(model)):
        raise ValueError(f"The authors' layout has no place for {', '.join(others)}. Use save_adapter.")
    tensors: dict[str, Tensor] = {
        PROMPTS: torch.cat([adapter.prompt.detach().to("cpu", torch.float32) for adapter in attached.values()])
    }
    for layer in range(model.config.num_hidden_layers):
        gate = attached[layer].gate.detach() if layer in attached else torch.zeros(query_heads(model.config))
        tensors[f"layers.{layer}.attention.gate"] = gate.to("cpu", torch.float32).clone().view(1, -1, 1, 1)
    check_finite(tensors, "The adapter was not exported: ")
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        torch.save(tensors, temporary)
    return file


def _adapted_layers(file: Path, gates: dict[int, Tensor], layers: int) -> int:
    """L, where the gates tell: those that have moved, or are there at all, are exactly the top ones."""
    moved = {layer for layer, gate in gates.items() if gate.any()}
    there = set(gates)
    # Absent gates below say more than zero gates: an adapted layer may not have moved yet.
    adapted = there if len(there) < layers else moved
    if adapted and adapted == set(range(layers - len(adapted), layers)):
        return len(adapted)
    raise ValueError(
        f"{file} does not tell how many layers are adapted: of {layers} layers {len(there)} have a gate and "
        f"{len(moved)} a gate that is not zero. Give prompt_layers."
    )
