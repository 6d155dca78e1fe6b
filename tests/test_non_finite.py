"""The report of a loss that is no number: which examples, on which device, and small whatever the batches hold."""

import json
import math

import torch
from lightning import Callback, Trainer

from llama_adapter.attach import adapters
from llama_adapter.batches import BatchConfig
from llama_adapter.module import NonFiniteLossError
from llama_adapter.non_finite import NonFiniteReport, described
from tests.tiny_training import FailAt, TinyData, adapted_model, fit


def fresh_loader(epoch: int):
    loader = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=2)).train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)
    return loader


def test_report_of_a_loss_that_is_no_number(tmp_path, caplog):
    model = adapted_model()

    class Break(Callback):
        """What a diverged adapter looks like from the fifth step on."""

        @torch.no_grad()
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 4:
                adapters(model)[2].prompt[0, 0] = float("nan")

    run = fit(tmp_path, model=model, callbacks=(Break(), NonFiniteReport(tmp_path)), catch=NonFiniteLossError)
    report = json.loads((tmp_path / "non_finite_loss.json").read_text())
    assert report["error"] == str(run.error)
    assert report["step"] == 5
    assert report["replay"] == f"python train.py resume={tmp_path} trainer.max_steps=5"
    assert [device["rank"] for device in report["devices"]] == [0]
    # The four micro-batches of the second global batch of the second epoch.
    loader = fresh_loader(epoch=1)
    examples, batches = list(loader.batch_sampler)[4:8], list(loader)[4:8]
    found = report["devices"][0]["micro_batches"]
    assert [micro_batch["loss"] for micro_batch in found] == ["nan"] * 4
    assert [micro_batch["examples"] for micro_batch in found] == examples
    for micro_batch, batch in zip(found, batches, strict=True):
        assert micro_batch["batch"] == {
            key: value.tolist() if isinstance(value, torch.Tensor) else list(value) for key, value in batch.items()
        }
    assert report["gates"].keys() == {"1", "2"}
    for layer, gates in report["gates"].items():
        assert gates == adapters(model)[int(layer)].gate.tanh().tolist()
    assert caplog.messages[-1] == (
        "The loss of step 5 is no number on rank 0. The examples, the gates and the command that replays the step are "
        f"in {tmp_path}/non_finite_loss.json."
    )


def test_only_the_micro_batch_in_which_it_happened_has_no_loss(tmp_path):
    class Break(Callback):
        def on_train_start(self, trainer: Trainer, module) -> None:
            loss, calls = module.head.loss, []

            def breaking(model, batch):
                calls.append(batch)
                value, count = loss(model, batch)
                return (value * math.inf if len(calls) == 4 + 3 else value), count  # the second step's third

            object.__setattr__(module.head, "loss", breaking)

    fit(tmp_path, callbacks=(Break(), NonFiniteReport(tmp_path)), catch=NonFiniteLossError)
    report = json.loads((tmp_path / "non_finite_loss.json").read_text())
    losses = [micro_batch["loss"] for micro_batch in report["devices"][0]["micro_batches"]]
    assert losses[2] == "inf" and all(isinstance(loss, float) for loss in (losses[0], losses[1], losses[3]))


def test_a_gradient_alone_that_is_no_number(tmp_path, caplog):
    class Break(Callback):
        def on_after_backward(self, trainer: Trainer, module) -> None:
            if trainer.global_step == 1:
                next(p for p in module.parameters() if p.grad is not None).grad.fill_(math.inf)

    fit(tmp_path, callbacks=(Break(), NonFiniteReport(tmp_path)), catch=NonFiniteLossError)
    assert caplog.messages[-1].startswith("The gradient of step 2 is no number, the loss is one on every rank. The exa")
    assert len(json.loads((tmp_path / "non_finite_loss.json").read_text())["devices"]) == 1


def test_no_report_of_another_error(tmp_path):
    fit(tmp_path, callbacks=(FailAt(2), NonFiniteReport(tmp_path)), catch=InterruptedError)
    assert not (tmp_path / "non_finite_loss.json").exists()


def test_pictures_are_described_and_ids_are_not(tmp_path):
    pixels = torch.arange(12.0).view(1, 3, 2, 2)
    pixels[0, 0, 0, 0] = math.nan
    assert described(pixels.bfloat16()) == {
        "shape": [1, 3, 2, 2], "dtype": "bfloat16", "not_finite": 1, "least": 1.0, "mean": 6.0, "largest": 11.0
    }  # fmt: skip
    assert described(torch.full((2,), math.inf))["mean"] is None
    assert described(torch.tensor([[3, -100]])) == [[3, -100]]
    assert described("text") == "text"
