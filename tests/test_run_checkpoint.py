"""Resuming to the same bytes from wherever a run ended, and what is on the disk when something goes wrong."""

import errno
import itertools
import os
import random
import signal
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from llama_adapter.attach import attach
from llama_adapter.batches import BatchConfig
from llama_adapter.checkpoint_files import newest_checkpoint, step_checkpoints
from llama_adapter.csv_logger import RunCsvLogger
from llama_adapter.run_checkpoint import SIGNALS, RunCheckpoint, RunInterrupted, StoppedAtOnce, logger_run_ids
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.tiny_training import FailAt, Run, assert_same_adapter, fit

STEPS = 9  # of an uninterrupted run: three epochs of three global batches


def checkpointing(folder: Path, every: int = 2, keep_last: int = 50, asynchronous: bool = True) -> RunCheckpoint:
    options = {"every_n_train_steps": every, "keep_last": keep_last, "asynchronous": asynchronous}
    return RunCheckpoint(folder / "checkpoints", **options)


def run(
    folder: Path, *others: Callback, every: int = 2, keep_last: int = 50, asynchronous: bool = True, **options
) -> Run:
    options = {"catch": (InterruptedError, RunInterrupted)} | options
    return fit(folder, callbacks=(checkpointing(folder, every, keep_last, asynchronous), *others), **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_same_run(folder: Path, resumed: Run, whole_folder: Path, whole: Run) -> None:
    """Adapter, rows and summary: to the same bytes."""
    assert_same_adapter(resumed.adapter, whole.adapter)
    assert (folder / "metrics.csv").read_bytes() == (whole_folder / "metrics.csv").read_bytes()
    assert resumed.module.summary == whole.module.summary
    assert resumed.module.validated_step == whole.module.validated_step


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Runs that nothing interrupts, by `max_steps`; the checkpoints they write change nothing."""
    runs: dict[int, tuple[Path, Run]] = {}

    def whole(max_steps: int = -1) -> tuple[Path, Run]:
        if max_steps not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[max_steps] = folder, run(folder, max_steps=max_steps)
        return runs[max_steps]

    return whole


# --- resuming -----------------------------------------------------------------------------------------------------

# max_steps, the step after which the run crashes, steps between checkpoints. Quick: the first step, inside an epoch, an
# epoch's last step (its checkpoint comes after the validation, so it is done again), max_steps at and inside an epoch.
QUICK = [(-1, 1, 50), (-1, 4, 2), (-1, 5, 1), (-1, 6, 2), (-1, 9, 50), (6, 4, 1), (7, 6, 50), (8, 7, 1)]
GRID = [case for case in itertools.product((-1, 6, 7, 8), range(1, STEPS + 1), (1, 2, 50)) if case not in QUICK]


@pytest.mark.parametrize(
    ("max_steps", "crash", "every"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in GRID)]
)
def test_resumes_to_the_same_bytes(tmp_path, whole_runs, max_steps, crash, every):
    whole_folder, whole = whole_runs(max_steps)
    crashed = run(tmp_path, FailAt(crash), every=every, max_steps=max_steps)
    # A crash after `max_steps` never comes; one before the first checkpoint leaves none.
    assert (crashed.error is not None) == (max_steps < 0 or crash <= max_steps)
    if not step_checkpoints(tmp_path / "checkpoints"):
        with pytest.raises(FileNotFoundError):
            newest_checkpoint(tmp_path / "checkpoints")
        return
    resumed = run(tmp_path, every=every, max_steps=max_steps, resume=True)
    assert_same_run(tmp_path, resumed, whole_folder, whole)


def test_a_crash_inside_a_step_and_twice(tmp_path, whole_runs):
    class FailInside(Callback):
        def on_before_backward(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 4 and trainer.fit_loop.epoch_loop.batch_progress.current.ready % 4 == 3:
                raise InterruptedError

    crashed = run(tmp_path, FailInside())
    assert crashed.error and crashed.trainer.global_step == 4
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 4
    assert run(tmp_path, FailAt(8), resume=True).error
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 6
    assert_same_run(tmp_path, run(tmp_path, resume=True), *whole_runs())


def test_a_crash_in_the_validation(tmp_path, whole_runs):
    class FailInValidation(Callback):
        def on_validation_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.current_epoch == 1:
                raise InterruptedError

    assert run(tmp_path, FailInValidation()).error
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 4, "not of step 6, whose validation is not done"
    assert_same_run(tmp_path, run(tmp_path, resume=True), *whole_runs())


@pytest.mark.slow
def test_resumes_with_worker_processes(tmp_path, whole_runs):
    data = {"batches": BatchConfig(global_batch_size=8, micro_batch_size=2, num_workers=2)}
    run(tmp_path, FailAt(5), **data)
    assert_same_run(tmp_path, run(tmp_path, resume=True, **data), *whole_runs())


def test_resumes_with_flat_batches(tmp_path):
    data = {"batches": BatchConfig(global_batch_size=8, micro_batch_size=2, batching="flat")}
    whole = run(tmp_path / "whole", **data)
    run(tmp_path / "killed", FailAt(5), **data)
    assert_same_run(tmp_path / "killed", run(tmp_path / "killed", resume=True, **data), tmp_path / "whole", whole)


@pytest.mark.parametrize("crash", [5, 6])
@pytest.mark.parametrize("micro", [1, 4])
def test_resumes_with_other_micro_batches(tmp_path, whole_runs, crash, micro):
    """After running out of memory, or on other devices: the same global batches, so the same run but for rounding."""
    _, whole = whole_runs()
    run(tmp_path, FailAt(crash), every=1)
    resumed = run(tmp_path, resume=True, batches=BatchConfig(global_batch_size=8, micro_batch_size=micro))
    assert resumed.column("train/response_tokens") == whole.column("train/response_tokens")
    assert resumed.column("train/loss") == pytest.approx(whole.column("train/loss"), abs=1e-5)
    assert resumed.column("val/loss") == pytest.approx(whole.column("val/loss"), abs=1e-5)


def test_a_finished_run_is_not_trained_further(tmp_path, whole_runs):
    first = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again.trainer.global_step == first.trainer.global_step == STEPS
    assert_same_adapter(again.adapter, whole_runs()[1].adapter)


# --- which checkpoints are there ------------------------------------------------------------------------------------


def test_the_first_after_step_one_then_every_so_many_and_at_epoch_ends(tmp_path):
    run(tmp_path, every=4)
    steps = [newest.stem for newest in step_checkpoints(tmp_path / "checkpoints")]
    assert steps == [f"step_{step:06d}" for step in (1, 3, 4, 6, 8, 9)]
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_keeps_the_last_and_the_best(tmp_path):
    run(tmp_path, every=1, keep_last=2)
    assert names(tmp_path) == ["best.ckpt", "step_000008.ckpt", "step_000009.ckpt"]


class SetLosses(Callback):
    """Lets each validation find the next of some losses."""

    def __init__(self, *losses: float) -> None:
        self.losses = iter(losses)

    def on_fit_start(self, trainer: Trainer, module) -> None:
        module.validation_loss.compute = lambda: torch.tensor(next(self.losses))


def step_of_best(folder: Path) -> int:
    return torch.load(folder / "checkpoints/best.ckpt", weights_only=False)["global_step"]


def test_best_is_the_epoch_of_the_smallest_validation_loss(tmp_path):
    run(tmp_path, SetLosses(3.0, 2.0, 2.5, 2.0, float("nan")), max_epochs=5)
    assert step_of_best(tmp_path) == 6  # the second epoch; the first of two equal ones


def test_best_is_remembered_when_a_run_is_resumed(tmp_path):
    run(tmp_path, SetLosses(3.0, 1.0), FailAt(8))
    run(tmp_path, SetLosses(2.0), resume=True)
    assert step_of_best(tmp_path) == 6


def test_a_crash_between_the_two_files_of_an_epoch_loses_neither(tmp_path, monkeypatch):
    """Else the resumed run knows the best value, but the file of it was never written."""
    replace = os.replace

    def fail_second(source, target):
        if Path(target).name in ("best.ckpt", "step_000003.ckpt"):
            calls.append(target)
            if len(calls) == 2:
                raise InterruptedError("crashed")
        replace(source, target)

    calls: list = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_second)
        run(tmp_path, every=50, catch=(OSError,))
    assert len(calls) == 2
    run(tmp_path, FailAt(4), every=50, resume=True)  # before another epoch can be the best
    assert step_of_best(tmp_path) == 3


def test_a_checkpoint_is_small(tmp_path):
    """Adapter and two moments of AdamW, not the model."""
    whole = run(tmp_path, max_epochs=1)
    checkpoint = torch.load(tmp_path / "checkpoints/step_000003.ckpt", weights_only=False)
    assert checkpoint["state_dict"].keys() == {f"model.{name}" for name in whole.adapter}
    numbers = sum(p.numel() for p in whole.adapter.values())
    tensors = 4 * 3 * numbers
    assert tensors < os.path.getsize(tmp_path / "checkpoints/step_000003.ckpt") < tensors + 40_000  # of pickle and zip


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"^callbacks\.checkpoint\.every_n_train_steps must be at least 1, got 0\.$"):
        RunCheckpoint(tmp_path, every_n_train_steps=0)
    with pytest.raises(ValueError, match=r"^callbacks\.checkpoint\.keep_last must be at least 1, got -1\.$"):
        RunCheckpoint(tmp_path, keep_last=-1)


# --- a disk that is full --------------------------------------------------------------------------------------------


def fill_disk(monkeypatch) -> None:
    """From now on no checkpoint gets its name."""
    replace = os.replace

    def no_space(source, target) -> None:
        if str(target).endswith(".ckpt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_space)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own for the checkpoints, with room for about four of them."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=112k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_disk_that_is_really_full(tmp_path, small_disk, whole_runs, asynchronous):
    crashed = run(tmp_path, every=1, asynchronous=asynchronous, catch=OSError)
    step = newest_checkpoint(small_disk)[1]
    assert step in (3, 4, 5)
    path = small_disk / f"step_{step + 1:06d}.ckpt"
    assert str(crashed.error) == (
        f"Cannot write the checkpoint {path}: [Errno 28] No space left on device. Is the disk full?"
    )
    assert step + 1 <= crashed.trainer.global_step <= step + 2, "it ends at the next step"
    assert names(tmp_path) == ["best.ckpt", *(f"step_{number:06d}.ckpt" for number in range(1, step + 1))]
    for old in step_checkpoints(small_disk)[:-1]:
        old.unlink()  # somebody makes room
    assert_same_run(tmp_path, run(tmp_path, every=50, keep_last=1, resume=True), *whole_runs())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_at_the_last_moment(tmp_path, monkeypatch, asynchronous):
    class FillDisk(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 3:
                trainer.strategy.checkpoint_io.wait()  # for the one of the epoch that has just ended
                fill_disk(monkeypatch)

    crashed = run(tmp_path, FillDisk(), every=2, asynchronous=asynchronous, catch=OSError)
    path = tmp_path / "checkpoints/step_000004.ckpt"
    assert str(crashed.error) == (
        f"Cannot write the checkpoint {path}: [Errno 28] No space left on device. Is the disk full?"
    )
    assert names(tmp_path) == ["best.ckpt", "step_000001.ckpt", "step_000002.ckpt", "step_000003.ckpt"]
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 3


def test_a_full_disk_shows_after_the_first_step(tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    crashed = run(tmp_path, every=1000, catch=OSError)
    assert crashed.trainer.global_step == 1 and "step_000001.ckpt" in str(crashed.error)
    assert names(tmp_path) == []


def test_an_error_of_the_last_file_is_not_lost(tmp_path, monkeypatch):
    class FillDisk(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
            if trainer.current_epoch == 2:
                fill_disk(monkeypatch)

    crashed = run(tmp_path, FillDisk(), every=50, catch=OSError)
    assert "best.ckpt" in str(crashed.error) or "step_000009.ckpt" in str(crashed.error)


def test_an_error_of_the_file_is_told_when_something_else_ends_the_run(tmp_path, monkeypatch, caplog):
    class FailAfterSaving(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 2:
                fill_disk(monkeypatch)

        def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
            trainer.callbacks[-1].save(trainer)
            raise InterruptedError("crashed")

    crashed = run(tmp_path, FailAfterSaving(), every=50, catch=InterruptedError)
    assert str(crashed.error) == "crashed"
    assert caplog.messages[-1].startswith(f"Cannot write the checkpoint {tmp_path}/checkpoints/step_000003.ckpt: ")


# --- while the training goes on -------------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch, whole_runs):
    """The file holds the step it is named after, not the steps that were done before it was written."""
    release, fsync, seen = threading.Event(), os.fsync, []

    def slow(descriptor: int) -> None:
        if threading.current_thread().name == "checkpoint-writer":
            assert release.wait(60)
        fsync(descriptor)

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 3:
                trainer.strategy.checkpoint_io.wait()  # for the one of the epoch that has just ended
                monkeypatch.setattr(os, "fsync", slow)

        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 5 and not trainer.fit_loop._should_accumulate():
                seen.extend(names(tmp_path))
                release.set()

    run(tmp_path, Watch(), FailAt(5), every=4)
    assert seen == ["best.ckpt", "step_000001.ckpt", "step_000003.ckpt"], "a step later"
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 4
    assert_same_run(tmp_path, run(tmp_path, every=50, resume=True), *whole_runs())


def test_the_older_one_stays_until_the_newer_one_is_whole(tmp_path, monkeypatch):
    before, replace = [], os.replace

    def watched(source, target) -> None:
        if str(target).endswith(".ckpt"):
            before.append([path.stem for path in step_checkpoints(tmp_path / "checkpoints")])
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    run(tmp_path, every=1, keep_last=1, max_epochs=1)
    # best.ckpt is written in front of the third one
    assert before == [[], ["step_000001"], ["step_000002"], ["step_000002"]]
    assert names(tmp_path) == ["best.ckpt", "step_000003.ckpt"]


# --- random numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crash", [4, 6])  # within an epoch and at its end
def test_a_run_with_dropout_resumes_to_the_same_bytes(tmp_path, crash):
    def dropping(folder: Path, *others: Callback, **options) -> Run:
        torch.manual_seed(0)
        model = attach(tiny_model(attention_dropout=0.3), AdapterConfig(prompt_length=3, prompt_layers=2))
        torch.manual_seed(1 + options.get("resume", False))  # a resumed run starts from other random numbers
        batches = BatchConfig(global_batch_size=8, micro_batch_size=2, batching="padded")  # a flat row has no dropout
        return run(folder, *others, model=model, batches=batches, dropout=True, every=1, **options)

    whole = dropping(tmp_path / "whole")
    without = run(tmp_path / "without", max_epochs=1)
    assert whole.column("train/loss")[0] != without.column("train/loss")[0], "dropout is on"
    dropping(tmp_path / "killed", FailAt(crash))
    resumed = dropping(tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "killed", resumed, tmp_path / "whole", whole)


class Draw(Callback):
    """Takes a number from every generator at every step."""

    def __init__(self) -> None:
        self.numbers: list[tuple] = []

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        numbers = random.random(), numpy.random.rand(), torch.rand(()).item()
        self.numbers.append((trainer.global_step, *numbers))


def test_every_generator_goes_on_where_it_was(tmp_path):
    whole, first, second = Draw(), Draw(), Draw()
    seed_everything(0, verbose=False)
    run(tmp_path / "whole", whole)
    seed_everything(0, verbose=False)
    run(tmp_path / "killed", first, FailAt(5))
    seed_everything(5, verbose=False)
    run(tmp_path / "killed", second, resume=True)
    assert [row for row in first.numbers if row[0] < 4] + second.numbers == whole.numbers


def test_a_file_of_an_earlier_version_without_random_states(tmp_path, whole_runs):
    run(tmp_path, FailAt(5))
    path = newest_checkpoint(tmp_path / "checkpoints")[0]
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["random_states"], checkpoint["callbacks"]["RunCheckpoint"]["run_ids"]
    torch.save(checkpoint, path)
    assert logger_run_ids(path) == {}
    assert_same_run(tmp_path, run(tmp_path, resume=True), *whole_runs())


# --- loggers --------------------------------------------------------------------------------------------------------


class NamedLogger(RunCsvLogger):
    """Knows its run under an id, as W&B does."""

    run_id = "abc123"


class AddLogger(Callback):
    def setup(self, trainer: Trainer, module, stage: str) -> None:
        trainer.loggers = [*trainer.loggers, NamedLogger(trainer.default_root_dir + "/named")]


def test_a_checkpoint_knows_the_ids_of_the_runs_loggers(tmp_path):
    run(tmp_path, AddLogger(), max_epochs=1)
    for path in (tmp_path / "checkpoints").iterdir():
        assert logger_run_ids(path) == {"NamedLogger": "abc123"}
    run(tmp_path / "plain", max_epochs=1)
    assert logger_run_ids(tmp_path / "plain/checkpoints/best.ckpt") == {}


# --- destroyed files ------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": torch.arange(1000.0)}, path)


def flip(path: Path, position: int, bits: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


def test_newest(tmp_path):
    for step in (2, 10, 999_999, 1_000_000):
        write_checkpoint(tmp_path / f"step_{step:06d}.ckpt")
    assert newest_checkpoint(tmp_path) == (tmp_path / "step_1000000.ckpt", 1_000_000)
    assert [path.stem for path in step_checkpoints(tmp_path)] == [
        "step_000002", "step_000010", "step_999999", "step_1000000"
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "zeros", "text"])
def test_a_destroyed_newest_one_is_passed_over(tmp_path, caplog, damage):
    for step in (2, 4):
        write_checkpoint(tmp_path / f"step_{step:06d}.ckpt")
    path = tmp_path / "step_000004.ckpt"
    content = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[:-100])
        case "bit":
            flip(path, content.index(torch.arange(1000.0).numpy().tobytes()) + 2000, bits=1)
        case "zeros":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes(500) + content[middle + 500 :])
        case "text":
            path.write_text("not a checkpoint")
    assert newest_checkpoint(tmp_path) == (tmp_path / "step_000002.ckpt", 2)
    assert caplog.messages == [f"The checkpoint {path} is destroyed; trying the one before it."]


def test_no_flipped_byte_of_the_directory_is_an_error_of_another_kind(tmp_path):
    """The zip module has many errors (an unknown compression, a password); none of them must reach the user."""
    write_checkpoint(tmp_path / "step_000002.ckpt")
    path = tmp_path / "step_000004.ckpt"
    write_checkpoint(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    steps = set()
    for position in range(start, len(content), 3):
        path.write_bytes(content)
        flip(path, position)
        steps.add(newest_checkpoint(tmp_path)[1])
    assert steps == {2, 4}  # 4: a byte that the contents do not depend on, such as a date


def test_all_destroyed(tmp_path):
    for step in (2, 4):
        (tmp_path / f"step_{step:06d}.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError) as caught:
        newest_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"All checkpoints in {tmp_path} are destroyed (step_000004.ckpt is the newest). Start the run again."
    )


def test_none(tmp_path):
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "step_000002.ckpt.part").touch()
    with pytest.raises(FileNotFoundError) as caught:
        newest_checkpoint(tmp_path)
    assert str(caught.value) == f"No checkpoint step_*.ckpt in {tmp_path}. Start the run again in a new folder."


# --- signals --------------------------------------------------------------------------------------------------------


class SendSignal(Callback):
    """Sends this process a signal while the micro-batch of a step is computed."""

    def __init__(self, number: int, *, step: int, times: int = 1) -> None:
        self.number = number
        self.step = step
        self.times = times

    def on_before_backward(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step - 1 and self.times:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
            self.times = 0


@pytest.fixture(autouse=True)
def own_handlers():
    """The handlers of a shell's python; checked and put back after every test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before, "a run must leave the handlers as they were"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("step", [5, 6])  # within an epoch; at its end, where the checkpoint follows the validation
def test_a_signal_stops_after_the_step(tmp_path, whole_runs, caplog, number, step):
    stopped = run(tmp_path, SendSignal(number, step=step), every=50)
    assert isinstance(stopped.error, RunInterrupted)
    assert str(stopped.error) == f"Stopped by {number.name} after step {step}."
    assert stopped.error.signal_number == number
    assert f"{number.name}: saving a checkpoint after this step. Once more stops at once." in caplog.messages
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == step
    assert_same_run(tmp_path, run(tmp_path, every=50, resume=True), *whole_runs())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_second_signal_stops_at_once(tmp_path, number, monkeypatch):
    monkeypatch.setattr("llama_adapter.run_checkpoint.REPEATED_SECONDS", 0.0)
    # Lightning makes an exit of the KeyboardInterrupt.
    stopped = run(tmp_path, SendSignal(number, step=5, times=2), every=50, catch=SystemExit)
    assert isinstance(stopped.error.__context__, StoppedAtOnce)
    assert stopped.error.__context__.signal_number == number
    assert str(stopped.error.__context__) == f"Stopped at once by {number.name}."
    assert stopped.trainer.global_step == 4
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 3


@pytest.mark.parametrize("phase", ["validate", "test"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_after_the_training_stops_at_once(tmp_path, phase, number):
    """Nothing is left to save; Lightning alone would wait for a place to stop at, and exit with 0."""

    class SendAfterwards(Callback):
        def send(self, trainer: Trainer, *_: object) -> None:
            if trainer.state.fn == phase:
                os.kill(os.getpid(), number)

        on_validation_batch_start = on_test_batch_start = send

    finished = run(tmp_path, SendAfterwards(), max_epochs=1)
    with pytest.raises(SystemExit) as end:
        getattr(finished.trainer, phase)(finished.module, finished.data, verbose=False)
    assert isinstance(end.value.__context__, StoppedAtOnce)
    assert end.value.__context__.signal_number == number


def test_signals_at_the_same_time_are_one(tmp_path):
    """Ctrl-C under torchrun: from the terminal, and passed on."""
    stopped = run(tmp_path, SendSignal(signal.SIGINT, step=5, times=2), SendSignal(signal.SIGTERM, step=5))
    assert isinstance(stopped.error, RunInterrupted)
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == 5


def test_the_handlers_of_the_caller_come_back_after_a_whole_run(tmp_path):
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        run(tmp_path, max_epochs=1)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stopped_callback_can_be_used_again(tmp_path):
    callback = checkpointing(tmp_path)
    stopped = fit(tmp_path, callbacks=(callback, SendSignal(signal.SIGTERM, step=2)), catch=RunInterrupted)
    assert stopped.error
    assert fit(tmp_path, callbacks=(callback,), resume=True).trainer.global_step == STEPS
