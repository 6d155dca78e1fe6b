"""Tokens per second in generation: the frozen model, the adapted one, and the paper's equations with a cache.

    python -m benchmarks.generation --rounds 5
    python -m benchmarks.generation --preset llama-7b --device cuda

Prompts have Alpaca's lengths and are decoded together, greedily, for a fixed number of tokens. On an accelerator there
are two more systems: the adapted model with a cache of fixed size, eager and compiled. `--check` first compares the
tokens of every adapted system.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.examples import draw, random_examples
from benchmarks.interleaved import interleave, report
from benchmarks.shapes import MAX_POSITIONS, add_shape_arguments, settings, shape_of
from benchmarks.systems import paper
from benchmarks.systems.system import PAD_ID, Workload
from llama_adapter.attach import prompts_projected
from llama_adapter.examples import IGNORED
from llama_adapter.generation import generate_ids

Ids = list[list[int]]
BASELINE = "frozen"
LEAST_AGREEMENT = 0.9  # in half precision two equal best tokens may change places, and the rest of the row with them


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the benchmark; returns each system's speed relative to the frozen model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--batch", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--check", action="store_true", help="first compare the tokens of the adapted systems")
    options = parser.parse_args(arguments)
    try:
        shape = shape_of(options)
        for key in ("batch", "new_tokens", "rounds"):
            if getattr(options, key) < 1:
                raise ValueError(f"--{key.replace('_', '-')} must be at least 1, got {getattr(options, key)}.")
        prompts = _prompts(shape.vocab, options)
    except ValueError as error:
        parser.error(str(error))
    workload = Workload(shape)
    systems = _systems(workload, prompts, options.new_tokens)
    if options.check:
        check({name: decode for name, decode in systems.items() if name != BASELINE})
    seconds = interleave(systems, options.rounds)
    common = {"batch": options.batch, "new_tokens": options.new_tokens, "prompt_tokens": [len(ids) for ids in prompts]}
    tokens = options.batch * options.new_tokens
    return report(seconds, tokens=tokens, baseline=BASELINE, benchmark="generation", **settings(shape), **common)


def check(systems: dict[str, Callable[[], Ids]]) -> None:
    """Compares the greedy tokens of every system with the first one's.

    Raises:
        ArithmeticError: one disagrees on more than a few.
    """
    names = list(systems)
    expected, *others = ([token for row in systems[name]() for token in row] for name in names)
    for name, tokens in zip(names[1:], others, strict=True):
        agreement = sum(a == b for a, b in zip(expected, tokens, strict=True)) / len(expected)
        if agreement < LEAST_AGREEMENT:
            raise ArithmeticError(
                f"{name} agrees with {names[0]} on {agreement:.0%} of the greedy tokens, at least "
                f"{LEAST_AGREEMENT:.0%} were expected. Is one of them wrong, or is it rounding? Try --dtype float32."
            )


def _systems(workload: Workload, prompts: Ids, new_tokens: int) -> dict[str, Callable[[], Ids]]:
    # No EOS: every answer has all of its tokens. Ids come back as lists, so a call ends when the device is done.
    decode = partial(generate_ids, prompts=prompts, eos_ids=(), pad_id=PAD_ID, max_new_tokens=new_tokens)
    systems = {
        BASELINE: partial(decode, workload.frozen),
        "adapted": partial(decode, workload.adapted),
        "paper": partial(paper.generate, workload.adapted, prompts, pad_id=PAD_ID, max_new_tokens=new_tokens),
    }
    if not workload.shape.device.startswith("cpu"):
        for name, compiled in (("adapted_static", False), ("adapted_static_compiled", True)):
            systems[name] = partial(_static_cache, workload.adapted, prompts, new_tokens, compiled=compiled)
    return systems


@torch.no_grad()
def _static_cache(model: PreTrainedModel, prompts: Ids, new_tokens: int, *, compiled: bool) -> Ids:
    """Decoding with a cache allocated once for all positions; transformers compiles the step if asked to."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[PAD_ID] * (longest - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD_ID,
        cache_implementation="static",
        disable_compile=not compiled,
    )
    with prompts_projected(model):
        return model.generate(input_ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()


def _prompts(vocab: int, options: argparse.Namespace) -> Ids:
    longest = MAX_POSITIONS - options.new_tokens
    if longest < 2:
        raise ValueError(
            f"--new-tokens is {options.new_tokens}, but the model has {MAX_POSITIONS} positions, prompts included."
        )
    examples = random_examples(vocab, min(512, longest))
    (drawn,) = draw(examples, batch=options.batch, batches=1, seed=options.seed)
    return [example["input_ids"][example["labels"] == IGNORED].tolist() for example in drawn]


if __name__ == "__main__":
    main()
