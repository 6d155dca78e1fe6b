"""Training against the loss written out token by token, however a global batch is cut, and a loss that is no number."""

import csv
import math
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer

from llama_adapter.attach import adapters, attach
from llama_adapter.batches import BatchConfig
from llama_adapter.checkpoint_files import newest_checkpoint
from llama_adapter.data import PaddedCollator
from llama_adapter.heads import response_loss
from llama_adapter.module import AdapterModule, NonFiniteLossError
from llama_adapter.optim import OptimizerConfig
from llama_adapter.run_checkpoint import RunCheckpoint
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.tiny_training import FailAt, TinyData, adapted_model, assert_same_adapter, fit, make_examples

STANDSTILL = OptimizerConfig(base_learning_rate=1e-30, weight_decay=0.0)  # every step is taken at the first parameters


def naive_losses(model, examples) -> list[torch.Tensor]:
    """Cross entropy of every trained token, example by example, without padding."""
    losses = []
    for example in examples:
        log_probabilities = model(example["input_ids"][None], use_cache=False).logits[0].log_softmax(-1)
        for position, label in enumerate(example["labels"].tolist()):
            if position > 0 and label != -100:
                losses.append(-log_probabilities[position - 1, label])
    return losses


def naive_mean(model, examples) -> torch.Tensor:
    return torch.stack(naive_losses(model, examples)).mean()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


class KeepGradients(Callback):
    """Of every optimizer step, as the optimizer saw them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, module, *_: object) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.steps.append(gradients(module.model))


# --- the loss of a batch --------------------------------------------------------------------------------------------


def test_loss_is_the_sum_over_response_tokens():
    model, examples = adapted_model("random"), make_examples(5)
    assert len({len(example["input_ids"]) for example in examples}) > 1, "there must be padding"
    loss, tokens = response_loss(model, PaddedCollator(pad_id=0)(examples))
    expected = naive_losses(model, examples)
    assert tokens.item() == len(expected)
    # 25 float32 numbers below 10 in another order
    torch.testing.assert_close(loss, torch.stack(expected).sum(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pad_id", [0, 2, 63])
def test_padding_changes_nothing(pad_id):
    model, examples = adapted_model("random"), make_examples(5)
    batch = PaddedCollator(pad_id)(examples)
    longer = {key: torch.nn.functional.pad(batch[key], (0, 7), value=fill) for key, fill in
              (("input_ids", pad_id), ("labels", -100))}  # fmt: skip
    expected, tokens = response_loss(model, PaddedCollator(pad_id=0)(examples))
    for padded in (batch, longer):
        loss, same = response_loss(model, padded)
        assert same == tokens
        torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)


def test_a_batch_that_trains_nothing_has_a_loss_and_gradients_of_zero():
    model = adapted_model("random")
    loss, tokens = response_loss(model, PaddedCollator(pad_id=0)([]))
    assert (loss.item(), tokens.item()) == (0.0, 0)
    loss.backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_the_label_of_the_first_position_is_not_used():
    model = adapted_model("random")
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, -100, 7]])}
    assert response_loss(model, batch)[1] == 1


def test_the_loss_of_a_bfloat16_model_is_float32():
    torch.manual_seed(0)
    model = attach(tiny_model().bfloat16(), AdapterConfig(prompt_length=3, prompt_layers=2))
    loss, _ = response_loss(model, PaddedCollator(pad_id=0)(make_examples(2)))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model).values())


# --- a step is its global batch, however it is cut ------------------------------------------------------------------


def standstill(folder: Path, micro: int, **options):
    """Rows and gradients of three steps at the first parameters: global batches of 8, 8 and 6, in order."""
    keeper = KeepGradients()
    data = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=micro), shuffle=False)
    model = adapted_model("random")
    run = fit(folder, data=data, model=model, optimizer=STANDSTILL, callbacks=(keeper,), max_epochs=1, **options)
    return run, keeper.steps


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_loss_and_gradient_are_those_of_the_mean_over_the_global_batch(tmp_path, micro):
    run, steps = standstill(tmp_path, micro)
    assert run.trainer.accumulate_grad_batches == 8 // micro
    assert len(steps) == run.trainer.global_step == 3, "the last global batch of 6 is a step too"
    reference = adapted_model("random")
    for start, row, found in zip((0, 8, 16), run.rows, steps, strict=True):
        examples = run.data.train_dataset[start : start + 8]
        reference.zero_grad()
        loss = naive_mean(reference, examples)
        loss.backward()
        assert row["train/loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert row["train/response_tokens"] == len(naive_losses(reference, examples))
        expected = gradients(reference)
        for name, gradient in found.items():
            # Gradients are below 1; float32 sums in another order.
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=0)
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in expected.values()))
        assert row["train/gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_run_does_not_depend_on_the_micro_batch_or_the_batching(tmp_path):
    runs = []
    for micro, batching in ((8, "padded"), (4, "padded"), (2, "padded"), (8, "flat"), (2, "flat")):
        batches = BatchConfig(global_batch_size=8, micro_batch_size=micro, batching=batching)
        run = fit(tmp_path / f"{micro}_{batching}", batches=batches)
        assert run.trainer.global_step == 9
        runs.append(run)
    for run in runs[1:]:
        # Rounding of nine steps of Adam at a rate 0.03, which divides by the gradient's size.
        for column in ("train/loss", "val/loss", "train/epoch_loss"):
            assert run.column(column) == pytest.approx(runs[0].column(column), abs=1e-4)
        for name, tensor in run.adapter.items():
            torch.testing.assert_close(tensor, runs[0].adapter[name], atol=1e-3, rtol=0)


# --- what is logged -------------------------------------------------------------------------------------------------


def test_one_row_per_optimizer_step(tmp_path):
    run = fit(tmp_path)
    assert [row["step"] for row in run.rows] == list(range(1, 10))
    assert all("train/loss" in row for row in run.rows)
    assert [row["step"] for row in run.rows if "val/loss" in row] == [3, 6, 9]
    assert [row["epoch"] for row in run.rows if "epoch" in row] == [0, 1, 2]


def test_every_so_many_steps(tmp_path):
    run = fit(tmp_path, log_every_n_steps=4)
    assert [row["step"] for row in run.rows if "train/loss" in row] == [1, 4, 8]  # the first shows the start


def test_learning_rates_are_those_of_the_examples_seen(tmp_path):
    """By hand: peak 1.0 x 8 / 256, half an epoch of warm-up, three epochs of 22 examples."""
    peak, rates = 1.0 * 8 / 256, []
    for epoch in range(3):
        for seen in (0, 8, 16):
            f = epoch + seen / 22
            cosine = 0.5 * (1 + math.cos(math.pi * (f - 0.5) / 2.5))
            rates.append(peak * f / 0.5 if f < 0.5 else peak * cosine)
    assert fit(tmp_path).column("train/learning_rate") == pytest.approx(rates, rel=1e-9)


def test_epoch_loss_is_the_mean_over_the_tokens_of_the_epoch(tmp_path):
    run, _ = standstill(tmp_path, 2)
    expected = naive_mean(adapted_model("random"), run.data.train_dataset).item()
    assert run.column("train/epoch_loss") == [pytest.approx(expected, abs=1e-5)]


def test_validation_and_test_loss_are_means_over_tokens(tmp_path):
    run = fit(tmp_path, max_epochs=1)
    with torch.no_grad():
        validation = naive_mean(run.model, run.data.validation_dataset).item()
        test = naive_mean(run.model, run.data.test_dataset).item()
    assert run.column("val/loss") == [pytest.approx(validation, abs=1e-5)]
    assert run.column("val/perplexity") == [pytest.approx(math.exp(validation), rel=1e-4)]
    run.trainer.test(run.module, run.data, verbose=False)
    assert run.module.summary["test/loss"] == pytest.approx(test, abs=1e-5)
    assert run.module.summary["test/perplexity"] == pytest.approx(math.exp(test), rel=1e-4)


def test_perplexity_of_a_huge_loss_is_a_number(tmp_path):
    class Confuse(Callback):
        def on_fit_start(self, trainer: Trainer, module) -> None:
            module.validation_loss.compute = lambda: torch.tensor(1e6)

    run = fit(tmp_path, callbacks=(Confuse(),), max_epochs=1)
    assert math.isfinite(run.module.summary["val/perplexity"])


def test_summary_holds_the_last_values(tmp_path):
    run = fit(tmp_path)
    last = run.rows[-1]
    assert run.module.summary == {
        name: last[name] for name in ("train/loss", "train/epoch_loss", "val/loss", "val/perplexity")
    }
    assert run.module.validated_step == 9


def test_only_the_adapter_moves(tmp_path):
    run = fit(tmp_path)
    for name, parameter in tiny_model().named_parameters():
        assert torch.equal(run.model.get_parameter(name), parameter), name
    before = adapted_model()
    for name, tensor in run.adapter.items():
        assert not torch.equal(tensor, before.get_parameter(name)), name
    assert not run.model.training, "the frozen model's dropout stays off"


def test_training_lowers_the_loss(tmp_path):
    optimizer = OptimizerConfig(base_learning_rate=10.0, warmup_epochs=0.5)
    losses = fit(tmp_path, optimizer=optimizer, max_epochs=6).column("train/epoch_loss")
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt_length", "prompt_layers", "message"),
    [
        (3, 3, "The checkpoint is of another adapter: only one of the two has "
               "model.model.layers.0.self_attn.adapter.gate."),
        (3, 1, "The checkpoint is of another adapter: only one of the two has "
               "model.model.layers.1.self_attn.adapter.gate."),
        (5, 2, "The checkpoint is of another adapter: its model.model.layers.1.self_attn.adapter.prompt is [3, 32], "
               "this one's is [5, 32]."),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_adapter_is_refused(tmp_path, prompt_length, prompt_layers, message):
    fit(tmp_path, callbacks=(RunCheckpoint(tmp_path / "checkpoints"),), max_epochs=1)
    other = attach(tiny_model(), AdapterConfig(prompt_length, prompt_layers))
    refused = fit(tmp_path, model=other, resume=True, catch=ValueError)
    assert str(refused.error) == message


# --- a loss that is no number ---------------------------------------------------------------------------------------


def broken_loss(kind: str, step: int):
    """`response_loss` that breaks in the second micro-batch of an optimizer step."""
    calls = 0

    def loss_of(model, batch):
        nonlocal calls
        loss, tokens = response_loss(model, batch)
        calls += torch.is_grad_enabled()  # not in validation
        if torch.is_grad_enabled() and calls == (step - 1) * 4 + 2:
            if kind == "gradient":  # the value is fine, its derivative is infinite
                return loss + (adapters(model)[2].gate * 0).abs().sqrt().sum(), tokens
            return loss * float(kind), tokens
        return loss, tokens

    return loss_of


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path, kind):
    def callbacks(name: str) -> tuple[Callback, ...]:
        return (RunCheckpoint(tmp_path / name / "checkpoints", every_n_train_steps=2, keep_last=1),)

    good = fit(tmp_path / "good", callbacks=(*callbacks("good"), FailAt(4)), catch=InterruptedError)
    broken = fit(
        tmp_path / "broken", callbacks=callbacks("broken"), catch=NonFiniteLossError, loss=broken_loss(kind, step=5)
    )
    message = str(broken.error)
    assert message.startswith("Step 5 has a loss of ")
    assert message.endswith(" and a gradient norm of nan. The adapter was not changed by it.")
    assert broken.trainer.global_step == 4
    assert_same_adapter(broken.adapter, good.adapter)
    assert [row["step"] for row in broken.rows] == [1, 2, 3, 4]
    assert newest_checkpoint(tmp_path / "broken/checkpoints")[1] == 4, "the last good checkpoint is kept"
    if kind == "nan":  # and the run goes on from there when what broke it is mended
        mended = fit(tmp_path / "broken", callbacks=callbacks("broken"), resume=True)
        assert_same_adapter(mended.adapter, fit(tmp_path / "whole").adapter)


def test_the_batches_of_the_broken_step_are_kept_for_the_report(tmp_path):
    broken = fit(tmp_path, catch=NonFiniteLossError, loss=broken_loss("nan", step=5))
    assert len(broken.module.step_batches) == 4
    assert not fit(tmp_path / "good", max_epochs=1).module.step_batches


# --- many devices ---------------------------------------------------------------------------------------------------


def train_on(devices: int, folder: Path, *, train: int = 22, callbacks: tuple[Callback, ...] = (), **options):
    """Two epochs on CPU processes, which leave metrics.csv and their last checkpoint; returns both."""
    data = TinyData(BatchConfig(global_batch_size=8, micro_batch_size=2), train=train)
    callbacks = RunCheckpoint(folder / "checkpoints", keep_last=1, every_n_train_steps=2), *callbacks
    strategy = "ddp_spawn" if devices > 1 else "auto"
    fit(folder, data=data, callbacks=callbacks, max_epochs=2, devices=devices, strategy=strategy, **options)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, torch.load(newest_checkpoint(folder / "checkpoints")[0], weights_only=False)


def assert_same_but_for_rounding(ours, expected) -> None:
    (rows, checkpoint), (expected_rows, expected_checkpoint) = ours, expected
    assert checkpoint["global_step"] == expected_checkpoint["global_step"] == 6
    assert len(rows) == len(expected_rows) == 6
    for row, other in zip(rows, expected_rows, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert (row[name] == "") == (other[name] == ""), name
            if row[name]:
                # Sums of float32 in another order, over six steps of Adam.
                assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-5, rel=1e-5), (row["step"], name)
    for name, tensor in expected_checkpoint["state_dict"].items():
        torch.testing.assert_close(checkpoint["state_dict"][name], tensor, atol=1e-4, rtol=0)


# The last global batch has 6 examples; or 1, so that a device gets none.
@pytest.mark.slow
@pytest.mark.parametrize("train", [22, 17])
def test_two_processes_are_one(tmp_path, train):
    """Same global batches and same mean over their tokens, with accumulation, on one device and on two."""
    one = train_on(1, tmp_path / "one", train=train)
    assert_same_but_for_rounding(train_on(2, tmp_path / "two", train=train), one)


@pytest.mark.slow
@pytest.mark.parametrize("crash", [3, 5])  # at the end of an epoch, within one
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, crash):
    one = train_on(1, tmp_path / "one")
    train_on(1, tmp_path / "two", callbacks=(FailAt(crash),), catch=InterruptedError)
    assert_same_but_for_rounding(train_on(2, tmp_path / "two", resume=True), one)


def test_defaults():
    module = AdapterModule(adapted_model())
    assert module.optimizer_config == OptimizerConfig()
