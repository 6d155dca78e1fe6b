"""What goes wrong in a run, at a chosen place: callbacks for `+callbacks.fault._target_=tests.faults...`."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, Trainer
from torch.utils.data import get_worker_info


class Fault(Callback):
    """Something happens once, on one process, at a place of a step.

    Args:
        step: in which; of a save or a validation, the steps done before it.
        where: `data`, `forward`, `backward`, `save` (half of the file is written), `validation`; or `worker`, where
            `step` is the number of the example that a data worker reads.
        rank: of the process; -1 for all.
        marker: a file that is there when it has happened; it does not happen again then. "" for every time.
    """

    def __init__(self, *, step: int, where: str, rank: int = 0, marker: str = "") -> None:
        self.step = step
        self.where = where
        self.rank = rank
        self.marker = Path(marker) if marker else None
        self._fsync = os.fsync

    def happen(self, trainer: Trainer, module) -> None:
        raise NotImplementedError

    def _comes(self, trainer: Trainer, where: str, step: int) -> bool:
        if (where, step) != (self.where, self.step) or self.rank not in (-1, trainer.global_rank):
            return False
        return self.marker is None or not self.marker.exists()

    def _come(self, trainer: Trainer, module, where: str, step: int) -> None:
        if self._comes(trainer, where, step):
            if self.marker is not None:
                self.marker.touch()
            self.happen(trainer, module)

    def on_fit_start(self, trainer: Trainer, module) -> None:
        data = trainer.datamodule
        if self.where == "data":
            come = partial(self._come, trainer, module, "data")
            data.train_dataset = Items(data.train_dataset, lambda number: come(trainer.global_step + 1))
        if self.where == "worker":  # which knows of no steps: the number of items that it has read
            come = partial(self._come, trainer, module, "worker")
            data.train_dataset = Items(data.train_dataset, lambda number: get_worker_info() and come(number))
        if self.where == "save":
            self._break_saving(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, module, *_: object) -> None:
        self._come(trainer, module, "forward", trainer.global_step + 1)

    def on_before_backward(self, trainer: Trainer, module, *_: object) -> None:
        self._come(trainer, module, "backward", trainer.global_step + 1)

    def on_validation_batch_end(self, trainer: Trainer, module, *_: object) -> None:
        self._come(trainer, module, "validation", trainer.global_step)

    def _break_saving(self, trainer: Trainer, module) -> None:
        fsync = os.fsync

        def half(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.endswith(f"step_{self.step:06d}.ckpt.part") and self._comes(trainer, "save", self.step):
                os.truncate(path, os.path.getsize(path) // 2)
                self._come(trainer, module, "save", self.step)
            fsync(descriptor)

        self._fsync, os.fsync = fsync, half

    def teardown(self, trainer: Trainer, module, stage: str) -> None:
        os.fsync = self._fsync


class Items(list):
    """A data set that calls something for every item; its other attributes are those of the original."""

    def __init__(self, original, call) -> None:
        super().__init__(original)
        self.original, self.call, self.read = original, call, 0

    def __getattr__(self, name: str):
        return getattr(self.original, name)

    def __getitem__(self, index):
        self.read += 1
        self.call(self.read)
        return self.original[index]


class Kill(Fault):
    """The process is sent a signal: by default the one that nothing catches."""

    def __init__(self, *, number: int = signal.SIGKILL, **place) -> None:
        super().__init__(**place)
        self.number = number

    def happen(self, trainer: Trainer, module) -> None:
        os.kill(os.getpid(), self.number)


class KillAll(Fault):
    """The whole process group of the run is killed; its first process must be the group's leader."""

    def happen(self, trainer: Trainer, module) -> None:
        os.killpg(os.getpgid(0), signal.SIGKILL)


class Hang(Fault):
    """The process never comes back."""

    def happen(self, trainer: Trainer, module) -> None:
        time.sleep(10_000)


class Fail(Fault):
    """An error of this process alone."""

    def happen(self, trainer: Trainer, module) -> None:
        raise ValueError("The example 7 has no answer.")


class Diverge(Fault):
    """The loss of this process alone becomes NaN, from one micro-batch on."""

    def happen(self, trainer: Trainer, module) -> None:
        loss = module.head.loss

        def not_a_number(model, batch):
            value, count = loss(model, batch)
            return value * torch.nan, count

        module.head = replace(module.head, loss=not_a_number)
