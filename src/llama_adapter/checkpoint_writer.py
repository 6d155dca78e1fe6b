"""Writes checkpoints while the training goes on: copied to host memory first, then whole on the disk or not at all."""

import copy
import io
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_map

from llama_adapter.files import whole_file


class CheckpointWriter(TorchCheckpointIO):
    """What Lightning's strategies hand a checkpoint to, on the first device alone.

    Only one is being written at a time; the next one waits for it. An error is kept in `error`, since nobody can catch
    what is raised in a thread: whoever saves must look, and nothing more is written after it.

    Args:
        asynchronous: whether a thread writes; without it `save_checkpoint` returns when the file is there.
        written: called with the path of every file that is whole under its own name.

    Attributes:
        before: what is called once before the next file is written, by the same thread.
        error: of a file that could not be written, as a sentence.
    """

    def __init__(self, *, asynchronous: bool = True, written: Callable[[Path], None] = lambda path: None) -> None:
        self.asynchronous = asynchronous
        self.written = written
        self.before: list[Callable[[], None]] = []
        self.error: OSError | None = None
        self._thread: threading.Thread | None = None

    def save_checkpoint(self, checkpoint: dict, path: Path | str, storage_options: object = None) -> None:
        self.wait()
        if self.error is not None:
            return  # the run is about to end with it
        before, self.before = self.before, []
        if not self.asynchronous:
            self._write(checkpoint, Path(path), before)
            return
        # The next step changes adapter and moments in place.
        arguments = host_copy(checkpoint), Path(path), before
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint-writer")
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Returns when nothing is being written any more, or after so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def teardown(self) -> None:
        self.wait()

    def _write(self, checkpoint: dict, path: Path, before: Sequence[Callable[[], None]]) -> None:
        try:
            for call in before:
                call()
            content = io.BytesIO()
            torch.save(checkpoint, content)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                # Not torch's own writer: it would hide the system's reason behind one of its own.
                temporary.write_bytes(content.getbuffer())
            _keep_names(path.parent)  # an older file may be deleted now
            self.written(path)
        except Exception as error:
            self.error = OSError(f"Cannot write the checkpoint {path}: {error}. Is the disk full?")
            self.error.__cause__ = error


def _keep_names(folder: Path) -> None:
    """Makes the names of a folder's files outlive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def host_copy(checkpoint: dict) -> dict:
    """The checkpoint as it is now, whatever is changed in place afterwards; its tensors in host memory."""
    return tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else copy.deepcopy(leaf), checkpoint
    )
