"""What a run watches, on runs where it should and should not be heard."""

import json
import logging

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from llama_adapter.attach import adapters
from llama_adapter.batches import BatchConfig
from llama_adapter.callbacks import FrozenAudit, GateChart, SampleAnswers, _signature, gate_factors
from llama_adapter.tokenizer import Tokenizer
from tests.tiny_training import FailAt, TinyData, adapted_model, fit


class PictureLogger(DummyLogger):
    """Takes pictures and tables, as W&B's logger does."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple] = []
        self.tables: list[dict] = []

    def log_image(self, key: str, images: list, step: int | None = None) -> None:
        self.images.append((key, images, step))

    def log_table(self, key: str, columns: list[str], data: list[list], step: int | None = None) -> None:
        self.tables.append({"key": key, "columns": columns, "data": data, "step": step})


class AddLogger(Callback):
    """A second logger beside metrics.csv."""

    def __init__(self, logger: PictureLogger) -> None:
        self.logger = logger

    def setup(self, trainer: Trainer, module, stage: str) -> None:
        trainer.loggers = [*trainer.loggers, self.logger]


class AtStepEnd(Callback):
    """Does something to the module when an optimizer step is done, before the other callbacks see it."""

    def __init__(self, action) -> None:
        self.action = action

    def on_train_batch_end(self, trainer: Trainer, module, *_: object) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.action(module)


# --- audit ----------------------------------------------------------------------------------------------------------


def test_a_device_may_have_no_part_of_a_tensor():
    assert torch.equal(_signature(torch.empty(0, 4)), _signature(torch.empty(0, 4)))


def test_audit_passes_on_a_good_run(tmp_path, caplog):
    caplog.set_level(logging.INFO, "llama_adapter.callbacks")
    run = fit(tmp_path, callbacks=(FrozenAudit(),), max_epochs=1)
    # The first step has a learning rate of 0, so it is the third that is the second with one above.
    frozen = sum(not p.requires_grad for p in run.model.parameters())
    assert caplog.messages == [
        f"Audit after step 3: all 4 trained tensors moved, none of the {frozen} frozen ones did."
    ]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_audit_names_a_frozen_parameter_that_moved(tmp_path, name):
    @torch.no_grad()
    def move(module) -> None:
        module.model.get_parameter(name).view(-1)[3] += 1e-3

    run = fit(tmp_path, callbacks=(AtStepEnd(move), FrozenAudit()), catch=RuntimeError)
    assert str(run.error) == f"Frozen parameters have moved: model.{name}."


def test_audit_sees_a_frozen_parameter_of_zeros_that_moved(tmp_path):
    """A bias of zeros to which one number was added: hashes that add or xor elements cancel out on it."""
    model = adapted_model()
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    torch.nn.init.zeros_(weight)
    run = fit(
        tmp_path,
        model=model,
        callbacks=(AtStepEnd(lambda module: weight.data.fill_(1.0)), FrozenAudit()),
        catch=RuntimeError,
    )
    assert str(run.error) == "Frozen parameters have moved: model.model.layers.0.mlp.down_proj.weight."


def test_audit_names_trained_parameters_that_do_not_move(tmp_path):
    class DropGradient(Callback):
        def on_after_backward(self, trainer: Trainer, module) -> None:
            for adapter in adapters(module.model).values():
                adapter.gate.grad = None

    run = fit(tmp_path, callbacks=(DropGradient(), FrozenAudit()), catch=RuntimeError)
    names = ", ".join(f"model.model.layers.{layer}.self_attn.adapter.gate" for layer in (1, 2))
    assert str(run.error) == f"Trained parameters have not moved in two steps: {names}."
    assert run.trainer.global_step == 3


def test_audit_is_over_after_the_second_step(tmp_path):
    weight = []

    @torch.no_grad()
    def move_late(module) -> None:
        weight.append(module)
        if len(weight) == 5:
            module.model.lm_head.weight += 1.0

    assert fit(tmp_path, callbacks=(AtStepEnd(move_late), FrozenAudit())).trainer.global_step == 9


def test_audit_leaves_a_resumed_run_alone(tmp_path, caplog):
    from llama_adapter.run_checkpoint import RunCheckpoint

    def callbacks():
        return FrozenAudit(), RunCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2)

    caplog.set_level(logging.INFO, "llama_adapter.callbacks")
    fit(tmp_path, callbacks=(*callbacks(), FailAt(5)), catch=InterruptedError)
    fit(tmp_path, callbacks=callbacks(), resume=True)
    assert len(caplog.messages) == 1


# --- gates ----------------------------------------------------------------------------------------------------------


def test_gate_chart(tmp_path):
    logger = PictureLogger()
    run = fit(tmp_path, callbacks=(AddLogger(logger), GateChart(tmp_path)), max_epochs=2)
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert logger.images == [("gates", [str(tmp_path / "gates.png")], step) for step in (3, 6)]
    # The mean over layers and heads of |tanh(g)|, by hand.
    gates = torch.stack([adapter.gate.detach() for adapter in adapters(run.model).values()])
    assert run.rows[-1]["step"] == 6
    assert run.rows[-1]["gate/mean_magnitude"] == pytest.approx(gates.tanh().abs().mean().item(), rel=1e-6)
    assert run.rows[-1]["gate/mean_magnitude"] > 0
    for layer, gate in zip((1, 2), gates, strict=True):
        assert run.rows[-1][f"gate/layer_{layer:02d}"] == pytest.approx(gate.tanh().abs().mean().item(), rel=1e-6)


def test_gate_factors_by_layer(tmp_path):
    run = fit(tmp_path, max_epochs=1)
    factors = gate_factors(run.module)
    assert list(factors) == [1, 2]
    for layer, factor in factors.items():
        assert torch.equal(factor, run.model.model.layers[layer].self_attn.adapter.gate.detach().tanh())


# --- samples --------------------------------------------------------------------------------------------------------

RECORDS = [{"instruction": "5 6 7", "input": ""}, {"instruction": "8", "input": "9 10"}]


class NumberTokenizer(Tokenizer):
    """Words are ids: what generation needs of a tokenizer, without its file."""

    vocabulary_size, pad_id, eos_ids = 64, 0, (2,)

    def __init__(self) -> None: ...

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [1] * bos + [int(word) for word in text.split()] + [2] * eos

    def decode(self, ids) -> str:
        return " ".join(str(number) for number in ids)


class AskedData(TinyData):
    def __init__(self) -> None:
        super().__init__(BatchConfig(global_batch_size=8, micro_batch_size=2))
        self.tokenizer = NumberTokenizer()

    def prompt(self, record: dict[str, str]) -> str:
        return f"{record['instruction']} {record['input']}"


def greedy(model, prompt: list[int], tokens: int) -> str:
    """Without cache, batch or our generation."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return " ".join(str(number) for number in ids[len(prompt) :] if number != 2)


def test_samples(tmp_path, caplog):
    caplog.set_level(logging.INFO, "llama_adapter.callbacks")
    logger = PictureLogger()
    samples = SampleAnswers(tmp_path, records=RECORDS, max_new_tokens=5)
    run = fit(tmp_path, data=AskedData(), callbacks=(AddLogger(logger), samples), max_epochs=2)
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert files == ["epoch_01.json", "epoch_02.json"]
    rows = json.loads((tmp_path / "samples/epoch_02.json").read_text())
    answers = [greedy(run.model, [1, 5, 6, 7], 5), greedy(run.model, [1, 8, 9, 10], 5)]
    assert rows == [record | {"answer": answer} for record, answer in zip(RECORDS, answers, strict=True)]
    table = logger.tables[1]
    assert (table["key"], table["step"]) == ("samples", 6)
    assert table["columns"] == ["epoch", "instruction", "input", "answer"]
    # Every table has the epochs before it too; a resumed run reads them from their files.
    assert table["data"][:2] == logger.tables[0]["data"]
    assert table["data"][2:] == [[2, "5 6 7", "", answers[0]], [2, "8", "9 10", answers[1]]]
    assert caplog.messages[-1] == f"Epoch 2: 8 / 9 10 -> {answers[1]}"


def test_samples_change_nothing_in_the_run(tmp_path):
    plain = fit(tmp_path / "plain", data=AskedData())
    asked = fit(
        tmp_path / "asked",
        data=AskedData(),
        callbacks=(SampleAnswers(tmp_path / "asked", records=RECORDS, max_new_tokens=3),),
    )
    assert (tmp_path / "plain/metrics.csv").read_bytes() == (tmp_path / "asked/metrics.csv").read_bytes()
    assert all(torch.equal(tensor, asked.adapter[name]) for name, tensor in plain.adapter.items())


def test_no_samples_in_the_check_before_the_training(tmp_path):
    samples = SampleAnswers(tmp_path, records=RECORDS, max_new_tokens=2)
    fit(tmp_path, data=AskedData(), callbacks=(samples,), max_epochs=1, max_steps=0, num_sanity_val_steps=1)
    assert not (tmp_path / "samples").exists()


def test_no_samples_without_records_or_outside_of_training(tmp_path):
    fit(tmp_path, data=AskedData(), callbacks=(SampleAnswers(tmp_path, records=[]),), max_epochs=1)
    assert not (tmp_path / "samples").exists()
    samples = SampleAnswers(tmp_path, records=RECORDS, max_new_tokens=2)
    run = fit(tmp_path, data=AskedData(), max_epochs=1)
    run.trainer.callbacks.append(samples)
    run.trainer.validate(run.module, run.data, verbose=False)
    assert not (tmp_path / "samples").exists()
