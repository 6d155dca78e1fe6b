"""Throughput: what a run reports."""

import csv
import json

import pytest
import torch

from llama_adapter.batches import BatchConfig
from llama_adapter.examples import IGNORED
from llama_adapter.throughput import Throughput
from tests.tiny_training import TinyData, fit


def test_a_run_reports(tmp_path):
    callback = Throughput(every_n_steps=2, peak_tflops=1.0)
    run = fit(tmp_path, batches=BatchConfig(8, 4), callbacks=[callback])
    totals = callback.totals
    with (tmp_path / "throughput.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = run.trainer.global_step
    assert [int(row["step"]) for row in rows] == list(range(2, steps + 1, 2))
    assert rows[0].keys() - {"step"} == totals.keys()
    assert 0 < totals["throughput/response_tokens_per_second"] < totals["throughput/useful_tokens_per_second"]
    assert totals["throughput/useful_share"] == 1.0  # flat, and nothing in common
    assert totals["throughput/model_flop_utilisation"] == pytest.approx(totals["throughput/tflops_per_device"])
    assert totals["throughput/peak_memory_gib"] > 0
    assert "throughput" not in (tmp_path / "metrics.csv").read_text()


def test_padding_lowers_the_share(tmp_path):
    callback = Throughput()
    fit(tmp_path, batches=BatchConfig(8, 8, batching="padded"), callbacks=[callback])
    assert 0.5 < callback.totals["throughput/useful_share"] < 1
    assert "throughput/model_flop_utilisation" not in callback.totals, "the peak of this CPU is not known"
    assert callback.totals["throughput/prefix_tokens_saved"] == 0


def test_shared_prefixes_are_counted(tmp_path):
    class Alike(TinyData):
        def __init__(self) -> None:
            super().__init__(BatchConfig(8, 8))
            for example in self.train_dataset:
                example["input_ids"] = torch.cat((torch.arange(10, 20), example["input_ids"]))
                example["labels"] = torch.cat((torch.full((10,), IGNORED), example["labels"]))

    callback = Throughput()
    fit(tmp_path, data=Alike(), callbacks=[callback])
    assert callback.totals["throughput/useful_share"] > 1.5
    # all steps but the first: two epochs of 8, 8 and 6 examples that share at least 10 tokens
    assert callback.totals["throughput/prefix_tokens_saved"] >= 10 * (7 + 5 + 7 + 7 + 5)
    json.dumps(callback.totals)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every_n_steps": 0}, r"callbacks\.throughput\.every_n_steps must be at least 1, got 0\."),
        ({"peak_tflops": 0.0}, r"hardware\.peak_tflops must be above 0, or null where it is not known, got 0\.0\."),
    ],
)
def test_bad_values(given, message):
    with pytest.raises(ValueError, match=message):
        Throughput(**given)
