"""A training run of a fraction of a second in this process: a tiny model, random examples, the core's classes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning import Callback, Trainer
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter.attach import attach
from llama_adapter.batches import BatchConfig
from llama_adapter.checkpoint_files import newest_checkpoint
from llama_adapter.csv_logger import RunCsvLogger
from llama_adapter.data import Example, ExampleDataModule
from llama_adapter.heads import HEADS, response_loss
from llama_adapter.module import AdapterModule
from llama_adapter.optim import OptimizerConfig
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def make_examples(count: int, seed: int = 0) -> list[Example]:
    """Random ids of 5 to 11 tokens, the first three of them not trained: the numbers of trained tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(5, 12, (1,), generator=generator))
        ids = torch.randint(3, 64, (length,), generator=generator)
        labels = ids.clone()
        labels[:3] = -100
        examples.append({"input_ids": ids, "labels": labels})
    return examples


class TinyData(ExampleDataModule):
    """22 training examples by default: three global batches of 8, the last of 6."""

    def __init__(
        self, batches: BatchConfig, *, train: int = 22, validation: int = 5, seed: int = 1, shuffle: bool = True
    ):
        super().__init__(SimpleNamespace(pad_id=0), batches=batches, seed=seed, shuffle=shuffle)
        self.train_dataset = make_examples(train)
        self.validation_dataset = make_examples(validation, seed=1)
        self.test_dataset = make_examples(validation, seed=2)


def adapted_model(gate_init: str = "zero") -> PreTrainedModel:
    """K = 3 prompts in the top L = 2 of 3 layers; the same numbers at every call."""
    torch.manual_seed(0)
    return attach(tiny_model(), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init=gate_init))


def adapter_state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".adapter." in name}


def assert_same_adapter(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class FailAt(Callback):
    """Ends a run in the way a crash does, right after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not trainer.fit_loop._should_accumulate():
            raise InterruptedError("crashed")


@dataclass
class Run:
    """What is left of a run."""

    model: PreTrainedModel
    module: AdapterModule
    trainer: Trainer
    data: TinyData
    error: BaseException | None

    @property
    def adapter(self) -> dict[str, Tensor]:
        return adapter_state(self.model)

    @property
    def rows(self) -> list[dict[str, object]]:
        """Of metrics.csv, in the order of steps."""
        rows = self.trainer.logger.rows
        return [rows[step] for step in sorted(rows)]

    def column(self, name: str) -> list[float]:
        return [float(row[name]) for row in self.rows if name in row]


def fit(
    folder: Path,
    *,
    batches: BatchConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    model: PreTrainedModel | None = None,
    data: TinyData | None = None,
    callbacks: tuple[Callback, ...] = (),
    resume: bool = False,
    dropout: bool = False,
    loss: Callable = response_loss,
    catch: type[BaseException] | tuple[type[BaseException], ...] = (),
    **options: object,
) -> Run:
    """Trains in `folder` as the launcher does: three epochs on the CPU, unless `options` of the Trainer say otherwise.

    Args:
        loss: of a model and a batch, as `heads.response_loss`.
        dropout: whether the model's own dropout is on.
        resume: continue from the newest checkpoint in `folder / "checkpoints"`.
        catch: errors that end the run and become `Run.error`.
    """
    data = data or TinyData(batches or BatchConfig(global_batch_size=8, micro_batch_size=2))
    # A high rate, 1.0 x 8 / 256: steps that a comparison to the last bit cannot miss.
    module = AdapterModule(
        adapted_model() if model is None else model,
        optimizer or OptimizerConfig(base_learning_rate=1.0, warmup_epochs=0.5),
        head=replace(HEADS["language"], loss=loss),
        dropout=dropout,
    )
    logger, checkpoint = RunCsvLogger(folder), None
    if resume:
        checkpoint, step = newest_checkpoint(folder / "checkpoints")
        logger.keep_until(step)
    options = {"max_epochs": 3, "log_every_n_steps": 1, "devices": 1, "num_sanity_val_steps": 0} | options
    trainer = Trainer(
        accelerator="cpu",
        accumulate_grad_batches=data.batches.split(options["devices"])[1],
        logger=logger,
        callbacks=list(callbacks),
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    error = None
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    except catch as caught:
        error = caught
    return Run(module.model, module, trainer, data, error)
