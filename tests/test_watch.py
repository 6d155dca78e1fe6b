"""Who of a run's processes is missing: threads of one process stand for the others, and a child for one that is killed."""

import re
import subprocess
import sys
import threading
import time

import pytest
import torch

from llama_adapter import watch as watch_module
from llama_adapter.watch import Watch
from llama_adapter.watchdog import Watchdog


class Process:
    """One of the processes of a run, as a thread: `end` notes what it says."""

    def __init__(self, store, rank: int, processes: int = 2, timeout_seconds: float = 60.0) -> None:
        self.said: list[tuple[str, bool]] = []
        self.ended = threading.Event()
        self.watch = Watch(
            store, rank=rank, processes=processes, timeout_seconds=timeout_seconds, end=self.end, interval=0.02
        )

    def end(self, sentence: str, found_out: bool) -> None:
        self.said.append((sentence, found_out))
        self.ended.set()
        self.watch._over.set()

    def start(self) -> None:
        self.watch.meet()
        self.watch.start()


@pytest.fixture
def store():
    return torch.distributed.HashStore()


@pytest.fixture
def two(store):
    made = []

    def make(**options) -> list[Process]:
        made.extend(Process(store, rank, **options) for rank in range(2))
        for process in made:
            process.start()
        return made

    yield make
    for process in made:
        process.watch._over.set()
        process.watch.join()


def test_who_moves_is_left_alone(two):
    one, other = two(timeout_seconds=0.3)
    for step in range(10):
        one.watch.move(f"in step {step}")
        other.watch.move(f"in step {step}")
        time.sleep(0.06)
    one.watch.leave()
    other.watch.leave()
    assert one.said == other.said == []


def test_who_is_behind_is_named(two):
    one, other = two(timeout_seconds=0.3)
    for process in (one, other):
        process.watch.move("in the forward pass of step 8")
    one.watch.move("in the backward pass of step 8")
    assert one.ended.wait(10) and other.ended.wait(10)
    sentence, _ = one.said[0]
    assert re.fullmatch(
        r"Rank 1 has not moved for \d+ seconds \(callbacks\.watchdog\.timeout_seconds\), and the others wait: it is "
        r"in the forward pass of step 8 \(rank 1: .+:\d+ in \w+\)",
        sentence,
    )
    assert other.said[0][0] == sentence, "the first one's word counts"
    assert {one.said[0][1], other.said[0][1]} == {True, False}


def test_who_waits_for_the_others_is_not_behind(two, monkeypatch):
    monkeypatch.setattr(watch_module, "WAITING", ("/torch/distributed/",))
    one, other = two(timeout_seconds=0.3)
    place = one.watch._place
    monkeypatch.setattr(
        one.watch,
        "_place",
        lambda **options: watch_module.Place(**(vars(place(**options)) | {"code": "/x/torch/distributed/a.py:1 in f"})),
    )
    assert one.ended.wait(10) and other.ended.wait(10)
    assert one.said[0][0].startswith("Rank 1 has not moved")


def test_all_stand_still(two):
    one, _ = two(timeout_seconds=0.2)
    assert one.ended.wait(10)
    assert re.fullmatch(
        r"No process has moved for \d+ seconds \(callbacks\.watchdog\.timeout_seconds\): all are at the start \(rank "
        r"0: .+; rank 1: .+\)",
        one.said[0][0],
    )


def test_an_error_of_one_is_told_by_the_other(two, monkeypatch):
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.1)
    one, other = two()
    other.watch.move("in the forward pass of step 3")
    other.watch.leave(failed="ValueError: No\n answer.")
    assert one.ended.wait(10)
    assert one.said == [("Rank 1 has failed in the forward pass of step 3: ValueError: No answer", True)]
    assert other.said == []


def test_who_has_left_in_order_is_not_missed(two, monkeypatch):
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.1)
    one, other = two()
    other.watch.leave()
    time.sleep(0.3)
    assert one.said == []
    assert one.watch.missing(seconds=0.1) == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes as Linux shows them")
def test_a_process_that_is_killed(store, monkeypatch):
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        monkeypatch.setattr("os.getpid", lambda: child.pid)
        other = Process(store, 1)
        monkeypatch.undo()
        monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.1)
        one = Process(store, 0)
        one.start()
        one.watch.move("in the backward pass of step 8")
        time.sleep(0.2)
        assert one.said == [], "it is there"
        child.kill()  # nobody has waited for it: a zombie has ended too
        assert one.ended.wait(10)
    finally:
        child.kill()
        child.wait()
    assert re.fullmatch(
        rf"Rank 1 has ended while rank 0 is in the backward pass of step 8: where process {child.pid} on .+ says "
        r"nothing else above, it was killed, most often for want of memory",
        one.said[0][0],
    )
    assert other.said == []


def test_another_machine_that_is_silent(store, monkeypatch):
    for name, seconds in (("GRACE_SECONDS", 0.1), ("SILENCE_SECONDS", 0.2)):
        monkeypatch.setattr(watch_module, name, seconds)
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "node-2")
        Process(store, 1)
    one = Process(store, 0)
    one.start()
    assert one.ended.wait(10)
    assert one.said == [("Rank 1 on node-2 has not been heard of for 0 seconds", True)]


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"^callbacks\.watchdog\.timeout_seconds must be above 0, got 0\.$"):
        Watchdog(tmp_path, timeout_seconds=0)
