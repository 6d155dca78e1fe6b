"""Reads LLaMA weights as Meta publishes them: `params.json` and one `consolidated.NN.pth` per model-parallel shard.

A shard holds a slice of every matrix: the rows of those that widen (wq, wk, wv, w1, w3, output), the columns of those
that narrow (wo, w2), and of the embeddings the columns (LLaMA 1, 2) or the rows (Llama 3). Norms are whole in each.

Meta rotates neighbouring entries (0, 1), (2, 3), ... of a head as pairs; transformers rotates entry j with j + D/2.
Reordering the rows of wq and wk inside each head turns one into the other.

Files are mapped, not read, and only tensors are accepted from them: code in a pickle is refused.
"""

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from llama_adapter.meta_config import llama_config

# Meta's name, transformers' name and the dimension that shards split; None: whole in every shard.
TOP = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", "found from its shape"),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds weights in this layout."""
    return (folder / "params.json").is_file()


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, mapped into memory and read when used.

    Raises:
        ValueError: the file is damaged, holds code, or holds something that is not a tensor.
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors: loading it could run code, so it is refused. "
            "Get the weights from a source you trust, as tensors only."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file} is damaged or not a PyTorch file. Copy or download it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} is not a table of named tensors, as a file of weights is.")
    return tensors


@dataclass(frozen=True)
class MetaCheckpoint:
    """A folder of Meta weights, checked before any weight is read.

    Args:
        folder: holds `params.json` and every `consolidated.NN.pth`.

    Raises (on first use):
        FileNotFoundError: a shard is missing.
        ValueError: a surplus shard, or a missing, surplus or misshapen tensor.
    """

    folder: Path

    @cached_property
    def params(self) -> dict:
        """`params.json`."""
        file = self.folder / "params.json"
        try:
            params = json.loads(file.read_text(encoding="utf-8"))
            missing = [name for name in ("dim", "n_heads", "n_layers", "norm_eps") if name not in params]
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if missing:
            raise ValueError(f"{file} does not say {', '.join(missing)}. Copy it again from the model's download.")
        return params

    @cached_property
    def files(self) -> list[Path]:
        """The shards in order."""
        found = {
            int(match[1]): file
            for file in self.folder.iterdir()
            if (match := re.fullmatch(r"consolidated\.(\d+)\.pth", file.name))
        }
        if not found:
            raise FileNotFoundError(f"{self.folder} has a params.json, but no consolidated.00.pth beside it.")
        query = load_tensors(found[min(found)]).get("layers.0.attention.wq.weight")
        rows = None if query is None or query.dim() != 2 else query.shape[0]
        width = self.params["dim"]
        if not rows or width % rows:
            raise ValueError(
                f"{found[min(found)]}: layers.0.attention.wq.weight is {_shape(query)}, but params.json says dim "
                f"{width}, of which every shard holds an equal share of rows."
            )
        count = width // rows
        for shard in range(count):
            if shard not in found:
                raise FileNotFoundError(
                    f"No file {self.folder / f'consolidated.{shard:02d}.pth'}. The shapes in the other files say that "
                    f"the weights are {count} files, consolidated.00.pth to consolidated.{count - 1:02d}.pth."
                )
        if surplus := sorted(set(found) - set(range(count))):
            raise ValueError(
                f"{found[surplus[0]]} is one file too many: the shapes in the others say that the weights are {count} "
                "files. Move files of another model out of the folder."
            )
        return [found[shard] for shard in range(count)]

    @cached_property
    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The shape of every tensor of every shard, without `rope.freqs`, which is a constant."""
        return [
            {
                name: tuple(tensor.shape)
                for name, tensor in load_tensors(file).items()
                if not name.endswith("rope.freqs")
            }
            for file in self.files
        ]

    @cached_property
    def embeddings_split(self) -> int:
        """The dimension that shards split the embeddings in: 1 in LLaMA 1 and 2, 0 in Llama 3."""
        shape = self._shape_in_first("tok_embeddings.weight")
        width = self.params["dim"]
        # One shard is whole: either answer is right.
        if len(shape) == 2 and shape[1] * len(self.files) == width:
            return 1
        if len(shape) == 2 and shape[1] == width:
            return 0
        raise ValueError(
            f"{self.files[0]}: tok_embeddings.weight is {list(shape)}. With dim {width} and {len(self.files)} files "
            f"it should be {width} or {width // len(self.files)} wide."
        )

    @cached_property
    def config(self) -> LlamaConfig:
        """The model's shape in transformers' words; all shards' tensors have been checked against it."""
        params, shards = self.params, len(self.files)
        rows = self._shape_in_first("tok_embeddings.weight")[0]
        vocabulary = rows if self.embeddings_split == 1 else rows * shards
        said = params.get("vocab_size", -1)
        if said not in (-1, vocabulary):  # -1: LLaMA 1 and 2 leave it to the tokenizer
            raise ValueError(
                f"{self.folder / 'params.json'} says vocab_size {said}, but the embeddings have {vocabulary} rows."
            )
        inner = self._shape_in_first("layers.0.feed_forward.w1.weight")[0] * shards
        config = llama_config(params, vocabulary=vocabulary, intermediate_size=inner)
        self._check(config)
        return config

    def names(self) -> dict[str, tuple[str, int | None]]:
        """For every tensor its name in transformers and the dimension that shards split."""
        table = TOP | {"tok_embeddings.weight": (TOP["tok_embeddings.weight"][0], self.embeddings_split)}
        for layer in range(self.params["n_layers"]):
            for name, (target, split) in LAYER.items():
                table[f"layers.{layer}.{name}"] = (f"model.layers.{layer}.{target}", split)
        return table

    def rows(self, name: str, indices: list[int]) -> Tensor:
        """Some rows of a tensor, in Meta's order, without reading the others: [len(indices), ...]."""
        parts = [load_tensors(file)[name] for file in self.files]
        split = self.names()[name][1]
        if split is None:
            return parts[0][indices]
        if split == 1:
            return torch.cat([part[indices] for part in parts], dim=1)
        share = len(parts[0])
        return torch.stack([parts[index // share][index % share] for index in indices])

    def load(self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """All tensors under transformers' names, joined and reordered."""
        state: dict[str, Tensor] = {}
        for part in self.parts(config, dtype, device):
            state |= part
        return state

    def parts(self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """The same layer by layer.

        The files are opened anew for every layer: the pages that a layer's tensors were read from are given back with
        the mapping, so memory holds of the files never more than one layer.
        """
        layers: dict[str, list[str]] = {}
        for name in self.names():
            layers.setdefault(".".join(name.split(".")[:2]), []).append(name)
        for names in layers.values():
            yield self._load_some(names, config, dtype, device)

    def _load_some(
        self, names: list[str], config: PretrainedConfig, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        # A function of its own: one tensor that outlived it would keep the whole mapping and its pages.
        shards = [load_tensors(file) for file in self.files]
        head_size = config.hidden_size // config.num_attention_heads
        table, state = self.names(), {}
        for name in names:
            target, split = table[name]
            parts = [shard[name] for shard in (shards[:1] if split is None else shards)]
            shape = list(parts[0].shape)
            shape[split or 0] *= len(parts)
            state[target] = torch.empty(shape, dtype=dtype, device=device)
            for place, part in zip(state[target].chunk(len(parts), dim=split or 0), parts, strict=True):
                if name.endswith(("wq.weight", "wk.weight")):
                    place, part = paired_view(place, head_size), part.unflatten(0, (-1, head_size // 2, 2))
                place.copy_(part)  # converts and reorders on the way, without another tensor in memory
        return state

    def _shape_in_first(self, name: str) -> tuple[int, ...]:
        try:
            return self.shapes[0][name]
        except KeyError:
            raise ValueError(f"{self.files[0]} has no tensor {name}: it is not a complete LLaMA.") from None

    def _check(self, config: LlamaConfig) -> None:
        if config.num_key_value_heads % len(self.files):
            raise ValueError(
                f"{self.folder} has {len(self.files)} files for {config.num_key_value_heads} key/value heads. Only "
                "weights whose files hold whole heads can be read: use the Hugging Face layout of this model."
            )
        width, vocabulary = config.hidden_size, config.vocab_size
        keys = width // config.num_attention_heads * config.num_key_value_heads
        inner = config.intermediate_size
        whole = {"tok_embeddings": (vocabulary, width), "output": (vocabulary, width)}
        whole |= {"wq": (width, width), "wk": (keys, width), "wv": (keys, width), "wo": (width, width)}
        whole |= {"w1": (inner, width), "w2": (width, inner), "w3": (inner, width)}
        table = self.names()
        for file, shapes in zip(self.files, self.shapes, strict=True):
            if missing := sorted(table.keys() - shapes.keys()):
                raise ValueError(f"{file} has no tensor {missing[0]} ({len(missing)} missing). Copy the file again.")
            if surplus := sorted(shapes.keys() - table.keys()):
                raise ValueError(
                    f"{file} has a tensor {surplus[0]} that LLaMA with {config.num_hidden_layers} layers lacks "
                    f"({len(surplus)} in all). Do params.json and the file belong together?"
                )
            for name, (_, split) in table.items():
                expected = list(whole.get(name.split(".")[-2], (width,)))
                if split is not None:
                    expected[split] //= len(self.files)
                if list(shapes[name]) != expected:
                    raise ValueError(
                        f"{file}: {name} is {list(shapes[name])}, but params.json and {len(self.files)} file(s) make "
                        f"it {expected}. Do params.json and all files belong to one model?"
                    )


def paired_view(weight: Tensor, head_size: int) -> Tensor:
    """Half-split rows of wq or wk, [H * D, C], seen in Meta's order, [H, D/2, 2, C], so that writing reorders."""
    return weight.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
