"""What a plan says: its lines, its warnings and notes, and trainers side by side."""

import dataclasses

import pytest

from llama_adapter.architecture import Hardware, VisionConfig
from llama_adapter.batches import BatchConfig
from llama_adapter.memory import Sharding
from llama_adapter.plan_report import duration, side_by_side
from llama_adapter.zero_init import AdapterConfig
from tests.test_plan import plan, text
from tests.test_plan_time import A100


def test_the_papers_run_in_words():
    made = plan(hardware=A100, sharding=Sharding(8))
    assert text(made, "FLOPs per step") == (
        "about 200 TFLOP, 25.4 GFLOP per token (forward 13 G, backward 12.1 G, prompts 96.5 M, head 262 M)"
    )
    assert text(made, "memory per device").startswith(
        "at most about 10.42 of 80 GiB (1/8 of the weights 1.57, gathered"
    )
    assert text(made, "expected time") == (
        "about 204 ms per step, 13.8 min in all without validation and evaluation (at 40% of 312 TFLOP/s, 1.5% of it "
        "communication)"
    )


def test_what_is_there_at_the_peak_is_named():
    checkpointing = {"hardware": A100, "activation_checkpointing": "layer"}
    assert "computed again 9.51 G" in text(plan(**checkpointing), "FLOPs per step")
    assert "one layer's backward pass" in text(plan(**checkpointing), "memory per device")
    rows = plan(hardware=A100, batches=BatchConfig(batching="padded"))
    assert "logits 0.37" in text(rows, "memory per device")


def test_images_are_counted_where_they_pass_the_tower():
    vision = VisionConfig(path="tower", channels=1024, layers=[6, 12, 18, 24])
    assert "images 1.26 G" in text(plan(vision=vision, tower=True), "FLOPs per step")
    assert "images" not in text(plan(vision=vision), "FLOPs per step")


def test_an_unknown_speed_says_what_to_set():
    assert text(plan(), "expected time") == "unknown: set hardware.peak_tflops"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 hours"), (200_000, "2.31 days")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


# --- warnings and notes -----------------------------------------------------------------------------------------------


def test_a_rate_far_from_the_recipe_is_warned_of():
    made = plan(batches=BatchConfig(512, 8))
    made.warn_if_far(0.00225)
    assert made.warnings == [
        "the learning rate of 0.018 is 8 times the recipe's 0.00225: a prompt takes AdamW steps of about its size "
        "whatever the batch is. Set optimizer.base_learning_rate to 0.001125 for the recipe's rate at "
        "data.global_batch_size=512"
    ]
    small = plan(batches=BatchConfig(8, 1))
    small.warn_if_far(0.00225)
    assert small.warnings[0].startswith("the learning rate of 0.0002812 is 1/8 of the recipe's 0.00225: ")
    near = plan(batches=BatchConfig(128, 8))
    near.warn_if_far(0.00225)
    assert near.warnings == []


def test_rows_that_do_not_divide_are_warned_of():
    made = plan(batches=BatchConfig(104, 8, batching="padded"), hardware=A100)
    assert made.micro_batch_size == 1  # 13 rows on every device
    assert made.warnings == [
        "data.global_batch_size=104 is no multiple of 8 devices x 8 rows: they are taken 1 at a time. Choose a multiple "
        "of 64",
    ]
    assert plan(batches=BatchConfig(104, 8), hardware=A100).warnings == [], "flat rows need no equal sizes"
    assert plan(batches=BatchConfig(96, 8, batching="padded"), hardware=A100).warnings == [], "6 of 8"


def test_idle_devices_are_warned_of():
    (warning,) = plan(examples=5, max_epochs=10).warnings
    assert warning == "3 of 8 devices have nothing to do: there are 5 training examples"
    (warning,) = plan(hardware=A100, tokens_per_example=3.0).warnings
    assert warning.startswith(
        "a device has about 12 tokens at a time, and reading the weights takes longer than computing with them: it "
        "computes "
    )
    assert warning.endswith(
        "% of the time. Use fewer devices, a larger data.micro_batch_size, or a larger data.global_batch_size"
    )


def test_needless_shards_are_noted():
    (note,) = plan(hardware=A100, sharding=Sharding(8)).notes
    assert note == (
        "the model fits whole on every device (20.7 GiB of 80): with strategy ddp nothing is gathered, and a step takes "
        "1.5% less time"
    )
    small = dataclasses.replace(A100, memory_gib=20.0)
    assert plan(hardware=small, sharding=Sharding(8)).notes == []
    assert plan(hardware=A100).notes == []
    assert ("note", note) in plan(hardware=A100, sharding=Sharding(8)).lines()


def test_all_layers_are_noted():
    (note,) = plan(hardware=A100, adapter=AdapterConfig(prompt_layers=32)).notes
    assert note == (
        "L = N: all 32 layers are adapted, so the backward pass goes through every one; without the lowest a step takes "
        "1.6% less time"
    )
    assert plan(adapter=AdapterConfig(prompt_layers=32)).notes == [note.partition(";")[0]]


# --- trainers ---------------------------------------------------------------------------------------------------------


def test_trainers_side_by_side():
    unknown = Hardware(name="CPU")
    plans = {
        "cpu": plan(hardware=unknown, devices=1),
        "small": plan(hardware=dataclasses.replace(A100, memory_gib=16.0)),
        "8xa100": plan(hardware=A100, sharding=Sharding(8)),
        "8xa100_ddp": plan(hardware=A100),
        "7xa100": "data.global_batch_size is 64, which 7 devices cannot share evenly. Choose a multiple of 7.",
        "2nodes": plan(hardware=A100, devices=16, nodes=2, sharding=Sharding(8)),
    }
    header, cpu, small, fsdp, ddp, seven, nodes = side_by_side(plans, "8xa100").splitlines()
    assert header.split() == ["trainer", "devices", "memory", "per", "device", "step", "tokens/s", "run"]
    assert cpu.split() == ["cpu", "1", "20.7", "GiB", "unknown"]
    assert small.endswith("does not fit")
    assert fsdp.split()[:5] == ["8xa100", "8", "10.4", "of", "80"] and fsdp.endswith("this run")
    assert ddp.startswith("8xa100_ddp  8 ") and not ddp.endswith("fits")
    assert seven.endswith("which 7 devices cannot share evenly. Choose a multiple of 7.")
    assert "  2 x 8  " in nodes and nodes.endswith("fastest that fits")
    assert len({line.index(" ms ") for line in (small, fsdp, ddp)}) == 1, "in columns"


def test_what_hardly_fits():
    needed = plan(hardware=A100).memory.total / 2**30
    for room, said in ((needed * 1.03, "tight"), (needed * 1.1, "fastest that fits"), (needed * 0.99, "does not fit")):
        hardware = dataclasses.replace(A100, memory_gib=room)
        assert said in side_by_side({"full": plan(hardware=hardware)}, "other")


def test_nothing_fits():
    tiny = Hardware(name="watch", memory_gib=1.0, peak_tflops=1.0)
    assert "fastest" not in side_by_side({"watch": plan(hardware=tiny)}, "watch")
