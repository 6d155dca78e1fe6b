"""How far a run is, for those who watch it from outside: a sweep's table, or a person with `cat`."""

import time
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from llama_adapter.files import write_json


class ProgressFile(Callback):
    """Writes `progress.json`: optimizer steps done and to do, and the newest losses.

    Args:
        folder: of the run.
        every_seconds: at least so long between two writes; the ends of a validation and of the training have one too.
    """

    def __init__(self, folder: str, *, every_seconds: float = 5.0) -> None:
        if every_seconds < 0:
            raise ValueError(f"callbacks.progress_file.every_seconds must be at least 0, got {every_seconds}.")
        self.path = Path(folder) / "progress.json"
        self.every_seconds = every_seconds
        self._written = float("-inf")  # seconds of the monotonic clock

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        if trainer.global_step and time.monotonic() - self._written >= self.every_seconds:
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        measured = trainer.callback_metrics
        losses = {name: float(measured[name]) for name in ("train/loss", "val/loss") if name in measured}
        steps = trainer.estimated_stepping_batches  # the loader is there by now: it is not made for this
        write_json(self.path, {"step": trainer.global_step, "steps": steps} | losses)
        self._written = time.monotonic()
