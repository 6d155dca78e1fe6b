"""`metrics.csv` of a run: one row per optimizer step that logged something, always whole, continued on resume.

What is measured with a clock stands apart, in `throughput.csv`: `metrics.csv` of a resumed run is the uninterrupted
one's to the last byte.
"""

import csv
import threading
from collections.abc import Callable
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from llama_adapter.files import whole_file

TIMED = "throughput/"  # what the names of such metrics begin with


Rows = dict[int, dict[str, object]]  # by step


class RunCsvLogger(Logger):
    """Lightning's CSVLogger deletes the file of the run it continues; this one keeps the rows up to the resumed step.

    Args:
        folder: of the run; the files are `metrics.csv` and `throughput.csv`, with the columns `step` (optimizer steps
            done) and one per metric.
        flush_every_n_rows: rows between two writes of the file; every checkpoint writes it too.
    """

    def __init__(self, folder: str, *, flush_every_n_rows: int = 50) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.timed_path = Path(folder) / "throughput.csv"
        self.flush_every_n_rows = flush_every_n_rows
        self.rows: Rows = {}
        self.timed_rows: Rows = {}
        self._unwritten = 0
        self._writing = threading.Lock()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> "RunCsvLogger":
        return self

    def keep_until(self, step: int) -> None:
        """Continues the files of an interrupted run: rows after the resumed step will be written again."""
        self.rows, self.timed_rows = _read(self.path, step), _read(self.timed_path, step)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        timed = {name: value for name, value in metrics.items() if name.startswith(TIMED)}
        for rows, part in ((self.timed_rows, timed), (self.rows, metrics.keys() - timed.keys())):
            if part:
                rows.setdefault(step or 0, {"step": step or 0}).update({name: metrics[name] for name in part})
        self._unwritten += 1
        if self._unwritten >= self.flush_every_n_rows:
            self.save()

    @rank_zero_only
    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """The run folder's config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        self.save_later()()

    def save_later(self) -> Callable[[], None]:
        """What `save` would write now, to be written by a call, in another thread too."""
        files = [(self.path, _copy(self.rows)), (self.timed_path, _copy(self.timed_rows))]
        self._unwritten = 0

        def write() -> None:
            with self._writing:
                for path, rows in files:
                    if rows or path == self.path:
                        _write(path, rows)

        return write

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path, last_step: int) -> Rows:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
    return {int(row["step"]): row for row in rows if int(row["step"]) <= last_step}


def _copy(rows: Rows) -> Rows:
    return {step: dict(row) for step, row in rows.items()}


def _write(path: Path, rows: Rows) -> None:
    columns = ["step", *sorted({key for row in rows.values() for key in row} - {"step"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
