"""Peak memory of real training steps beside what a plan says, each case in a process of its own.

    python -m benchmarks.plan_memory
    python -m benchmarks.plan_memory --device cuda

Weights are random and frozen; a step is forward, backward and AdamW, its gradients freed where Lightning frees them.
On a CPU `tensors` are the bytes of all tensors that torch's profiler saw live at once, `resident` is what the
operating system says (VmHWM) above a baseline: the interpreter with all libraries, after a step of a tiny model.

glibc gives freed blocks below 32 MB back only when nothing above them is in use, so `resident` may be far above what
is live. `MALLOC_MMAP_THRESHOLD_=65536` in the environment makes it return every tensor, for some time of the step;
each case is measured under both settings (`resident` and `returned`).
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import TextIO

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.peak_memory import CLEAR_REFS, RESET_PEAK, kilobytes
from benchmarks.plan_cases import MIB, SHAPES, Case, Training, planned

RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; see above
STEPS = 2  # the second one has the optimizer's moments
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
DEFAULT_SHAPES = {"cpu": "4_layers,16_layers_grouped,encoder", "cuda": "llama_7b,llama_13b"}
DEFAULT_DTYPES = {"cpu": "float32,bfloat16", "cuda": "bfloat16"}


def measure(case: Case, *, tensors: bool = True) -> dict[str, float]:
    """Runs the steps of a case in this process.

    Returns:
        `seconds` of a step, and in MiB: on CUDA `tensors`, the most that PyTorch had allocated; on a CPU `baseline`,
        `resident` above it and, from one more step under the profiler, `tensors`.
    """
    shape = SHAPES[case.shape]
    if case.device == "cuda":
        training = Training(shape, case, examples=shape.examples, tokens=shape.tokens)
        torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(training)
        return {"seconds": seconds, "tensors": torch.cuda.max_memory_allocated() / MIB}
    tiny = TINY | ({"num_key_value_heads": 4} if shape.family == "llama" else {})
    warm = Training(shape, case, examples=2, tokens=16, **tiny)
    for _ in range(STEPS):
        warm.step()
    del warm
    _return_freed_memory()
    baseline = kilobytes("VmRSS") / 1024
    training = Training(shape, case, examples=shape.examples, tokens=shape.tokens)
    _return_freed_memory()
    CLEAR_REFS.write_text(RESET_PEAK)
    seconds = _seconds(training)
    resident = kilobytes("VmHWM") / 1024 - baseline
    live = {"tensors": live_bytes(training) / MIB} if tensors else {}
    return {"seconds": seconds, "baseline": baseline, "resident": resident} | live


def _seconds(training: Training) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        training.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def live_bytes(training: Training) -> int:
    """The most bytes of tensors at once in a step, from the profiler's record of every allocation."""
    lasting = training.lasting_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training.step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return lasting + most


def _return_freed_memory() -> None:
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def compare(case: Case) -> dict[str, float]:
    """Measures a case in fresh processes.

    Returns:
        Figures of `measure`; on a CPU also `returned`, resident memory where freed blocks go back at once; `planned`.
    """
    figures = _in_a_process(case, {})
    if case.device == "cpu":
        figures["returned"] = _in_a_process(case, RETURNED, "--resident-only")["resident"]
    return figures | {"planned": planned(case)}


def _in_a_process(case: Case, environment: dict[str, str], *options: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--measure", json.dumps(asdict(case)), *options]
    process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{case} could not be measured: {process.stderr.strip().splitlines()[-1:]}")
    return json.loads(process.stdout.splitlines()[-1])


def cases_of(options: argparse.Namespace) -> list[Case]:
    """All that was asked for; an encoder's batches are padded, whatever was asked for.

    Raises:
        ValueError: an unknown shape, dtype, form of batches or way of checkpointing; or no such device.
    """
    choices = {
        "shapes": (options.shapes or DEFAULT_SHAPES[options.device], tuple(SHAPES)),
        "dtypes": (options.dtypes or DEFAULT_DTYPES[options.device], ("float32", "bfloat16")),
        "batching": (options.batching, ("flat", "padded")),
        "activation_checkpointing": (options.activation_checkpointing, ("none", "layer", "attention", "products")),
    }
    lists = []
    for key, (given, known) in choices.items():
        values = given.split(",")
        for value in values:
            if value not in known:
                raise ValueError(f"--{key.replace('_', '-')} names {value!r}. Choose from {', '.join(known)}.")
        lists.append(values)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no GPU. Leave it out for the CPU.")
    cases = []
    for shape, dtype, batching, kept in product(*lists):
        form = batching if SHAPES[shape].family == "llama" else "padded"
        case = Case(shape, dtype, form, None if kept == "none" else kept, options.device)
        cases += [case] if case not in cases else []
    return cases


def main(arguments: Sequence[str] | None = None) -> dict[Case, float]:
    """Runs the benchmark; returns by case what was planned divided by the tensors that were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", help=f"of {', '.join(SHAPES)}, with commas between")
    parser.add_argument("--dtypes", help="float32 and bfloat16, or one of them")
    parser.add_argument("--batching", default="flat,padded")
    parser.add_argument("--activation-checkpointing", default="none,layer", help="none, layer, attention, products")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one case in this process
    parser.add_argument("--resident-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        figures = measure(Case(**json.loads(options.measure)), tensors=not options.resident_only)
        _write(sys.stdout, json.dumps(figures))
        return {}
    try:
        cases = cases_of(options)
    except ValueError as error:
        parser.error(str(error))
    columns = ("planned", "tensors", "returned", "resident")
    head = f"{'shape':<20}{'dtype':<10}{'batch':<8}{'keeps':<11}"
    _write(sys.stderr, head + "".join(f"{name:>10}" for name in columns) + f"{'ratios':>22}{'s/step':>9}")
    ratios = {}
    for case in cases:
        figures = compare(case)
        ratios[case] = figures["planned"] / figures["tensors"]
        _write(sys.stdout, json.dumps({"benchmark": "plan_memory", **asdict(case), **figures}))
        measured = [figures.get(name) for name in columns]
        row = f"{case.shape:<20}{case.dtype:<10}{case.batching:<8}{case.activation_checkpointing or 'all':<11}"
        row += "".join(f"{'-':>10}" if value is None else f"{value:>10.0f}" for value in measured)
        shares = "/".join("-" if value is None else f"{figures['planned'] / value:.2f}" for value in measured[1:])
        _write(sys.stderr, f"{row}{shares:>22}{figures['seconds']:>9.2f}")
    if "baseline" in figures:
        _write(sys.stderr, f"baseline: {figures['baseline']:.0f} MiB resident before a model is made, in no column")
    return ratios


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
