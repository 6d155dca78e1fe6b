"""Checkpoints that a run resumes from to the same bytes, and stopping in an orderly way when it is told to.

A checkpoint is a few MB whatever the model's size: adapter, optimizer, schedule, loops, the place in the data, the
states of the random generators and the ids of the run's loggers. It is made only where an optimizer step has just
ended, and after the validation when the step is an epoch's last one; at such a place nothing else needs to be
remembered.

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 save first: schedulers send one of them before a time limit. None of them puts the
job into the queue again; docs/cluster.md has job scripts that do.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from llama_adapter.checkpoint_files import step_checkpoints
from llama_adapter.checkpoint_writer import CheckpointWriter
from llama_adapter.random_states import random_state, set_random_state

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Another signal within this time is the same one: a terminal tells a whole group of processes, and torchrun does too.
REPEATED_SECONDS = 1.0


class RunInterrupted(Exception):
    """The run was told to stop, has saved a checkpoint and can be resumed.

    Attributes:
        signal_number: what stopped it.
    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(signal_number).name} after step {step}.")
        self.signal_number = signal_number


class StoppedAtOnce(KeyboardInterrupt):
    """The run was told to stop a second time, or after the training, and has not saved. Lightning makes an exit of it.

    Attributes:
        signal_number: the last signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"Stopped at once by {signal.Signals(signal_number).name}.")
        self.signal_number = signal_number


class RunCheckpoint(Checkpoint):
    """Saves every so many optimizer steps, at every epoch's end and when the run is told to stop.

    The first one is written after the first step: a full disk or a read-only folder shows at once, not after an hour.

    With any strategy every process takes part in making a checkpoint (`Trainer.save_checkpoint` may gather shards),
    and the first one writes it. A file that cannot be written ends the run on all of them after the same step.

    Args:
        folder: where the files go; `step_<optimizer steps>.ckpt` and `best.ckpt`.
        every_n_train_steps: optimizer steps between two checkpoints.
        keep_last: how many of them are kept. An older one goes only when the newer one is whole on the disk.
        monitor: the validation metric whose smallest value marks the best one.
        asynchronous: whether a thread writes the file while the training goes on.
    """

    def __init__(
        self,
        folder: str,
        *,
        every_n_train_steps: int = 100,
        keep_last: int = 2,
        monitor: str = "val/loss",
        asynchronous: bool = True,
    ) -> None:
        for key, value in (("every_n_train_steps", every_n_train_steps), ("keep_last", keep_last)):
            if value < 1:
                raise ValueError(f"callbacks.checkpoint.{key} must be at least 1, got {value}.")
        self.folder = Path(folder)
        self.every_n_train_steps = every_n_train_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.asynchronous = asynchronous
        self.best_value = float("inf")
        self.run_ids: dict[str, str] = {}
        self._max_steps = -1
        self._signal_number, self._signal_time = 0, 0.0
        self._random_states: list[dict] = []  # of every process, from the checkpoint that the run resumes from
        self._writer = CheckpointWriter(asynchronous=asynchronous, written=self._drop_old)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._writer = CheckpointWriter(asynchronous=self.asynchronous, written=self._drop_old)
        trainer.strategy.checkpoint_io = self._writer

    # --- when -------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return  # inside a step
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or step == trainer.max_steps:
            return  # the epoch ends here, perhaps with a validation: `on_train_epoch_end` saves after it
        told = self._told_to_stop(trainer)
        if step == 1 or step % self.every_n_train_steps == 0 or told:
            self.save(trainer)
        if step == 1:
            self._finish_writing(trainer)
        if told:
            self._stop(trainer, told)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and float(value) < self.best_value:
            self.best_value = float(value)
            # Before the step's own, which knows the value: a run that resumes from that would not write this one again.
            trainer.save_checkpoint(self.folder / "best.ckpt")
        self.save(trainer)
        if told := self._told_to_stop(trainer):
            self._stop(trainer, told)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._finish_writing(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._writer.wait()
        if self._writer.error is not None and exception is not self._writer.error:
            log.error("%s", self._writer.error)

    def _stop(self, trainer: Trainer, signal_number: int) -> None:
        self._finish_writing(trainer)
        raise RunInterrupted(signal_number, trainer.global_step)

    # --- how --------------------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer) -> None:
        """Makes the checkpoint of the current step, to be called on every process; it may not be on the disk yet.

        What it holds is copied before this returns. Once it is whole under its own name, the oldest one is dropped.
        """
        if trainer.is_global_zero:
            # Rows up to this step are on disk before the checkpoint that will not write them again.
            self._writer.before = [
                logger.save_later() if hasattr(logger, "save_later") else logger.save for logger in trainer.loggers
            ]
        trainer.save_checkpoint(self.folder / f"step_{trainer.global_step:06d}.ckpt")

    def _drop_old(self, path: Path) -> None:
        for old in step_checkpoints(self.folder)[: -self.keep_last]:
            old.unlink()

    def _finish_writing(self, trainer: Trainer) -> None:
        self._writer.wait()
        self._told_to_stop(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        states = [random_state(module.device)]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state(module.device))
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        self._random_states = checkpoint.get("random_states", [])

    def state_dict(self) -> dict[str, object]:
        return {"best_value": self.best_value, "run_ids": self.run_ids}

    def load_state_dict(self, state: dict) -> None:
        self.best_value = state["best_value"]

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        # While it restores its loops, Lightning takes every run with max_steps for one that was stopped within an
        # epoch, and would go through a finished epoch again. It is told of the limit when that is over.
        self._max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    # --- signals ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps
        ids = {type(logger).__name__: getattr(logger, "run_id", None) for logger in trainer.loggers}
        self.run_ids = {name: run_id for name, run_id in ids.items() if run_id}
        if trainer.global_rank < len(self._random_states):  # a process that was not there before keeps its own
            set_random_state(self._random_states[trainer.global_rank], module.device)
        self._random_states = []
        self._signal_number = 0
        _handle_signals(self._on_signal)

    def on_test_start(self, trainer: Trainer, module: LightningModule) -> None:
        _handle_signals(_stop_at_once)  # nothing is left to save, and Lightning would exit with 0

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            _handle_signals(_stop_at_once)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal_number:
            if now - self._signal_time < REPEATED_SECONDS:
                return
            raise StoppedAtOnce(number)  # a second one will not wait
        self._signal_number, self._signal_time = number, now
        log.warning("%s: saving a checkpoint after this step. Once more stops at once.", signal.Signals(number).name)

    def _told_to_stop(self, trainer: Trainer) -> int:
        """The signal that any process was told to stop with, or 0: they must all stop after the same step.

        Raises:
            OSError: a checkpoint could not be written; on every process, whichever wrote it.
        """
        number, error = self._signal_number, self._writer.error
        failed = error is not None
        if trainer.world_size > 1:
            flags = torch.tensor([number, failed], dtype=torch.int32, device=trainer.strategy.root_device)
            number, failed = trainer.strategy.reduce(flags, reduce_op="max").tolist()
        if failed:
            raise error or OSError("The first process could not write a checkpoint; its message says why.")
        return number


def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    # Lightning puts all handlers back that it found, ours replace its own until then.
    if threading.current_thread() is threading.main_thread():  # signals reach no other
        for number in SIGNALS:
            signal.signal(number, handler)


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    raise StoppedAtOnce(number)


def logger_run_ids(checkpoint: Path) -> dict[str, str]:
    """The ids under which a run's loggers know it, by the logger's class; empty where none has one.

    Args:
        checkpoint: a whole file of `RunCheckpoint`.
    """
    # Our own file with optimizer and loop states, which torch cannot read as weights alone.
    states = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["callbacks"]
    return states.get(RunCheckpoint.__qualname__, {}).get("run_ids", {})
