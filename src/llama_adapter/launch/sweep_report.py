"""What is said of a sweep after each of its jobs: `sweep.csv`, a table and a picture in its folder."""

import fcntl
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from llama_adapter.files import whole_file, write_json
from llama_adapter.launch import entry
from llama_adapter.launch.nodes import node
from llama_adapter.launch.schema import SweepConfig
from llama_adapter.launch.sweep_jobs import (
    FAILURE,
    SweepJob,
    asked_jobs,
    begin_again,
    read_jobs,
    swept_folder,
    swept_keys,
    write_jobs,
)

log = logging.getLogger(__name__)

# Launchers and sweepers that are not installed with us, by the beginning of their `_target_`.
EXTRAS = {
    "hydra_plugins.hydra_submitit_launcher": "slurm",
    "hydra_plugins.hydra_optuna_sweeper": "sweep",
}


class SweepReport(Callback):
    """Writes `sweep.csv`, a table and a picture after every job of a sweep; the last one prints the table.

    A single run has none of them. A launcher that starts the jobs elsewhere takes a copy of this object along: there
    the files are written too, but nothing is said.

    Args:
        table: makes a text of all jobs in the sweep's folder; None for `sweep.csv` alone.
        file: name of the table's file.
        chart: draws all jobs in the sweep's folder into a file, and tells whether there was something to draw; or None.
        picture: name of its file.
    """

    def __init__(
        self,
        table: Callable[[Sequence[SweepJob]], str] | None = None,
        file: str = "table.md",
        *,
        chart: Callable[[Sequence[SweepJob], Path], bool] | None = None,
        picture: str = "chart.png",
    ) -> None:
        self.table = table
        self.file = file
        self.chart = chart
        self.picture = picture
        self.errors: dict[Path, str] = {}
        self.options: SweepConfig | None = None  # None outside a sweep
        self.asked: int | None = None  # jobs; None where a sampler chooses them
        self.ended = 0
        self.says = True

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"says": False}

    # --- from Hydra ---------------------------------------------------------------------------------------------------

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        try:
            self._start(config)
        except (ValueError, OSError) as error:
            raise entry.Ended(error) from error

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        if self.options is not None:
            (Path(config.hydra.runtime.output_dir) / FAILURE).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        if self.options is None:
            return
        folder, sweep = Path(config.hydra.runtime.output_dir), _folder(config)
        self.ended += 1
        self.errors.pop(folder, None)
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None  # the property raises it
        if error is not None:
            self.errors[folder] = entry.sentence(error)
            log.error("%s failed: %s", folder.name, self.errors[folder])
            if not (folder / "metrics.json").is_file():  # else it is another job's, see `finished_metrics`
                write_json(folder / FAILURE, {"error": self.errors[folder]})
        with _one_at_a_time(sweep):
            text, written = self._write(sweep)
        if self.says and self.ended == self.asked:
            self._say(text, written, sweep)
        if self.says and error is not None and self.options.fail_fast:
            raise entry.Ended(error)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        if self.options is not None and (self.asked is None or self.ended < self.asked):
            sweep = _folder(config)
            self._say(*self._write(sweep), sweep)

    # --- ours ---------------------------------------------------------------------------------------------------------

    def _start(self, config: DictConfig) -> None:
        self.options = node(config, "sweep")
        for name in ("launcher", "sweeper"):
            check_installed(name, config.hydra[name])
        resolver = partial(swept_folder, swept=swept_keys(config))
        OmegaConf.register_new_resolver("swept_folder", resolver, replace=True)
        asked, sweep = asked_jobs(config), _folder(config)
        self.asked = None if asked is None else len(asked)
        if self.options.redo and (emptied := begin_again(sweep, asked, self.options.redo)):
            log.info("These begin again from nothing: %s.", ", ".join(folder.name for folder in emptied))
        sweep.mkdir(parents=True, exist_ok=True)
        write_jobs(read_jobs(sweep), sweep / "sweep.csv")  # by which its jobs know that they are of a sweep
        jobs = "A sweep" if asked is None else f"{len(asked)} jobs"
        log.info("%s. Stopped, this goes on with it: the same command with hydra.sweep.dir=%s", jobs, sweep)

    def _write(self, sweep: Path) -> tuple[str, list[str]]:
        """All files; the table's text, and the names of what was written."""
        jobs = read_jobs(sweep, self.errors)
        write_jobs(jobs, sweep / "sweep.csv")
        text, written = "", ["sweep.csv"]
        if any(job.metrics for job in jobs):
            if self.table is not None:
                text = self.table(jobs)
                with whole_file(sweep / self.file) as temporary:
                    temporary.write_text(text + "\n", encoding="utf-8")
                written.append(self.file)
            if self.chart is not None and self.chart(jobs, sweep / self.picture):
                written.append(self.picture)
        return text, written

    def _say(self, text: str, written: Sequence[str], sweep: Path) -> None:
        if text:
            log.info("\n%s", text)
        log.info("\nWritten to %s: %s", sweep, ", ".join(written))
        if self.errors:
            log.error("Failed: %s.", ", ".join(folder.name for folder in self.errors))


def check_installed(name: str, config: DictConfig) -> None:
    """Refuses a launcher or a sweeper of a package that is not there.

    Args:
        name: `launcher` or `sweeper`.
        config: its node.

    Raises:
        ValueError: says what to install.
    """
    package = ".".join(config._target_.split(".")[:2])
    if package in EXTRAS and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"hydra/{name} is {config._target_.split('.')[-1]}, whose package is not installed: "
            f"pip install 'llama-adapter[{EXTRAS[package]}]', or use hydra/{name}=basic."
        )


def _folder(config: DictConfig) -> Path:
    return Path(os.path.abspath(config.hydra.sweep.dir))


@contextmanager
def _one_at_a_time(sweep: Path) -> Iterator[None]:
    """Jobs of a cluster may end at the same moment, and all write these files."""
    with (sweep / ".report.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
