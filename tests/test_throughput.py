"""Throughput: the arithmetic of the operations against torch's own counter, and what a run reports."""

import csv
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llama_adapter.architecture import Architecture
from llama_adapter.attach import attach
from llama_adapter.batches import BatchConfig
from llama_adapter.data import PaddedCollator
from llama_adapter.examples import IGNORED
from llama_adapter.heads import response_loss
from llama_adapter.throughput import Throughput, training_flops
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import FAMILY_SHAPES, tiny_model
from tests.tiny_training import TinyData, fit, make_examples


def counted_products(model, batch) -> int:
    """What torch counts in a step, without the attention kernels; their names all hold the word."""
    with FlopCounterMode(display=False) as counter:
        loss, _ = response_loss(model, batch)
        loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in counts.items() if "attention" not in str(operator))


@pytest.mark.parametrize("prompt_layers", [1, 2, 3])
@pytest.mark.parametrize("shape", FAMILY_SHAPES)
def test_matrix_products_are_what_torch_counts(shape, prompt_layers):
    """All but attention's, which torch counts as whole squares and with five products backward."""
    torch.manual_seed(0)
    model = attach(tiny_model(shape), AdapterConfig(3, prompt_layers, gate_init="random")).eval()
    # Of one length, as padding is computed too.
    batch = PaddedCollator(0)([example for example in make_examples(40) if len(example["input_ids"]) == 9][:4])
    tokens, trained = batch["input_ids"].numel(), int((batch["labels"] != IGNORED).sum())
    shape = Architecture.from_config(model.config)
    ours = training_flops(
        shape, prompt_length=3, prompt_layers=prompt_layers, tokens=tokens, attended=0, trained=trained
    )
    over_prompts = 3 * 4 * shape.heads * shape.head_size * tokens * 3 * prompt_layers
    assert ours - over_prompts == counted_products(model, batch)


def test_attention_by_hand():
    """One layer, one head of size 2: a pair of query and key is 2 x 2 for its score and 2 x 2 for its value."""
    shape = Architecture(hidden_size=2, layers=1, heads=1, key_value_heads=1, head_size=2)
    options = {"prompt_length": 1, "prompt_layers": 1, "tokens": 0, "trained": 0}
    more = training_flops(shape, attended=10, **options) - training_flops(shape, attended=0, **options)
    assert more == 10 * 8  # forward alone: below the prompts of the lowest adapted layer nothing is trained
    deeper = Architecture(hidden_size=2, layers=2, heads=1, key_value_heads=1, head_size=2)
    options["prompt_layers"] = 2
    more = training_flops(deeper, attended=10, **options) - training_flops(deeper, attended=0, **options)
    assert more == 10 * 8 * (2 + 2)  # two layers forward; the upper one backward, at twice the price


def test_llama_7b_of_the_paper():
    """25.4 GFLOP per useful token: the forward pass and the gradient to the activations of 6.6e9 weights, K=10, L=30."""
    shape = Architecture(4096, 11008, 32, 32, 32, 128, 32000)
    tokens, length = 123, 123
    flops = training_flops(
        shape,
        prompt_length=10,
        prompt_layers=30,
        tokens=tokens,
        attended=length * (length + 1) // 2,
        trained=tokens // 2,
    )
    assert 24e9 < flops / tokens < 26.5e9


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
