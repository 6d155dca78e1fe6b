"""Who of a run's processes has ended or is stuck: each tells every second where it stands and reads of the others."""

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed import Store

# Of a process that cannot be looked at, as on another machine: it has not told anything for so many seconds.
SILENCE_SECONDS = 120.0
# For a process whose fellow has ended to do so with an error of its own, which may be the same one.
GRACE_SECONDS = 10.0
# Code in which a process waits for the others, or for gradients that wait for them.
WAITING = ("/torch/distributed/", "/torch/nn/parallel/", "/torch/autograd/graph.py")


@dataclass(frozen=True)
class Place:
    """Where the training of a process stands.

    Attributes:
        count: of the places so far. All processes pass the same ones: who has the smallest count is behind.
        text: for people.
        code: file and line.
        beat: how often this was told.
        host, process: who tells it.
        left: whether the process has left the training in order.
        failed: its error, "" for none.
    """

    count: int
    text: str
    code: str
    beat: int
    host: str
    process: int
    left: bool
    failed: str


class Watch(threading.Thread):
    """The thread: tells where this process stands, and looks after the others.

    Args:
        store: shared by the processes.
        rank: of this process.
        processes: of the run.
        timeout_seconds: for which a process may stand still.
        end: called when the run cannot go on, with a sentence without its full stop, and whether this process found it
            out; it should not return.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        processes: int,
        timeout_seconds: float,
        end: Callable[[str, bool], None],
        interval: float = 1.0,
    ) -> None:
        super().__init__(daemon=True, name=f"watchdog-{rank}")
        self.store = store
        self.rank = rank
        self.processes = processes
        self.timeout_seconds = timeout_seconds
        self.end = end
        self.interval = interval
        self.count, self.text = 0, "at the start"
        self.still = 0.0  # seconds since it has moved
        self._beat = 0
        self._gone = False  # the store, with the first process
        self._ending = threading.Lock()
        self._watched = threading.get_ident()  # the thread that trains makes this object
        self._over = threading.Event()
        self._descriptors: dict[int, int] = {}  # of processes on this machine; readable when one has ended
        self._last: dict[int, Place] = {}
        self._tell()

    def move(self, text: str) -> None:
        """The training has come to another place."""
        self.count, self.text = self.count + 1, text

    def meet(self) -> None:
        """Learns who the others are; to be called when all of them have made their `Watch`."""
        self._read()
        for rank, place in self._last.items():
            if place.host == socket.gethostname() and hasattr(os, "pidfd_open"):  # Linux
                with suppress(OSError):  # a container of its own
                    self._descriptors[rank] = os.pidfd_open(place.process)

    def leave(self, failed: str = "") -> None:
        """The training is over for this process: it is not looked after any more, and looks after none."""
        self._over.set()
        if self.is_alive():
            self.join(10 * self.interval)
        with suppress(RuntimeError):  # the store may be gone
            self._tell(left=not failed, failed=failed)
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    # --- looking --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        count, missing, clock = -1, 0.0, time.monotonic()
        silent = dict.fromkeys(self._last, 0.0)
        while not self._over.wait(self.interval):
            now = time.monotonic()
            # A machine that was asleep, or a process that was stopped with Ctrl-Z, has not stood still for so long.
            passed, clock = min(now - clock, 10 * self.interval), now
            beats = {rank: place.beat for rank, place in self._last.items()}
            sentence = self._look()
            for rank, place in self._last.items():
                unseen = place.beat == beats[rank] and rank not in self._descriptors and not place.left
                silent[rank] = silent[rank] + passed if unseen else 0.0
                if silent[rank] > SILENCE_SECONDS:
                    sentence = f"Rank {rank} on {place.host} has not been heard of for {SILENCE_SECONDS:.0f} seconds"
            missing = missing + passed if sentence else 0.0
            self.still = 0.0 if self.count != count else self.still + passed
            count = self.count
            if self._decided():
                self.decide("")
            elif missing > GRACE_SECONDS:
                self.decide(sentence)
            elif self.still > self.timeout_seconds:
                self.decide(self.stuck())

    def missing(self, seconds: float) -> str:
        """Which process has ended or failed, as a sentence without its full stop; "" if none has after some seconds."""
        limit = time.monotonic() + seconds
        while not (sentence := self._look()) and time.monotonic() < limit:
            time.sleep(self.interval / 10)
        return sentence

    def stuck(self) -> str:
        """Which process the others wait for, as a sentence without its full stop."""
        places = self._last | {self.rank: self._place()}
        least = min(place.count for place in places.values())
        behind = {rank: place for rank, place in sorted(places.items()) if place.count == least}
        busy = {rank: place for rank, place in behind.items() if not any(part in place.code for part in WAITING)}
        behind = busy or behind
        since = f"for {self.still:.0f} seconds (callbacks.watchdog.timeout_seconds)"
        codes = "; ".join(f"rank {rank}: {place.code}" for rank, place in behind.items())
        if len(behind) == self.processes:
            return f"No process has moved {since}: all are {self.text} ({codes})"
        names = ", ".join(f"rank {rank}" for rank in behind).capitalize()
        text = next(iter(behind.values())).text
        return f"{names} has not moved {since}, and the others wait: it is {text} ({codes})"

    def decide(self, sentence: str) -> None:
        """Ends this process; the others follow. The first one's word counts for all of them.

        Who ends early must not be taken for the reason.
        """
        self._ending.acquire()  # the other thread of this process may come here too, and waits
        verdict = sentence
        if self._store_is_there():
            with suppress(RuntimeError):
                verdict = self.store.compare_set("verdict", "", sentence).decode()
        self.end(verdict or "Another process has ended", verdict == sentence)

    def _decided(self) -> bool:
        if self._store_is_there():
            with suppress(RuntimeError):
                return self.store.check(["verdict"])
        return False

    def _look(self) -> str:
        if self._store_is_there():
            try:
                self._tell()
                self._read()
            except RuntimeError:
                self._gone = True
        for rank, place in self._last.items():
            if place.failed:
                return f"Rank {rank} has failed {place.text}: {place.failed.rstrip('.')}"
            if not place.left and self._has_ended(rank):
                return (
                    f"Rank {rank} has ended while rank {self.rank} is {self.text}: where process {place.process} on "
                    f"{place.host} says nothing else above, it was killed, most often for want of memory"
                )
        return "Rank 0 has ended" if self._gone and 0 not in self._descriptors else ""

    def _store_is_there(self) -> bool:
        return not self._gone and not self._has_ended(0)

    def _has_ended(self, rank: int) -> bool:
        return rank in self._descriptors and bool(select.select([self._descriptors[rank]], [], [], 0)[0])

    def _tell(self, *, left: bool = False, failed: str = "") -> None:
        self._beat += 1
        self.store.set(f"place/{self.rank}", json.dumps(vars(self._place(left=left, failed=failed))))

    def _place(self, *, left: bool = False, failed: str = "") -> Place:
        frame = sys._current_frames().get(self._watched)
        code = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""
        failed = " ".join(failed.split())
        return Place(self.count, self.text, code, self._beat, socket.gethostname(), os.getpid(), left, failed)

    def _read(self) -> None:
        for rank in range(self.processes):
            if rank != self.rank:
                self._last[rank] = Place(**json.loads(self.store.get(f"place/{rank}")))
