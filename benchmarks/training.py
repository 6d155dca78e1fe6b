"""Training steps per second: ours in all its forms, the paper's equations as they stand, and other implementations.

    python -m benchmarks.training --rounds 7
    python -m benchmarks.training --preset llama-7b --device cuda --memory
    python -m benchmarks.training --vocab 32000 --data alpaca_data.json --tokenizer path/to/llama

A step is forward and backward over a batch of examples of Alpaca's lengths, then AdamW. Every round has a batch of its
own, the same one for every system, and the systems take turns. `--check` compares losses and gradients first.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

import torch
from torch._dynamo.exc import BackendCompilerFailed

from benchmarks.examples import count_tokens, draw, random_examples, real_examples
from benchmarks.interleaved import interleave
from benchmarks.peak_memory import peak_megabytes
from benchmarks.shapes import MAX_POSITIONS, add_shape_arguments, settings, shape_of
from benchmarks.systems import litgpt_adapter, ours, paper, peft_prompt
from benchmarks.systems.system import System, SystemUnavailableError, TrainingSteps, Workload
from llama_adapter.examples import Example
from llama_adapter.layer_modes import KEPT

SYSTEMS: dict[str, Callable[[Workload], System]] = {
    "paper": paper.system,
    "paper_compiled": paper.compiled_system,
    "padded512": ours.padded512,
    "padded_longest": ours.padded_longest,
    "flat": ours.flat,
    "flat_prefix": ours.flat_prefix,
    "flat_prefix_compiled": ours.flat_prefix_compiled,
    "peft": peft_prompt.system,
    "litgpt": litgpt_adapter.system,
}
CHECKPOINTED = {f"flat_prefix_keeps_{kept}": ours.flat_prefix_keeping(kept) for kept in KEPT}  # when asked for
FOREIGN = ("peft", "litgpt")  # other equations and other weights: nothing to compare number by number
BASELINE = "paper"
# Relative, of the loss and of all gradients together. float32: the summation order of two formulations, with room.
# Half precision has 8 or 11 bits, rounded after every operation of every layer.
TOLERANCES = {"float32": (1e-5, 1e-4), "bfloat16": (2e-2, 2e-1), "float16": (2e-3, 5e-2)}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the benchmark; returns each system's speed relative to the paper's formulation (or the first system)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        shape = shape_of(options)
        names = _names(options.systems)
        examples = _examples(options, shape.vocab)
        batches = draw(examples, batch=options.batch, batches=options.rounds + 1, seed=options.seed)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    workload = Workload(shape, options.max_length, options.micro_batch)
    steps: dict[str, TrainingSteps] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            steps[name] = _first_step(name, workload, batches)
        except SystemUnavailableError as error:
            skipped[name] = str(error)
    common = {"benchmark": "training", **settings(shape), "batch": options.batch, "micro_batch": options.micro_batch}
    if options.check:
        check({name: step for name, step in steps.items() if name not in FOREIGN}, shape.dtype, common)
    megabytes = {}
    if options.memory:
        megabytes = {name: peak_megabytes(step.gradients, shape.device) for name, step in steps.items()}
    seconds = interleave(steps, options.rounds)
    return report(steps, seconds, skipped, [count_tokens(batch) for batch in batches[1:]], megabytes, common)


def check(steps: dict[str, TrainingSteps], dtype: str, common: dict[str, object]) -> None:
    """Compares every system's loss and adapter gradients of the first batch with the first system's.

    Raises:
        ArithmeticError: one is further off than rounding is.
    """
    tolerances = TOLERANCES[dtype]
    reference: tuple[float, torch.Tensor] | None = None
    for name, step in steps.items():
        loss = step.loss(0).item()
        gradient = torch.cat([parameter.grad.flatten() for parameter in step.system.trainable])
        step.optimizer.zero_grad()
        reference = reference or (loss, gradient)
        differences = (
            abs(loss - reference[0]) / abs(reference[0]),
            ((gradient - reference[1]).norm() / reference[1].norm()).item(),
        )
        figures = dict(zip(("loss_difference", "gradient_difference"), differences, strict=True))
        _write(sys.stdout, json.dumps({"check": name, **common, "loss": loss, **figures}))
        _write(sys.stderr, f"{name:<24}loss {loss:.6f}, off by {differences[0]:.1e}; gradients {differences[1]:.1e}")
        # not (a <= b): NaN must fail
        if not all(difference <= limit for difference, limit in zip(differences, tolerances, strict=True)):
            raise ArithmeticError(
                f"{name} is off by {differences[0]:.1e} in the loss and {differences[1]:.1e} in the gradient, relative "
                f"to {next(iter(steps))}. In {dtype}, rounding explains {tolerances[0]:.0e} and {tolerances[1]:.0e}."
            )


def report(
    steps: dict[str, TrainingSteps],
    seconds: dict[str, list[float]],
    skipped: dict[str, str],
    tokens: list[tuple[int, int]],
    megabytes: dict[str, float | None],
    common: dict[str, object],
) -> dict[str, float]:
    """Writes one JSON line per system and a table.

    Args:
        steps: the systems that ran.
        seconds: of `interleave`, by system.
        skipped: the reasons of those that did not run.
        tokens: of each round's examples, all and trained ones.
        megabytes: peak memory above the model, where it was measured.
        common: repeated in every JSON line.

    Returns:
        By system, the median over the rounds of its speed divided by the baseline's in the same round.
    """
    head = f"{'system':<22}{'s/step':>9}{'useful/s':>10}{'response/s':>12}"
    head += f"{'share':>7}{'MB':>7}{'ratio':>8}{'from':>8}{'to':>8}"
    rows, ratios = [head], {}
    baseline = BASELINE if BASELINE in steps else next(iter(steps), None)
    for name, own in seconds.items():
        ratio = [base / mine for base, mine in zip(seconds[baseline], own, strict=True)]
        useful = [all_tokens / time for (all_tokens, _), time in zip(tokens, own, strict=True)]
        response = [trained / time for (_, trained), time in zip(tokens, own, strict=True)]
        ratios[name] = statistics.median(ratio)
        result = {
            "step_seconds": statistics.median(own),
            "useful_tokens_per_second": round(statistics.median(useful), 1),
            "response_tokens_per_second": round(statistics.median(response), 1),
            # above 1 where a shared prefix is computed once for many examples
            "useful_share": round(sum(number for number, _ in tokens) / sum(steps[name].positions[1:]), 4),
            "peak_megabytes": None if megabytes.get(name) is None else round(megabytes[name]),
            "baseline": baseline,
            "ratio": round(ratios[name], 4),
            "ratio_range": [round(min(ratio), 4), round(max(ratio), 4)],
            "seconds": own,
        }
        _write(sys.stdout, json.dumps({"system": name, **common, **result}))
        memory = "-" if result["peak_megabytes"] is None else result["peak_megabytes"]
        rows.append(
            f"{name:<22}{result['step_seconds']:>9.3f}{result['useful_tokens_per_second']:>10.0f}"
            f"{result['response_tokens_per_second']:>12.0f}{result['useful_share']:>7.2f}{memory:>7}"
            f"{ratios[name]:>8.2f}{min(ratio):>8.2f}{max(ratio):>8.2f}"
        )
    for name, reason in skipped.items():
        _write(sys.stdout, json.dumps({"system": name, **common, "skipped": reason}))
        rows.append(f"{name:<22}skipped: {reason}")
    _write(sys.stderr, "\n".join(rows))
    return ratios


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--batch", type=int, default=16, help="examples of a step")
    parser.add_argument("--micro-batch", type=int, default=4, help="examples of a padded micro-batch (the paper's: 4)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of an example (the paper's: 512)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which ones, with commas between")
    parser.add_argument("--data", help="an Alpaca file, instead of random tokens; with --tokenizer")
    parser.add_argument("--tokenizer", help="folder or file of the tokenizer for --data")
    parser.add_argument("--check", action="store_true", help="first compare losses and gradients with the paper's")
    parser.add_argument("--memory", action="store_true", help="peak memory above the model too")
    return parser


def _names(given: str) -> list[str]:
    names = given.split(",")
    for name in names:
        if name not in SYSTEMS | CHECKPOINTED:
            raise ValueError(f"--systems names {name!r}. Choose from {', '.join(SYSTEMS | CHECKPOINTED)}.")
    return names


def _examples(options: argparse.Namespace, vocab: int) -> list[Example]:
    if (options.data is None) != (options.tokenizer is None):
        raise ValueError("--data and --tokenizer go together: give both, or neither for random tokens.")
    for key in ("batch", "micro_batch", "rounds", "max_length"):
        least = 2 if key == "max_length" else 1
        if getattr(options, key) < least:
            raise ValueError(f"--{key.replace('_', '-')} must be at least {least}, got {getattr(options, key)}.")
    if options.max_length > MAX_POSITIONS:
        raise ValueError(f"--max-length is {options.max_length}, but the model has {MAX_POSITIONS} positions.")
    if options.data is None:
        return random_examples(vocab, options.max_length)
    return real_examples(options.data, options.tokenizer, vocab=vocab, max_length=options.max_length)


def _first_step(name: str, workload: Workload, batches: Sequence[Sequence[Example]]) -> TrainingSteps:
    """A system that has computed gradients once: what compiles has compiled, what cannot run is known.

    Raises:
        SystemUnavailableError: another library, or the compiler, is not there or fails.
    """
    try:
        steps = TrainingSteps((SYSTEMS | CHECKPOINTED)[name](workload), batches, workload.shape.device)
        steps.gradients()
    except BackendCompilerFailed as error:
        raise SystemUnavailableError(_first_line(error)) from error
    except Exception as error:
        if name in FOREIGN and not isinstance(error, SystemUnavailableError):
            raise SystemUnavailableError(f"{type(error).__name__}: {_first_line(error)}") from error
        raise
    return steps


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")


if __name__ == "__main__":
    main()
