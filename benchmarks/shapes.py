"""The model a benchmark runs on: its shape by preset and command line, its random weights made on the device."""

import argparse
import copy
from dataclasses import asdict, dataclass, fields, replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llama_adapter.zero_init import AdapterConfig

DTYPES = ("float32", "bfloat16", "float16")
MAX_POSITIONS = 2048  # of LLaMA


@dataclass(frozen=True)
class Shape:
    """What is adapted and where it runs.

    Args:
        dim: C, width. A head has dim / heads.
        layers: of the frozen model.
        heads: H; keys and values have as many, as in LLaMA 1.
        vocab: V, size of the vocabulary.
        prompt_length: K, prompt tokens per adapted layer.
        prompt_layers: L, adapted layers, counted from the top.
        dtype: of the frozen weights; prompts and gates are always float32.
        device: where everything is made and runs.
    """

    dim: int = 512
    layers: int = 8
    heads: int = 8
    vocab: int = 2048
    prompt_length: int = 10
    prompt_layers: int = 7
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"--{field.name.replace('_', '-')} must be at least 1, got {value}.")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(
                f"--dim is {self.dim} and --heads is {self.heads}, but a head needs an even number of channels. "
                "Choose a --dim that is a multiple of 2 x heads."
            )
        if self.prompt_layers > self.layers:
            raise ValueError(
                f"--prompt-layers is {self.prompt_layers}, but the model has {self.layers} layers. "
                f"Choose 1 to {self.layers}."
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype is {self.dtype!r}. Choose {', '.join(DTYPES)}.")
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device is {self.device!r}, where PyTorch cannot work: {reason}") from None

    @property
    def feed_forward(self) -> int:
        """LLaMA's rule: two thirds of four times the width, rounded up to a multiple of 256."""
        return -(-(8 * self.dim // 3) // 256) * 256

    @property
    def adapter(self) -> AdapterConfig:
        """Gates away from zero, so that no part of the mechanism is multiplied by nothing."""
        return AdapterConfig(self.prompt_length, self.prompt_layers, gate_init="random")


PRESETS = {
    "small": Shape(),
    "llama-7b": Shape(dim=4096, layers=32, heads=32, vocab=32000, prompt_layers=30, dtype="bfloat16"),
    "llama-13b": Shape(dim=5120, layers=40, heads=40, vocab=32000, prompt_layers=38, dtype="bfloat16"),
}


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shape_of`: a preset, and one for each field of `Shape` that overrides it."""
    parser.add_argument("--preset", default="small", help=f"{', '.join(PRESETS)}; what follows overrides it")
    for field in fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type)
    parser.add_argument("--threads", type=int, help="of the CPU; as many as torch chooses when not given")


def shape_of(options: argparse.Namespace) -> Shape:
    """The preset with what was given on the command line; sets the number of threads, too.

    Raises:
        ValueError: the preset is unknown, the shape is none, or there are no threads.
    """
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}.")
        torch.set_num_threads(options.threads)
    if options.preset not in PRESETS:
        raise ValueError(f"--preset is {options.preset!r}. Choose {', '.join(PRESETS)}.")
    given = {field.name: getattr(options, field.name) for field in fields(Shape)}
    return replace(PRESETS[options.preset], **{key: value for key, value in given.items() if value is not None})


def llama_config(shape: Shape) -> LlamaConfig:
    """The shape in transformers' words."""
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.dim,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=MAX_POSITIONS,
        # transformers starts with 0.02: scores of almost nothing at small widths, in which a wrong mask hides.
        initializer_range=shape.dim**-0.5,
        pad_token_id=0,
        eos_token_id=None,  # generation would end there
        attn_implementation="sdpa",
    )


def random_model(shape: Shape) -> PreTrainedModel:
    """A frozen LLaMA with random weights, the same ones at every call on the same device."""
    devices = [shape.device] if shape.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), torch.device(shape.device):
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(llama_config(shape), dtype=getattr(torch, shape.dtype))
    return model.requires_grad_(False).eval()


def same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model of the same parameters: modules of its own, no memory of its own."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=shared)


def settings(shape: Shape) -> dict[str, object]:
    """What every JSON line repeats about the model."""
    return asdict(shape)
