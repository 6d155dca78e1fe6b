"""Tokens per second in generation: the frozen model, the adapted one, and the paper's equations with a cache.

    python -m benchmarks.generation --rounds 5
    python -m benchmarks.generation --prompts 48 --uneven
    python -m benchmarks.generation --preset llama-7b --device cuda

Prompts have Alpaca's lengths; answers are greedy, all of one length, or of Alpaca's lengths with `--uneven`. Ours are
decoded in slots; `adapted_transformers` is our adapter under transformers' own `generate`, in fixed batches. On an
accelerator there are two more systems: ours with a cache of fixed size, eager and compiled. `--check` first compares
the tokens of every adapted system.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.examples import draw, random_examples
from benchmarks.interleaved import interleave, report
from benchmarks.shapes import MAX_POSITIONS, add_shape_arguments, settings, shape_of
from benchmarks.systems import paper
from benchmarks.systems.system import PAD_ID, Workload
from llama_adapter.attach import prompts_projected
from llama_adapter.decoding import SlotDecoder
from llama_adapter.examples import IGNORED

Ids = list[list[int]]
BASELINE = "frozen"
LEAST_AGREEMENT = 0.9  # in half precision two equal best tokens may change places, and the rest of the row with them


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the benchmark; returns each system's speed relative to the frozen model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--batch", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--prompts", type=int, help="of a round; one batch when not given")
    parser.add_argument("--new-tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--uneven", action="store_true", help="answers of Alpaca's lengths, --new-tokens at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--check", action="store_true", help="first compare the tokens of the adapted systems")
    options = parser.parse_args(arguments)
    try:
        shape = shape_of(options)
        options.prompts = options.batch if options.prompts is None else options.prompts
        for key in ("batch", "prompts", "new_tokens", "rounds"):
            if getattr(options, key) < 1:
                raise ValueError(f"--{key.replace('_', '-')} must be at least 1, got {getattr(options, key)}.")
        prompts, lengths = _prompts(shape.vocab, options)
    except ValueError as error:
        parser.error(str(error))
    workload = Workload(shape)
    systems = _systems(workload, prompts, lengths, options.batch)
    if options.check:
        check({name: decode for name, decode in systems.items() if name != BASELINE})
    seconds = interleave(systems, options.rounds)
    common = {"batch": options.batch, "new_tokens": lengths, "prompt_tokens": [len(ids) for ids in prompts]}
    return report(seconds, tokens=sum(lengths), baseline=BASELINE, benchmark="generation", **settings(shape), **common)


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


def _systems(workload: Workload, prompts: Ids, lengths: list[int], batch: int) -> dict[str, Callable[[], Ids]]:
    # Ids come back as lists, so a call ends when the device is done.
    decode = partial(_in_slots, prompts=prompts, lengths=lengths, batch=batch)
    systems = {
        BASELINE: partial(decode, workload.frozen),
        "adapted": partial(decode, workload.adapted),
        "adapted_transformers": partial(_in_batches, workload.adapted, prompts, lengths, batch),
        "paper": partial(_paper, workload.adapted, prompts, lengths, batch),
    }
    if not workload.shape.device.startswith("cpu"):
        systems["adapted_static"] = partial(decode, workload.adapted, static=True, compiled=False)
        systems["adapted_static_compiled"] = partial(decode, workload.adapted, static=True)
    return systems


@torch.no_grad()
def _in_slots(model: PreTrainedModel, *, prompts: Ids, lengths: list[int], batch: int, **options: bool) -> Ids:
    """As `generate_ids` decodes; it has one limit for all answers, here each has its own."""
    with prompts_projected(model):
        return SlotDecoder(
            model,
            prompts,
            slots=batch,
            max_new_tokens=lengths,
            eos_ids=(),
            pad_id=PAD_ID,
            choose=lambda logits: logits.argmax(dim=-1),
            **options,
        ).run()


def _batches(prompts: Ids, lengths: list[int], batch: int) -> Iterator[tuple[list[int], Ids, int]]:
    """Prompts of similar length together, each batch as long as its longest answer."""
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    for start in range(0, len(prompts), batch):
        chosen = by_length[start : start + batch]
        yield chosen, [prompts[index] for index in chosen], max(lengths[index] for index in chosen)


@torch.no_grad()
def _in_batches(model: PreTrainedModel, prompts: Ids, lengths: list[int], batch: int) -> Ids:
    """transformers' own `generate`, adapter and all: left-padded batches with a cache that grows."""
    answers: Ids = [[] for _ in prompts]
    for chosen, part, new_tokens in _batches(prompts, lengths, batch):
        longest = max(map(len, part))
        input_ids = torch.tensor([[PAD_ID] * (longest - len(ids)) + ids for ids in part], device=model.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in part], device=model.device)
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=PAD_ID, use_cache=True
        )
        with prompts_projected(model):
            output = model.generate(input_ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        for index, ids in zip(chosen, output, strict=True):
            answers[index] = ids[: lengths[index]]
    return answers


def _paper(model: PreTrainedModel, prompts: Ids, lengths: list[int], batch: int) -> Ids:
    answers: Ids = [[] for _ in prompts]
    for chosen, part, new_tokens in _batches(prompts, lengths, batch):
        for index, ids in zip(
            chosen, paper.generate(model, part, pad_id=PAD_ID, max_new_tokens=new_tokens), strict=True
        ):
            answers[index] = ids[: lengths[index]]
    return answers


def _prompts(vocab: int, options: argparse.Namespace) -> tuple[Ids, list[int]]:
    """Prompts, and how long each one's answer is."""
    longest = MAX_POSITIONS - options.new_tokens
    if longest < 2:
        raise ValueError(
            f"--new-tokens is {options.new_tokens}, but the model has {MAX_POSITIONS} positions, prompts included."
        )
    examples = random_examples(vocab, min(512, longest))
    (drawn,) = draw(examples, batch=options.prompts, batches=1, seed=options.seed)
    trained = [example["labels"] != IGNORED for example in drawn]
    prompts = [example["input_ids"][~answer].tolist() for example, answer in zip(drawn, trained, strict=True)]
    if options.uneven:
        return prompts, [min(options.new_tokens, int(answer.sum())) for answer in trained]
    return prompts, [options.new_tokens] * len(prompts)


if __name__ == "__main__":
    main()
