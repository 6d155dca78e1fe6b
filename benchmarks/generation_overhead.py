"""What an adapter costs in generation: tokens per second with it, divided by the frozen model's.

    python -m benchmarks.generation_overhead --device cpu --rounds 7

Two models with the same random weights, one of them adapted, decode the same prompts by turns.
"""

import argparse
import copy
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.interleaved import interleave, report
from llama_adapter.attach import attach
from llama_adapter.generation import generate_ids
from llama_adapter.zero_init import AdapterConfig

VOCABULARY_SIZE = 1000


def random_llama(*, hidden_size: int, layers: int, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A LLaMA of any size with random weights and heads of 64, the same ones at every call."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,  # the paper's LLaMA: two thirds of four times the width
        num_hidden_layers=layers,
        num_attention_heads=max(hidden_size // 64, 1),
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the benchmark; returns each system's speed relative to the frozen model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompt-layers", type=int, default=7, help="L, adapted layers")
    parser.add_argument("--prompt-length", type=int, default=10, help="K, prompt tokens per adapted layer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args(arguments)

    frozen = random_llama(
        hidden_size=options.hidden_size,
        layers=options.layers,
        dtype=getattr(torch, options.dtype),
        device=options.device,
    )
    adapter = AdapterConfig(options.prompt_length, options.prompt_layers, gate_init="random")
    models = {"frozen": frozen, "adapter": attach(copy.deepcopy(frozen), adapter)}
    prompts = torch.randint(3, VOCABULARY_SIZE, (options.batch_size, options.prompt_tokens)).tolist()
    # no EOS: every answer has all of its tokens; the ids are lists, so a call ends when the device is done
    decode = partial(generate_ids, prompts=prompts, eos_ids=(), pad_id=0, max_new_tokens=options.new_tokens)
    seconds = interleave({name: partial(decode, model) for name, model in models.items()}, options.rounds)
    tokens = options.batch_size * options.new_tokens
    return report(seconds, tokens=tokens, baseline="frozen", benchmark="generation_overhead", **vars(options))


if __name__ == "__main__":
    main()
