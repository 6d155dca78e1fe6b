"""What is shown of a sweep's jobs while they run: on a terminal and in a log."""

import io
import json
import logging
import sys

import pytest
from rich.console import Console

from llama_adapter.launch.live_table import FAILED, FINISHED, RUNNING, WAITING, JobView, LiveTable


@pytest.fixture
def jobs(tmp_path) -> list[JobView]:
    """One that has finished, one that runs, one that has failed and one that waits."""
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    (folders[1] / "progress.json").write_text(json.dumps({"step": 1200, "steps": 4050, "train/loss": 1.53125}))
    return [
        JobView("K=5", folders[0], FINISHED, value=0.25, started=1.0, ended=4000.0),
        JobView("K=10", folders[1], RUNNING, started=1.0, ended=62.0),
        JobView("K=[1]", folders[2], FAILED, started=1.0, ended=2.0),
        JobView("K=40", folders[3], WAITING),
    ]


def drawn(table: LiveTable) -> list[str]:
    console = Console(width=100, file=io.StringIO())
    console.print(table.table())
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_a_row_per_job(jobs):
    lines = drawn(LiveTable(jobs, objective="val/loss"))
    cells = [line.split() for line in lines]
    assert cells[0] == ["job", "state", "step", "train/loss", "val/loss", "elapsed"]
    assert cells[2:6] == [
        ["K=5", "finished", "0.25", "1:06:39"],
        ["K=10", "running", "1,200/4,050", "1.531", "0:01:01"],
        ["K=[1]", "failed", "0:00:01"],
        ["K=40", "waiting"],
    ]
    assert lines[-1].strip() == "1 waiting, 1 running, 1 finished, 1 failed. Best val/loss: 0.25 (K=5)."


@pytest.mark.parametrize(("direction", "best"), [("minimize", "K=5"), ("maximize", "K=10")])
def test_the_best(jobs, direction, best):
    jobs[1].value = 0.5
    assert LiveTable(jobs, objective="val/accuracy", direction=direction).best().settings == best


def test_a_log_has_a_line_for_every_change_and_one_a_minute(jobs, caplog, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO)
    with LiveTable(jobs, objective="val/loss", log_seconds=1e9) as table:
        table.update()
        assert caplog.messages == []
        jobs[3].state = RUNNING
        table.update()
        jobs[1].state, jobs[1].value = FINISHED, 0.125
        table.update()
        assert caplog.messages == [
            "K=40: running.",
            "K=10: finished, step 1,200/4,050, train/loss 1.531, val/loss 0.125, after 0:01:01. 1 running, 2 finished, "
            "1 failed. Best val/loss: 0.125 (K=10).",
        ]
        table.log_seconds = 0
        table.update()
    assert caplog.messages[2:] == ["K=40: running."] * 2  # on leaving, too


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_table_is_drawn_anew_under_what_is_logged(jobs, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        with LiveTable(jobs, objective="val/loss"):
            assert handler.stream is sys.stdout is not terminal
            logging.getLogger(__name__).warning("said in between%s", " and on" * 30)
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is sys.stdout is terminal
    written = terminal.getvalue()
    assert "said in between" + " and on" * 30 in written  # though it is wider than the terminal
    assert written.index("waiting") < written.index("said in between") < written.rindex("waiting")


def test_half_a_file_is_no_progress(jobs):
    (jobs[1].folder / "progress.json").write_text('{"step"')
    assert jobs[1].progress() == {}
