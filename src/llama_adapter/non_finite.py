"""What is left behind when a loss is no number: which device, step and examples, and how to see it again."""

import logging
import math
from itertools import islice
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from llama_adapter.callbacks import gate_factors
from llama_adapter.data import GlobalBatchSampler
from llama_adapter.files import write_json
from llama_adapter.module import NonFiniteLossError

log = logging.getLogger(__name__)


class NonFiniteReport(Callback):
    """Writes what is needed to look into a loss that is NaN or infinite.

    All devices raise the error after the same step, so all of them tell what they computed; the report has the
    micro-batches of those whose own loss is no number, or of all where it is the gradient alone.

    Args:
        folder: of the run; the report is `non_finite_loss.json`.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "non_finite_loss.json"
        self.folder = folder
        self._losses: list[Tensor] = []  # of the micro-batches of the current step

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._losses.clear()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteLossError):
            return
        step = trainer.global_step + 1
        own = {"rank": trainer.global_rank, "micro_batches": self._micro_batches(trainer, module)}
        devices = [own]
        if trainer.world_size > 1:
            devices = [None] * trainer.world_size
            torch.distributed.all_gather_object(devices, own)
        if not trainer.is_global_zero:
            return
        broken = [device for device in devices if not all(map(_is_finite, device["micro_batches"]))]
        report = {
            "error": str(exception),
            "step": step,
            "devices": broken or devices,
            "gates": {layer: [*map(_number, gate.tolist())] for layer, gate in gate_factors(module).items()},
            "replay": f"python train.py resume={self.folder} trainer.max_steps={step}",
        }
        write_json(self.path, report)
        ranks = ", ".join(str(device["rank"]) for device in broken)
        what = f"loss of step {step} is no number on rank {ranks}"
        if not broken:
            what = f"gradient of step {step} is no number, the loss is one on every rank"
        log.error("The %s. The examples, the gates and the command that replays the step are in %s.", what, self.path)

    def _micro_batches(self, trainer: Trainer, module: LightningModule) -> list[dict]:
        losses = [_number(loss.item()) for loss in self._losses]
        examples = _examples(trainer)
        return [
            {
                "loss": losses[number] if number < len(losses) else None,
                "examples": examples[number] if number < len(examples) else None,
                "batch": {name: described(value) for name, value in batch.items()},
            }
            for number, batch in enumerate(module.step_batches)
        ]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no NaN


def _is_finite(micro_batch: dict) -> bool:
    return isinstance(micro_batch["loss"], float)


def _examples(trainer: Trainer) -> list[list[int]]:
    """The numbers of this device's examples in the training set, for every micro-batch of the current step."""
    sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
    if not isinstance(sampler, GlobalBatchSampler):
        return []
    steps = len(sampler) // sampler.accumulation
    number = trainer.global_step % steps
    batch = next(islice(sampler.global_batches(), number, number + 1))
    return sampler.deal_batch(batch)[sampler.rank :: sampler.deal_batch.devices]


def described(value: object) -> object:
    """A tensor for people: ids as they are, of numbers the shape and what is in them; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.tolist()
    numbers = value.detach().float()
    finite = numbers[numbers.isfinite()]
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "not_finite": numbers.numel() - finite.numel(),
        "least": finite.min().item() if len(finite) else None,
        "mean": finite.mean().item() if len(finite) else None,
        "largest": finite.max().item() if len(finite) else None,
    }
