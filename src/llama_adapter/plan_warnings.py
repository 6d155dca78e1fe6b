"""What a plan warns of, and what it notes: facts that are no mistakes, but worth knowing before a long run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from llama_adapter.memory import GIB

if TYPE_CHECKING:
    from llama_adapter.plan import Plan

FAR_RATE = 4.0  # times a recipe's learning rate, or one part of so many, from where on a plan warns
IDLE = 0.5  # share of the time that the operations need, below which a plan warns


def warnings_of(plan: "Plan", *, most: int) -> list[str]:
    """What may be a mistake.

    Args:
        plan: whole.
        most: `data.micro_batch_size` as it was given.
    """
    return [*_too_short(plan), *_too_large(plan), *_uneven(plan, most), *_idle(plan)]


def notes_of(plan: "Plan") -> list[str]:
    """What is right, but could be otherwise."""
    return [*_needless_shards(plan), *_all_layers(plan)]


def far_rate(plan: "Plan", recipe_rate: float) -> list[str]:
    """A learning rate that is far from the recipe's, as the linear rule makes it from an unusual global batch."""
    ratio = plan.learning_rate / recipe_rate
    if 1 / FAR_RATE <= ratio <= FAR_RATE:
        return []
    times = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
    return [
        f"the learning rate of {plan.learning_rate:.4g} is {times} the recipe's {recipe_rate:.4g}: a prompt takes "
        "AdamW steps of about its size whatever the batch is. Set optimizer.base_learning_rate to "
        f"{recipe_rate * 256 / plan.global_batch_size:.4g} for the recipe's rate at data.global_batch_size="
        f"{plan.global_batch_size}"
    ]


def _too_short(plan: "Plan") -> list[str]:
    if plan.warmup_epochs < plan.epochs:
        return []
    return [
        f"the run of {plan.epochs:.3g} epochs ends within its warm-up of {plan.warmup_epochs:g}: the learning rate "
        "never reaches its peak"
    ]


def _too_large(plan: "Plan") -> list[str]:
    if plan.fits is not False:
        return []
    ways = ["lower data.micro_batch_size or data.max_tokens"]
    ways += ["set trainer.activation_checkpointing=layer"] if plan.activation_checkpointing is None else []
    ways += ["shard the weights"] if plan.sharding is None else []
    ways += ["quantise the model"] if plan.quantization is None and plan.sharding is None else []
    needed, hardware = plan.memory.total / GIB, plan.hardware
    return [
        f"about {needed:.1f} GiB are needed and {hardware.name} has {hardware.memory_gib:g}: "
        f"{', '.join(ways[:-1])}{', or ' if len(ways) > 1 else ''}{ways[-1]}"
    ]


def _uneven(plan: "Plan", most: int) -> list[str]:
    """Rows are cut into micro-batches of one size, which must divide a device's share of the global batch."""
    share = plan.global_batch_size // plan.devices
    if plan.batching != "padded" or 2 * plan.micro_batch_size > min(most, share):
        return []
    rows = min(most, share)
    return [
        f"data.global_batch_size={plan.global_batch_size} is no multiple of {plan.devices} devices x {rows} rows: they "
        f"are taken {plan.micro_batch_size} at a time. Choose a multiple of {plan.devices * rows}"
    ]


def _idle(plan: "Plan") -> list[str]:
    if plan.examples < plan.devices:
        idle = plan.devices - plan.examples
        return [f"{idle} of {plan.devices} devices have nothing to do: there are {plan.examples} training examples"]
    if plan.time is None or plan.time.busy >= IDLE:
        return []
    tokens = plan.tokens_per_step / plan.devices / plan.accumulation
    return [
        f"a device has about {tokens:.0f} tokens at a time, and reading the weights takes longer than computing with "
        f"them: it computes {plan.time.busy:.0%} of the time. Use fewer devices, a larger data.micro_batch_size, or a "
        "larger data.global_batch_size"
    ]


def _needless_shards(plan: "Plan") -> list[str]:
    if plan.sharding is None or not plan.hardware.memory_gib:
        return []
    whole = replace(plan, sharding=None, warnings=[], notes=[])
    if not whole.fits or plan.time is None or whole.time is None:
        return []
    saved = 1 - whole.time.seconds / plan.time.seconds
    return [
        f"the model fits whole on every device ({whole.memory.total / GIB:.1f} GiB of {plan.hardware.memory_gib:g}): "
        f"with strategy ddp nothing is gathered, and a step takes {saved:.1%} less time"
    ]


def _all_layers(plan: "Plan") -> list[str]:
    if plan.trained != "adapter" or plan.prompt_layers < plan.architecture.layers or plan.architecture.layers < 2:
        return []
    note = f"L = N: all {plan.prompt_layers} layers are adapted, so the backward pass goes through every one"
    if plan.time is not None:
        upper = replace(plan, prompt_layers=plan.prompt_layers - 1, warnings=[], notes=[])
        note += f"; without the lowest a step takes {1 - upper.time.seconds / plan.time.seconds:.1%} less time"
    return [note]
