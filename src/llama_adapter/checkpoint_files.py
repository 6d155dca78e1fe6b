"""The checkpoints in a run's folder: which there are, and the newest whole one."""

import logging
import zipfile
from pathlib import Path

log = logging.getLogger(__name__)


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
