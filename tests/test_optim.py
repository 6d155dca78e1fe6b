"""The schedule against the authors' numbers, and the checks of OptimizerConfig."""

import json
from math import cos, pi

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from llama_adapter.batches import BatchConfig
from llama_adapter.optim import OptimizerConfig, learning_rate_at, schedule
from tests.tiny_training import TinyData


def golden(shared) -> dict:
    return json.loads((shared / "golden/lr_schedule.json").read_text())


def test_defaults_are_those_of_the_paper():
    config = OptimizerConfig()
    assert (config.base_learning_rate, config.warmup_epochs, config.weight_decay) == (9e-3, 2.0, 0.02)
    assert config.learning_rate(64) == pytest.approx(2.25e-3, rel=1e-12)


def test_learning_rate_follows_the_global_batch(shared):
    for case in golden(shared)["lr_scaling"]:
        batch = case["batch_size_per_gpu"] * case["world_size"] * case["accum_iter"]
        rate = OptimizerConfig(base_learning_rate=case["blr"]).learning_rate(batch)
        assert rate == pytest.approx(case["lr"], abs=1e-9), case


def test_every_point_of_the_authors_schedules(shared):
    points = 0
    for case in golden(shared)["schedules"]:
        settings = {"peak": case["lr"], "minimum": case["min_lr"], "warmup_epochs": case["warmup_epochs"]}
        for point in case["points"]:
            rate = learning_rate_at(point["fractional_epoch"], epochs=case["epochs"], **settings)
            if point["iter_in_epoch"] % case["accum_iter"] == 0:
                assert rate == pytest.approx(point["lr"], abs=1e-9), point
                points += 1
    assert points > 50


def test_the_optimizer_gets_the_authors_rates_step_by_step(shared):
    """Through LambdaLR and the data's `epoch_fraction`, for a schedule that the fixture lists whole."""
    tried = 0
    for case in golden(shared)["schedules"]:
        if case["iters_per_epoch"] % case["accum_iter"]:
            continue  # the authors drop the left-over gradients; we step, so our epoch has a step more
        steps_per_epoch = case["iters_per_epoch"] // case["accum_iter"]
        config = OptimizerConfig(min_learning_rate=case["min_lr"], warmup_epochs=case["warmup_epochs"])
        data = TinyData(BatchConfig(global_batch_size=case["accum_iter"]), train=0)
        data.train_dataset = [None] * case["iters_per_epoch"]
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=case["lr"])
        factor = schedule(
            config, peak=case["lr"], epochs=data.epochs(case["epochs"]), epoch_fraction=data.epoch_fraction
        )
        scheduler = LambdaLR(optimizer, factor)
        rates = []
        for _ in range(steps_per_epoch * case["epochs"]):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        for point in case["points"]:
            if point["iter_in_epoch"] % case["accum_iter"] == 0 and point["epoch"] < case["epochs"]:
                step = point["epoch"] * steps_per_epoch + point["iter_in_epoch"] // case["accum_iter"]
                assert rates[step] == pytest.approx(point["lr"], abs=1e-9), point
                tried += 1
    assert tried > 30


def test_shape_of_the_schedule():
    settings = {"peak": 2.0, "minimum": 0.5, "warmup_epochs": 2.0, "epochs": 5.0}
    assert learning_rate_at(0.0, **settings) == 0.0
    assert learning_rate_at(0.5, **settings) == 0.5  # 2.0 x 0.5 / 2
    assert learning_rate_at(2.0, **settings) == 2.0
    assert learning_rate_at(3.5, **settings) == pytest.approx(1.25)  # half of the cosine: between peak and minimum
    assert learning_rate_at(5.0, **settings) == pytest.approx(0.5)
    assert learning_rate_at(3.0, **settings) == pytest.approx(0.5 + 1.5 * (1 + cos(pi / 3)) / 2)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate_at(0.0, peak=2.0, minimum=0.0, warmup_epochs=0.0, epochs=3.0) == 2.0


@pytest.mark.parametrize("epochs", [1.0, 2.0])
def test_a_run_within_its_warmup(epochs):
    rates = [
        learning_rate_at(f * epochs / 4, peak=2.0, minimum=0.0, warmup_epochs=2.0, epochs=epochs) for f in range(4)
    ]
    assert rates == pytest.approx([f * epochs / 4 for f in range(4)])


@pytest.mark.parametrize("key", ["base_learning_rate", "min_learning_rate", "warmup_epochs", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_numbers_that_are_not_allowed(key, value):
    with pytest.raises(ValueError) as caught:
        OptimizerConfig(**{key: value})
    assert str(caught.value) == f"optimizer.{key} must be a finite number of at least 0, got {value}."


def test_a_rate_of_zero():
    with pytest.raises(ValueError) as caught:
        OptimizerConfig(base_learning_rate=0.0)
    assert str(caught.value) == (
        "optimizer.base_learning_rate is 0, so nothing would be trained. Choose a positive number."
    )


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.95, 0.99), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_betas_that_are_not_allowed(betas):
    with pytest.raises(ValueError) as caught:
        OptimizerConfig(betas=betas)
    assert str(caught.value) == f"optimizer.betas must be two numbers from 0 to below 1, got {list(betas)}."


def test_betas_of_a_config_file_are_a_list():
    assert OptimizerConfig(betas=[0.8, 0.9]).betas == (0.8, 0.9)
