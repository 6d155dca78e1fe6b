"""Accuracy over pictures, on one device and on several."""

import pytest
import torch

from tasks.vtab1k.metric import PictureAccuracy, accuracy


def test_micro_average():
    assert accuracy([0, 0, 0, 1], [0, 0, 1, 0]) == {"accuracy": 50.0, "scored": 4.0}  # by class it would be 33.3


def test_only_what_was_scored_counts():
    metric = PictureAccuracy([0, 1, 2])
    metric.update(torch.tensor([1]), torch.tensor([1]))
    assert metric.compute() == {"accuracy": 100.0, "scored": 1.0}
    metric.update(torch.tensor([2]), torch.tensor([0]))
    assert metric.compute() == {"accuracy": 50.0, "scored": 2.0}
    metric.reset()
    assert metric.compute()["scored"] == 0


def test_devices_are_joined_without_counting_twice():
    """Two devices with a picture in common, as samplers pad; torchmetrics' own joining, with the other's state given."""
    here, there = PictureAccuracy([0, 1, 2]), PictureAccuracy([0, 1, 2])
    here.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    there.update(torch.tensor([2, 0]), torch.tensor([1, 0]))
    here.distributed_available_fn = lambda: True
    here.dist_sync_fn = lambda state, group: [state, there.predictions]
    assert here.compute() == {"accuracy": pytest.approx(200 / 3), "scored": 3.0}


def test_predictions_that_every_device_has_are_not_gathered_again(monkeypatch):
    """Their state is on the CPU, which NCCL does not gather."""

    def gather(*args, **kwargs):
        raise AssertionError("gathered")

    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr("torchmetrics.metric.Metric._sync_dist", gather)
    assert accuracy([1], [1]) == {"accuracy": 100, "scored": 1}
