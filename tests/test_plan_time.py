"""The time of a step, by hand and in its limits."""

import dataclasses

import pytest

from llama_adapter.architecture import Hardware
from llama_adapter.batches import BatchConfig
from llama_adapter.memory import Sharding
from llama_adapter.zero_init import AdapterConfig
from tests.test_encoders import plan_of
from tests.test_plan import LLAMA_7B, plan

A100 = Hardware(
    name="A100 80 GB", memory_gib=80.0, peak_tflops=312.0, float32_tflops=19.5, utilization=0.4, memory_bandwidth=2039.0,
    link_bandwidth=300.0, network_bandwidth=200.0,
)  # fmt: skip


def test_operations_at_the_stated_utilisation():
    made = plan(hardware=A100)
    flops = made.micro_batch_flops
    assert made.time.computing == pytest.approx(2 * flops.useful / (312e12 * 0.4))
    assert made.flops_per_step == pytest.approx(16 * flops.useful)
    assert made.time.busy == pytest.approx(1.0)


def test_eight_devices_take_an_eighth():
    times = [plan(hardware=A100, devices=devices).time.seconds for devices in (1, 8)]
    assert times[0] / times[1] == pytest.approx(8, rel=0.02)


def test_full_fine_tuning_takes_longer_and_a_linear_probe_less():
    whole = {"hardware": A100, "dtype": "float32", "batches": BatchConfig(batching="padded")}
    seconds = {
        trained: plan(adapter=AdapterConfig(trained=trained), **whole).time.computing
        for trained in ("head", "adapter", "all")
    }
    assert seconds["all"] > 1.4 * seconds["adapter"] > 1.4 * seconds["head"]


def test_activation_checkpointing_takes_time():
    times = {
        kept: plan(hardware=A100, activation_checkpointing=kept).time.computing
        for kept in (None, "products", "attention", "layer")
    }
    assert times[None] == times["products"] < times["attention"] < times["layer"] < 1.5 * times[None]


def test_float32_has_a_peak_of_its_own():
    assert plan(hardware=A100, dtype="float32").time.computing == pytest.approx(
        plan(hardware=A100).time.computing * 312 / 19.5, rel=0.01
    )


def test_few_tokens_wait_for_the_weights():
    """A batch of one token: every layer is read once forward, and the adapted ones once backward."""
    made = plan(hardware=A100, devices=1, batches=BatchConfig(1, 1), tokens_per_example=1.0)
    layer = 2 * LLAMA_7B.layer_parameters
    assert made.time.computing == pytest.approx(62 * layer / 2039e9, rel=0.02)
    assert made.time.busy < 0.05


def test_gathering_is_hidden_behind_computing():
    few = {"hardware": A100, "devices": 8, "sharding": Sharding(8)}
    hidden = plan(**few)
    first = 2 * 2 * 32000 * 4096 * 7 / 8 / 300e9  # embeddings and head, for which nothing is computed meanwhile
    averaged = 2 * 4 * 1_229_760 * 7 / 8 / 300e9
    assert hidden.time.communication == pytest.approx(2 * first + averaged, rel=0.01)  # two micro-batches
    slow = dataclasses.replace(A100, link_bandwidth=3.0)
    open_to_view = plan(**few | {"hardware": slow})
    gathers = 62 * 2 * LLAMA_7B.layer_parameters * 7 / 8 / 3e9
    assert open_to_view.time.communication == pytest.approx(
        2 * gathers - open_to_view.time.computing + 100 * (2 * first + averaged), rel=0.02
    )


def test_layers_that_are_kept_are_gathered_once():
    slow = dataclasses.replace(A100, link_bandwidth=3.0)
    times = [
        plan(hardware=slow, sharding=Sharding(8, reshard_after_forward=kept)).time.communication
        for kept in (True, False)
    ]
    assert times[1] < 0.6 * times[0]


def test_shards_of_one_machine_do_not_travel_between_two():
    slow = {"hardware": dataclasses.replace(A100, network_bandwidth=1.0), "devices": 16, "nodes": 2}
    inside = plan(**slow, sharding=Sharding(8)).time.communication
    across = plan(**slow, sharding=Sharding(16, across_nodes=True)).time.communication
    assert across > 20 * inside


def test_an_unknown_speed():
    assert plan().time is None
    assert plan(hardware=Hardware(planned_tflops=312.0)).time is not None
    assert Hardware(peak_tflops=100.0, planned_tflops=50.0).tflops_in("bfloat16") == 100.0
    assert Hardware(planned_tflops=50.0, float32_tflops=10.0).tflops_in("float32") == 10.0


def test_the_papers_hour():
    """LLaMA-Adapter (arXiv 2303.16199): less than one hour on 8 A100 for 5 epochs.

    The authors' script computes 512 positions an example, with an answer or not.
    """
    as_theirs = plan(hardware=A100, tokens_per_example=512.0)
    assert 40 < as_theirs.time.seconds * as_theirs.steps / 60 < 70
    ours = plan(hardware=A100)
    assert ours.time.seconds * ours.steps / 60 < 15


def test_encoders_have_a_time(monkeypatch):
    from tests.conftest import tiny_encoder

    for shape in ("roberta", "vit"):
        made = plan_of(tiny_encoder(shape), shape, AdapterConfig(3, 2))
        assert made.time is None
        made = dataclasses.replace(made, hardware=A100)
        assert made.time.seconds > 0
