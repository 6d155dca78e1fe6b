"""Checkpoints that a run resumes from to the same bytes, and stopping in an orderly way on SIGTERM and Ctrl-C.

A checkpoint is a few MB whatever the model's size: adapter, optimizer, schedule, loops and the place in the data. It is
written only where an optimizer step has just ended, and after the validation when the step is an epoch's last one; at
such a place nothing else needs to be remembered.
"""

import logging
import signal
import threading
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from llama_adapter.files import whole_file

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunInterrupted(Exception):
    """The run was told to stop, has saved a checkpoint and can be resumed.

    Attributes:
        signal_number: what stopped it.
    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(signal_number).name} after step {step}.")
        self.signal_number = signal_number


class RunCheckpoint(Checkpoint):
    """Saves every so many optimizer steps, at every epoch's end and when the run is told to stop.

    The first one is written after the first step: a full disk or a read-only folder shows at once, not after an hour.

    Args:
        folder: where the files go; `step_<optimizer steps>.ckpt` and `best.ckpt`.
        every_n_train_steps: optimizer steps between two checkpoints.
        keep_last: how many of them are kept.
        monitor: the validation metric whose smallest value marks the best one.
    """

    def __init__(
        self, folder: str, *, every_n_train_steps: int = 100, keep_last: int = 2, monitor: str = "val/loss"
    ) -> None:
        for key, value in (("every_n_train_steps", every_n_train_steps), ("keep_last", keep_last)):
            if value < 1:
                raise ValueError(f"callbacks.checkpoint.{key} must be at least 1, got {value}.")
        self.folder = Path(folder)
        self.every_n_train_steps = every_n_train_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.best_value = float("inf")
        self._max_steps = -1
        self._signal_number = 0

    # --- when -------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return  # inside a step
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or step == trainer.max_steps:
            return  # the epoch ends here, perhaps with a validation: `on_train_epoch_end` saves after it
        told_to_stop = self._told_to_stop(trainer)
        if step == 1 or step % self.every_n_train_steps == 0 or told_to_stop:
            self.save(trainer)
        if told_to_stop:
            raise RunInterrupted(self._signal_number or signal.SIGTERM, step)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and float(value) < self.best_value:
            self.best_value = float(value)
            # Before the step's own, which knows the value: a run that resumes from that would not write this one again.
            self._write(trainer, self.folder / "best.ckpt")
        self.save(trainer)
        if self._told_to_stop(trainer):
            raise RunInterrupted(self._signal_number or signal.SIGTERM, trainer.global_step)

    # --- how --------------------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint of the current step, whole or not at all, and drops the oldest."""
        for logger in trainer.loggers:
            logger.save()  # rows up to this step are on disk before the checkpoint that will not write them again
        self._write(trainer, self.folder / f"step_{trainer.global_step:06d}.ckpt")
        if trainer.is_global_zero:
            for old in step_checkpoints(self.folder)[: -self.keep_last]:
                old.unlink()
        trainer.strategy.barrier()

    def _write(self, trainer: Trainer, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        writing = whole_file(path) if trainer.is_global_zero else nullcontext(path)
        try:
            with writing as temporary:
                trainer.save_checkpoint(temporary)  # on every device; the first one writes
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            raise OSError(f"Cannot write the checkpoint {path}: {error}. Is the disk full?") from error

    def state_dict(self) -> dict[str, float]:
        return {"best_value": self.best_value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best_value = state["best_value"]

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        # While it restores its loops, Lightning takes every run with max_steps for one that was stopped within an
        # epoch, and would go through a finished epoch again. It is told of the limit when that is over.
        self._max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    # --- signals ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps
        self._signal_number = 0
        # Lightning puts all handlers back that it found, ours replace its own until then.
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal_number:
            raise KeyboardInterrupt  # a second one will not wait
        self._signal_number = number
        log.warning("%s: saving a checkpoint after this step. Once more stops at once.", signal.Signals(number).name)

    def _told_to_stop(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return bool(self._signal_number)
        # One device may be told before another; they must all stop after the same step.
        told = torch.tensor(int(bool(self._signal_number)), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(told, reduce_op="sum"))


def step_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: (len(path.name), path.name))  # seven digits after six


def newest_checkpoint(folder: Path) -> tuple[Path, int]:
    """The newest whole checkpoint to resume from, and its optimizer step.

    A destroyed one is passed over with a warning, for the one before it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are some, and all are destroyed.
    """
    paths = step_checkpoints(folder)
    if not paths:
        raise FileNotFoundError(f"No checkpoint step_*.ckpt in {folder}. Start the run again in a new folder.")
    for path in reversed(paths):
        try:
            # Our own file with optimizer and loop states, written by this run; zip checksums tell whether it is whole.
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is None:
                return path, int(path.stem.removeprefix("step_"))
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError):
            pass  # in a destroyed directory the zip module may see an unknown compression or a password
        log.warning("The checkpoint %s is destroyed; trying the one before it.", path)
    raise ValueError(
        f"All checkpoints in {folder} are destroyed ({paths[-1].name} is the newest). Start the run again."
    )
