"""Ends all processes of a run when one of them has ended or is stuck.

Processes wait for each other in every step: one that is killed leaves the others in a collective, with NCCL for half an
hour, and one that is stuck leaves them there too. A thread in each of them knows who is missing, says it, and ends.
"""

import logging
import os
import signal
import sys
import threading
import time
from datetime import timedelta

from lightning import Callback, LightningModule, Trainer
from torch.distributed import Store, TCPStore

from llama_adapter.checkpoint_writer import CheckpointWriter
from llama_adapter.failures import failure, is_lost_connection
from llama_adapter.watch import Watch

log = logging.getLogger(__name__)

# For the others to read why the first process, which holds the store, ends.
READING_SECONDS = 3.0


class Watchdog(Callback):
    """Runs a `Watch` during the training of several devices; with one device nobody waits for another.

    Args:
        folder: of the run, for the sentence that says how to go on.
        timeout_seconds: for which no process may stand still in the training: longer than its slowest step, validation
            batch or round of samples takes, shorter than `trainer.strategy.timeout`, after which NCCL ends a process
            without naming the one that it waits for.
    """

    def __init__(self, folder: str, *, timeout_seconds: float = 480.0) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"callbacks.watchdog.timeout_seconds must be above 0, got {timeout_seconds}.")
        self.folder = folder
        self.timeout_seconds = timeout_seconds
        self._watch: Watch | None = None
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        self._trainer = trainer
        self._watch = Watch(
            _shared_store(trainer),
            rank=trainer.global_rank,
            processes=trainer.world_size,
            timeout_seconds=self.timeout_seconds,
            end=self._end,
        )
        trainer.strategy.barrier()
        self._watch.meet()
        self._watch.start()
        _silence_observer()

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self._move(f"in the forward pass of step {trainer.global_step + 1}")

    def on_before_backward(self, trainer: Trainer, *_: object) -> None:
        self._move(f"in the backward pass of step {trainer.global_step + 1}")

    def on_before_optimizer_step(self, trainer: Trainer, *_: object) -> None:
        self._move(f"in the optimizer's part of step {trainer.global_step + 1}")

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self._move(f"on its way to the next batch after step {trainer.global_step}")

    def on_validation_batch_start(self, trainer: Trainer, *_: object) -> None:
        self._move(f"in the validation after step {trainer.global_step}")

    on_validation_batch_end = on_validation_batch_start

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        self._move(f"at the end of the epoch after step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.leave()
            self._watch = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._watch is None:
            return
        if is_lost_connection(exception):
            # Nobody has ended: then it is the process group whose patience was shorter than the watchdog's.
            reason = " ".join(str(exception).split())[:200]
            self._watch.decide(self._watch.missing(seconds=5.0) or f"{self._watch.stuck()}; {reason}")
        self._watch.leave(failed=failure(exception) or f"{type(exception).__name__}: {exception}")
        self._watch = None

    def _move(self, text: str) -> None:
        if self._watch is not None:
            self._watch.move(text)

    def _end(self, sentence: str, found_out: bool) -> None:
        # A process group that has lost a member cannot even be closed: nothing but an exit at once is sure to end.
        writer = self._trainer.strategy.checkpoint_io
        if isinstance(writer, CheckpointWriter):
            writer.wait(60.0)
        if found_out or self._trainer.is_global_zero:
            log.error("%s. All processes end; go on with resume=%s.", sentence, self.folder)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if self._trainer.is_global_zero:
            time.sleep(READING_SECONDS)
        launcher = self._trainer.strategy.launcher
        if hasattr(launcher, "kill"):  # of what this process has started, one that is stuck will not end by itself
            launcher.kill(signal.SIGKILL)
        os._exit(1)


def _silence_observer() -> None:
    """Lightning's own thread kills the first process, in the middle of anything, when one that it started has ended."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # it ends when none is left to look after


def _shared_store(trainer: Trainer) -> Store:
    """A store of the first process's own: the process group's is in use by other threads."""
    host, timeout = trainer.strategy.cluster_environment.main_address, timedelta(seconds=20)
    store = None
    if trainer.is_global_zero:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    port = trainer.strategy.broadcast(store.port if store else None)
    return store or TCPStore(host, port, is_master=False, timeout=timeout)
