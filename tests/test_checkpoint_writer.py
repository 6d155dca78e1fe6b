"""Writing in the background: one file at a time, of what was there when it was handed over."""

import os
import threading
import time
from collections import OrderedDict

import pytest
import torch

from llama_adapter.checkpoint_writer import CheckpointWriter, host_copy


def load(path) -> dict:
    return torch.load(path, weights_only=False)


@pytest.fixture
def slow_disk(monkeypatch):
    """Files are not whole before `set` is called."""
    release, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert release.wait(30)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    yield release
    release.set()


def test_a_copy_does_not_change_with_what_it_is_of():
    weight = torch.nn.Parameter(torch.ones(3))
    rows = [1, 2]
    original = OrderedDict(state={"weight": weight}, rows=rows, step=7, name="a")
    copied = host_copy(original)
    with torch.no_grad():
        weight += 1
    rows.append(3)
    assert isinstance(copied, OrderedDict)
    assert copied["state"]["weight"].tolist() == [1.0, 1.0, 1.0]
    assert not copied["state"]["weight"].requires_grad
    assert (copied["rows"], copied["step"], copied["name"]) == ([1, 2], 7, "a")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_written_is_what_was_handed_over(tmp_path, asynchronous):
    whole = []
    writer = CheckpointWriter(asynchronous=asynchronous, written=lambda path: whole.append(path.name))
    order, weight = [], torch.ones(3)
    writer.before.append(lambda: order.append(whole.copy()))
    for step in range(3):
        weight += 1
        writer.save_checkpoint({"weight": weight, "step": step}, tmp_path / f"new/{step}.ckpt")
        writer.wait()
    assert whole == ["0.ckpt", "1.ckpt", "2.ckpt"]
    assert order == [[]], "once, before the first one"
    assert [load(tmp_path / f"new/{step}.ckpt")["weight"].tolist() for step in range(3)] == [[2] * 3, [3] * 3, [4] * 3]
    assert not list(tmp_path.rglob("*.part"))


def test_the_caller_goes_on_and_the_next_file_waits(tmp_path, slow_disk):
    writer = CheckpointWriter()
    weight = torch.ones(3)
    writer.save_checkpoint({"weight": weight}, tmp_path / "1.ckpt")
    weight.zero_()
    assert not (tmp_path / "1.ckpt").exists()
    writer.wait(0.05)
    assert not (tmp_path / "1.ckpt").exists()
    second = threading.Thread(target=writer.save_checkpoint, args=({"step": 2}, tmp_path / "2.ckpt"))
    second.start()
    time.sleep(0.1)
    assert second.is_alive(), "one file at a time"
    slow_disk.set()
    second.join()
    writer.teardown()
    assert load(tmp_path / "1.ckpt")["weight"].tolist() == [1.0, 1.0, 1.0]
    assert load(tmp_path / "2.ckpt") == {"step": 2}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_an_error_is_kept_and_nothing_more_is_written(tmp_path, asynchronous):
    (tmp_path / "file").touch()
    writer = CheckpointWriter(asynchronous=asynchronous)
    path = tmp_path / "file/1.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    writer.wait()
    assert str(writer.error).startswith(f"Cannot write the checkpoint {path}: [Errno ")
    assert str(writer.error).endswith(". Is the disk full?")
    writer.save_checkpoint({"step": 2}, tmp_path / "2.ckpt")
    writer.wait()
    assert not (tmp_path / "2.ckpt").exists()


def test_an_error_of_what_comes_before_is_one_of_the_file(tmp_path):
    def fail() -> None:
        raise OSError("no room for the rows")

    writer = CheckpointWriter()
    writer.before.append(fail)
    writer.save_checkpoint({}, tmp_path / "1.ckpt")
    writer.wait()
    assert (
        str(writer.error) == f"Cannot write the checkpoint {tmp_path}/1.ckpt: no room for the rows. Is the disk full?"
    )
    assert not (tmp_path / "1.ckpt").exists()
