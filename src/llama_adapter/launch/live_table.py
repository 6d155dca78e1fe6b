"""The jobs of a sweep while they run: a table that is drawn anew on a terminal, and plain lines in a log."""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"
COLOURS = {WAITING: "dim", RUNNING: "cyan", FINISHED: "green", FAILED: "red", STOPPED: "yellow"}
DRAWN_SECONDS = 0.5  # between two drawings on a terminal


@dataclass(eq=False)
class JobView:
    """What is shown of a job.

    Attributes:
        settings: what tells it from the others.
        folder: of the job; its `progress.json` is read while it runs.
        state: one of those above.
        value: of the objective, at the end.
        started, ended: seconds of the monotonic clock; 0 for not yet.
    """

    settings: str
    folder: Path
    state: str = WAITING
    value: float | None = None
    started: float = 0.0
    ended: float = 0.0

    def progress(self) -> dict[str, float]:
        try:
            return json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # not begun

    def elapsed(self) -> str:
        if not self.started:
            return ""
        minutes, seconds = divmod(int((self.ended or time.monotonic()) - self.started), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class LiveTable(AbstractContextManager):
    """Shows jobs until it is left; `update` is to be called several times a second.

    Args:
        jobs: are looked at on every update.
        objective: the metric that jobs are compared by.
        direction: `minimize` or `maximize`.
        log_seconds: between two lines per running job, where there is no terminal.
    """

    def __init__(
        self, jobs: Sequence[JobView], *, objective: str, direction: str = "minimize", log_seconds: float = 60.0
    ) -> None:
        self.jobs = list(jobs)
        self.objective = objective
        self.direction = direction
        self.log_seconds = log_seconds
        self._live: Live | None = None
        self._undo: list[Callable[[], object]] = []
        self._states = [job.state for job in self.jobs]
        self._shown = 0.0 if sys.stdout.isatty() else time.monotonic()

    def __enter__(self) -> "LiveTable":
        if sys.stdout.isatty():
            terminal = sys.stdout
            console = Console(file=terminal, soft_wrap=True)  # long lines of the log stay whole
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
            handlers = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is terminal]
            for handler in handlers:
                handler.setStream(sys.stdout)  # Rich's now, which writes above the table
                self._undo.append(partial(handler.setStream, terminal))
            self.update(at_once=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.update(at_once=True)
        if self._live is not None:
            self._live.stop()
        for undo in self._undo:
            undo()

    def update(self, *, at_once: bool = False) -> None:
        """Shows what has changed."""
        now = time.monotonic()
        if self._live is not None:
            if at_once or now - self._shown >= DRAWN_SECONDS:
                self._live.update(self.table(), refresh=True)
                self._shown = now
            return
        due = now - self._shown >= self.log_seconds
        for number, job in enumerate(self.jobs):
            if job.state not in (self._states[number], RUNNING):
                log.info("%s %s", self.line(job), self.summary())
            elif job.state != self._states[number] or (due and job.state == RUNNING):
                log.info("%s", self.line(job))
            self._states[number] = job.state
        if due:
            self._shown = now

    def table(self) -> Group:
        """A row per job, and the best one under them."""
        table = Table("job", box=SIMPLE_HEAD)
        table.add_column("state", no_wrap=True)
        for name in ("step", "train/loss", self.objective, "elapsed"):
            table.add_column(name, justify="right", no_wrap=True)
        best = self.best()
        for job in self.jobs:
            state = f"[{COLOURS[job.state]}]{job.state}[/]"
            value = self._value(job)
            table.add_row(
                escape(job.settings),
                state,
                _steps(job.progress()),
                _number(job.progress().get("train/loss")),
                f"[bold]{value}[/]" if job is best else value,
                job.elapsed(),
            )
        return Group(table, Text(self.summary()))

    def line(self, job: JobView) -> str:
        """The same of one job, in words."""
        progress = job.progress() if job.state != WAITING else {}
        loss = _number(progress.get("train/loss"))
        cells = {
            "": job.state,
            "step": _steps(progress),
            "train/loss": loss,
            self.objective: self._value(job),
            "after": job.elapsed(),
        }
        said = ", ".join(f"{name} {cell}".strip() for name, cell in cells.items() if cell)
        return f"{job.settings}: {said}."

    def summary(self) -> str:
        """How many jobs are in which state, and the best of those that have finished."""
        counts = Counter(job.state for job in self.jobs)
        text = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
        best = self.best()
        return f"{text}. Best {self.objective}: {_number(best.value)} ({best.settings})." if best else f"{text}."

    def best(self) -> JobView | None:
        """The job with the best value of the objective, of those that have finished."""
        finished = [job for job in self.jobs if job.value is not None]
        choose = max if self.direction == "maximize" else min
        return choose(finished, key=lambda job: job.value, default=None)

    def _value(self, job: JobView) -> str:
        return _number(job.progress().get(self.objective) if job.value is None else job.value)


def _steps(progress: Mapping[str, float]) -> str:
    return f"{progress['step']:,}/{progress['steps']:,}" if progress else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
