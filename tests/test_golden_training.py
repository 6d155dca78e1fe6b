"""Whole training runs of the authors' published code, repeated with ours. Needs `shared`."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter.attach import adapters, attach
from llama_adapter.batches import BatchConfig
from llama_adapter.data import ExampleDataModule
from llama_adapter.heads import response_loss
from llama_adapter.loading import load_backbone
from llama_adapter.optim import OptimizerConfig, learning_rate_at
from llama_adapter.zero_init import AdapterConfig
from tests.tiny_training import fit

# A run of float32 steps whose sums are in another order (the README of the golden numbers allows 1e-4).
LOSSES = {"abs": 2e-5}
# Adam divides by the gradient's size, which amplifies rounding where a gradient is almost zero (README: 5e-4).
PARAMETERS = {"atol": 2e-4, "rtol": 0}


def golden(shared: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    folder = shared / "golden"
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


def initial_model(shared: Path, tensors: dict[str, Tensor], case: dict) -> PreTrainedModel:
    """The golden base with the run's first prompts and gates."""
    length, layers = case["adapter_len"], case["adapter_layer"]
    model = attach(load_backbone(shared / "golden/hf_checkpoint"), AdapterConfig(length, layers))
    with torch.no_grad():
        rows = tensors["adapter_query.weight"].split(length)  # the lowest adapted layer first
        for (layer, adapter), prompt in zip(adapters(model).items(), rows, strict=True):
            adapter.prompt.copy_(prompt)
            adapter.gate.copy_(tensors[f"layers.{layer}.attention.gate"].flatten())
    return model


def assert_like_epoch(model: PreTrainedModel, tensors: dict[str, Tensor], epoch: int) -> None:
    attached = adapters(model)
    prompts = torch.cat([adapter.prompt.detach() for adapter in attached.values()])
    torch.testing.assert_close(prompts, tensors[f"epoch{epoch}.adapter_query.weight"], **PARAMETERS)
    for layer, adapter in attached.items():
        gate = tensors[f"epoch{epoch}.layers.{layer}.attention.gate"].flatten()
        torch.testing.assert_close(adapter.gate.detach(), gate, **PARAMETERS)


class GoldenData(ExampleDataModule):
    """The fixture's batches as examples, in their order; label 0 is what we write as -100."""

    def __init__(self, tensors: dict[str, Tensor], *, micro_batch_size: int = 2, accumulation: int = 1) -> None:
        rows = tensors["batches.tokens"].shape[1]
        batches = BatchConfig(rows * accumulation, micro_batch_size)
        super().__init__(SimpleNamespace(pad_id=0), batches=batches, shuffle=False)
        tokens, labels = tensors["batches.tokens"].flatten(0, 1), tensors["batches.labels"].flatten(0, 1)
        labels = labels.masked_fill(labels == 0, -100)
        self.train_dataset = [{"input_ids": ids, "labels": row} for ids, row in zip(tokens, labels, strict=True)]


class KeepEpochs(Callback):
    """A look at the model and the learning rates after each epoch."""

    def __init__(self, look) -> None:
        self.look = look

    def on_train_epoch_end(self, trainer: Trainer, module) -> None:
        self.look(module.model, trainer.current_epoch)


def optimizer_config(case: dict, global_batch: int) -> OptimizerConfig:
    settings = case["optimizer"]
    return OptimizerConfig(
        base_learning_rate=case["lr"] * 256 / global_batch,  # the fixture states the peak
        min_learning_rate=case["min_lr"],
        warmup_epochs=case["warmup_epochs"],
        weight_decay=settings["weight_decay"],
        betas=settings["betas"],
    )


@pytest.mark.parametrize("micro_batch_size", [2, 1])
def test_a_run_of_the_trainer_is_the_authors_run(shared, tmp_path, micro_batch_size):
    """Loss and learning rate of every step, and prompts and gates after every epoch.

    The authors average over the tokens of a batch. So do we, over the global batch, which is cut into two micro-batches
    the second time: their result must come out again.
    """
    tensors, case = golden(shared, "train_run_accum1")
    data = GoldenData(tensors, micro_batch_size=micro_batch_size)
    epochs_seen = []

    def look(model: PreTrainedModel, epoch: int) -> None:
        assert_like_epoch(model, tensors, epoch)
        epochs_seen.append(epoch)

    run = fit(
        tmp_path,
        data=data,
        model=initial_model(shared, tensors, case),
        optimizer=optimizer_config(case, data.batches.global_batch_size),
        callbacks=(KeepEpochs(look),),
        max_epochs=case["epochs"],
        limit_val_batches=0,
    )
    assert epochs_seen == list(range(case["epochs"]))
    losses = [loss for epoch in case["history"] for loss in epoch["train_losses"]]
    rates = [point["lr"] for epoch in case["history"] for point in epoch["lr_sets"]]
    norms = [norm for epoch in case["history"] for norm in epoch["grad_norm_after_each_micro_batch"]]
    assert len(losses) == 20
    assert run.column("train/loss") == pytest.approx(losses, **LOSSES)
    assert run.column("train/learning_rate") == pytest.approx(rates, abs=1e-9)
    assert run.column("train/gradient_norm") == pytest.approx(norms, rel=1e-3)  # follows the parameters' tolerance


def authors_loop(model: PreTrainedModel, tensors: dict[str, Tensor], case: dict):
    """The authors' loop with their accumulation, over our model and schedule; yields each epoch's micro-batch losses.

    Two quirks: a step is the mean of its micro-batches' means, so a token counts more in a micro-batch of few; and the
    gradients of an odd last micro-batch are dropped at the start of the next epoch, without a step.
    """
    accumulation, iterations = case["accum_iter"], case["iters_per_epoch"]
    settings = case["optimizer"]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, betas=settings["betas"], weight_decay=settings["weight_decay"])
    for epoch in range(case["epochs"]):
        optimizer.zero_grad()
        losses = []
        batches = zip(tensors["batches.tokens"], tensors["batches.labels"], strict=True)
        for iteration, (tokens, labels) in enumerate(batches):
            if iteration % accumulation == 0:
                optimizer.param_groups[0]["lr"] = learning_rate_at(
                    epoch + iteration / iterations,
                    peak=case["lr"],
                    minimum=case["min_lr"],
                    warmup_epochs=case["warmup_epochs"],
                    epochs=case["epochs"],
                )
            batch = {"input_ids": tokens, "labels": labels.masked_fill(labels == 0, -100)}
            loss, trained = response_loss(model, batch)
            (loss / trained / accumulation).backward()
            losses.append((loss / trained).item())
            if (iteration + 1) % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
        yield losses


def test_the_authors_accumulation(shared):
    tensors, case = golden(shared, "train_run_accum2_leftover")
    model = initial_model(shared, tensors, case)
    for epoch, losses in enumerate(authors_loop(model, tensors, case)):
        assert losses == pytest.approx(case["history"][epoch]["train_losses"], **LOSSES)
        assert_like_epoch(model, tensors, epoch)
    assert epoch + 1 == case["epochs"] == 4


def test_where_our_accumulation_departs(shared, tmp_path):
    """Ours weighs every token of a global batch alike and makes a step of the last one, whole or not.

    Checked against the loss written out: the mean over the tokens of both micro-batches, not the mean of their means,
    and three steps an epoch, where the authors make two of five micro-batches.
    """
    tensors, case = golden(shared, "train_run_accum2_leftover")
    data = GoldenData(tensors, accumulation=case["accum_iter"])
    model = initial_model(shared, tensors, case)
    with torch.no_grad():
        logits = model(tensors["batches.tokens"].flatten(0, 1)).logits[:, :-1]
    targets = tensors["batches.labels"].flatten(0, 1)[:, 1:]
    by_token = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=0)
    expected = [
        (by_token[start : start + 4].sum() / (targets[start : start + 4] != 0).sum()).item() for start in (0, 4, 8)
    ]
    run = fit(
        tmp_path,
        data=data,
        model=model,
        optimizer=OptimizerConfig(base_learning_rate=1e-30, weight_decay=0.0),  # every loss at the first parameters
        max_epochs=1,
        limit_val_batches=0,
    )
    assert run.trainer.accumulate_grad_batches == 2
    assert run.column("train/loss") == pytest.approx(expected, **LOSSES)
    authors = case["history"][0]["train_losses"]  # their first two are at the first parameters as well: its rate is 0
    assert abs(sum(authors[:2]) / 2 - expected[0]) > 1e-3, "the two means differ here"
    assert run.trainer.global_step == 3
