"""The text of a plan, and of the plans of several trainers side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llama_adapter.memory import GIB

if TYPE_CHECKING:
    from llama_adapter.plan import Plan


def lines_of(plan: "Plan") -> list[tuple[str, str]]:
    """The plan as pairs of a title and its text."""
    shape, batch = plan.architecture, plan.global_batch_size
    frozen = f"{shape.parameters:,} frozen in {plan.quantization or plan.dtype}"
    warmup = f"warm-up {plan.warmup_epochs:g} of {plan.epochs:.3g} epochs"
    return [
        ("model", f"{plan.model}: {frozen}"),
        ("trainable parameters", f"{plan.trainable_parameters:,} ({_trained(plan)}), total {_total(plan):,}"),
        (
            "global batch",
            f"{batch} = {plan.devices} devices x {_micro_batch(plan)} x {plan.accumulation} accumulated",
        ),
        (
            "learning rate",
            f"{plan.learning_rate:.4g} (base {plan.base_learning_rate:g} x {batch} / 256), {warmup}",
        ),
        ("steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} per epoch of {plan.examples:,} examples)"),
        (
            "tokens per step",
            f"about {plan.tokens_per_step:,.0f} ({plan.tokens_per_example:.1f} per example, at most {plan.max_length})",
        ),
        ("FLOPs per step", _flops(plan)),
        ("memory per device", _memory(plan)),
        ("expected time", _time(plan)),
        *(("note", note) for note in plan.notes),
        *(("warning", warning) for warning in plan.warnings),
    ]


def _trained(plan: "Plan") -> str:
    if plan.trained == "head":
        return "the head alone"
    if plan.trained == "all":
        return "all weights"
    parts = [f"K={plan.prompt_length}, L={plan.prompt_layers} of {plan.architecture.layers} layers"]
    parts += ["and the projection of images"] if plan.vision else []
    parts += ["and the head"] if plan.head_outputs else []
    return ", ".join(parts)


def _total(plan: "Plan") -> int:
    return plan.trainable_parameters + (0 if plan.trained == "all" else plan.architecture.parameters)


def _micro_batch(plan: "Plan") -> str:
    if plan.max_tokens is None:
        return f"{plan.micro_batch_size} examples"
    return f"at most {plan.micro_batch_size} examples and {plan.max_tokens:,} tokens"


def _flops(plan: "Plan") -> str:
    flops = plan.micro_batch_flops
    tokens = plan.tokens_per_step / plan.devices / plan.accumulation
    parts = {
        "forward": flops.forward,
        "backward": flops.backward,
        "computed again": flops.recomputed,
        "prompts": flops.prompts,
        "head": flops.head,
        "images": flops.images,
    }
    named = ", ".join(f"{name} {_rate(value / tokens)}" for name, value in parts.items() if value)
    return f"about {_rate(plan.flops_per_step)}FLOP, {_rate(flops.computed / tokens)}FLOP per token ({named})"


def _memory(plan: "Plan") -> str:
    memory = plan.memory
    room = f" of {plan.hardware.memory_gib:g}" if plan.hardware.memory_gib else ""
    short, gathered = {
        "forward": ({}, memory.gathered_forward),
        "logits": ({"logits": memory.logits}, memory.gathered_head),
        "backward": ({"one layer's backward pass": memory.passing}, memory.gathered_backward),
    }[memory.peak]
    parts = {
        "weights" if plan.sharding is None else f"1/{plan.sharding.devices} of the weights": memory.weights,
        "gathered weights": gathered,
        "activations": memory.activations - (memory.not_yet_kept if memory.peak == "forward" else 0.0),
        **short,
        "adapter and optimizer": memory.adapter,
    }
    named = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items() if value)
    return f"at most about {memory.total / GIB:.2f}{room} GiB ({named})"


def _time(plan: "Plan") -> str:
    if plan.time is None:
        return "unknown: set hardware.peak_tflops"
    hardware, time = plan.hardware, plan.time
    exchange = f", {time.communication / time.seconds:.1%} of it communication" if plan.devices > 1 else ""
    return (
        f"about {duration(time.seconds)} per step, {duration(time.seconds * plan.steps)} in all without validation and "
        f"evaluation (at {hardware.utilization:.0%} of {hardware.tflops_in(plan.dtype):g} TFLOP/s{exchange})"
    )


def _rate(value: float) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def duration(seconds: float) -> str:
    """In the unit that a person would take."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


TIGHT = 0.95  # of a device's memory
HEADER = ("trainer", "devices", "memory per device", "step", "tokens/s", "run", "")


def side_by_side(plans: Mapping[str, "Plan | str"], chosen: str) -> str:
    """The same run on several trainers.

    Args:
        plans: by trainer; a reason instead of a plan where it cannot run there.
        chosen: the run's own trainer.
    """
    fastest = _fastest(plans)
    rows = [HEADER]
    for name, plan in plans.items():
        marks = ["this run"] if name == chosen else []
        if isinstance(plan, str):
            rows.append((name, "", "", "", "", "", plan))
            continue
        marks += ["does not fit"] if plan.fits is False else ["tight"] if _tight(plan) else []
        marks += ["fastest that fits"] if name == fastest else []
        room = f" of {plan.hardware.memory_gib:g}" if plan.hardware.memory_gib else ""
        times = ("unknown", "", "")
        if plan.time is not None:
            seconds = plan.time.seconds
            times = (duration(seconds), f"{plan.tokens_per_step / seconds:,.0f}", duration(seconds * plan.steps))
        devices = f"{plan.nodes} x {plan.devices // plan.nodes}" if plan.nodes > 1 else str(plan.devices)
        rows.append((name, devices, f"{plan.memory.total / GIB:.1f}{room} GiB", *times, ", ".join(marks)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _tight(plan: "Plan") -> bool:
    """Whether what is not counted, a CUDA context and gaps between tensors, may be too much."""
    return bool(plan.fits) and plan.memory.total > TIGHT * plan.hardware.memory_gib * GIB


def _fastest(plans: Mapping[str, "Plan | str"]) -> str | None:
    """Of the trainers whose devices are known to hold the run."""
    times = {
        name: plan.time.seconds * plan.steps
        for name, plan in plans.items()
        if not isinstance(plan, str) and plan.time is not None and plan.fits
    }
    return min(times, key=times.get) if times else None
