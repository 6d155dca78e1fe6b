"""A run as a process of its own: what it inherits, how it is told to stop, and what it ended with."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# What tells a process that it is one of several of a run, set by torchrun, Lightning, SLURM or MPI: a run that is
# started from within such a process is none of them.
RANK_VARIABLES = frozenset(
    ("RANK", "LOCAL_RANK", "GLOBAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
     "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_NPROCS",
     "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "PMI_RANK", "PMI_SIZE", "PMIX_RANK")
)  # fmt: skip
RANK_PREFIXES = ("TORCHELASTIC_", "OMPI_COMM_WORLD_")
LOG = "console.log"  # in the run's folder: everything that its processes write to the terminal
TAIL_BYTES = 8192  # of the log that is looked at for an error
ERROR = "error: "  # what `entry.run` writes before its sentence


def fresh_environment(gpus: Sequence[str] | None) -> dict[str, str]:
    """The environment of a run that is no part of another one.

    Args:
        gpus: names or indices that it may use; None leaves what there is.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in RANK_VARIABLES and not name.startswith(RANK_PREFIXES)
    }
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


class JobProcess:
    """A run in a session of its own, so that Ctrl-C in the terminal reaches it through us alone.

    It is told to stop when we die, whatever we die of, and leaves no process behind when it ends.

    Args:
        command: program and arguments.
        folder: of the run; `console.log` in it gets what is written, after what was there.
        gpus: see `fresh_environment`.
    """

    def __init__(self, command: Sequence[str], folder: Path, gpus: Sequence[str] | None = None) -> None:
        self.log = folder / LOG
        self._ended = False
        self._start = self.log.stat().st_size if self.log.is_file() else 0  # what is before is of another try
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=fresh_environment(gpus),
                start_new_session=True,
                preexec_fn=_stop_with_parent(),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        """The exit status, minus a signal's number; None while it runs."""
        status = self._process.poll()
        if status is not None and not self._ended:
            self._ended = True  # once: the system gives numbers of processes that have ended to others
            self._kill_group()  # the other devices' processes, if the first one is gone
        return status

    def stop(self) -> None:
        """Tells it to save a checkpoint and end; its other devices' processes end with it."""
        if self.status() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends all its processes at once."""
        if self.status() is None:
            self._kill_group()
            self._process.wait()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of processes that have ended
            os.killpg(self.pid, signal.SIGKILL)

    def tail(self, lines: int) -> list[str]:
        """The last lines that it wrote; of a progress bar the last state."""
        with self.log.open("rb") as file:
            file.seek(max(self._start, self.log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        written = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
        return [line for line in written if line.strip()][-lines:]

    def failure(self, status: int) -> str:
        """Why it ended with a status that is not 0, in a sentence."""
        last = self.tail(1)
        if status > 0 and last and last[0].startswith(ERROR):
            return last[0].removeprefix(ERROR)
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        if status > 128:
            how = f"was stopped by {_signal_name(status - 128)}"
        hint = " Where memory runs out, the system does that." if status == -signal.SIGKILL else ""
        said = f" Its last line is: {last[0]}" if last else ""
        return f"The job {how}.{hint} What it wrote is in {self.log}.{said}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop_with_parent() -> Callable[[], None] | None:
    """What makes Linux send a process SIGTERM when the one that started it is gone, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # found before the fork: afterwards nothing may be imported
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    return lambda: library.prctl(set_parent_death_signal, signal.SIGTERM)
