"""Sweeps that go on where they stopped, and what all their jobs measured in one table.

Hydra runs the jobs of a sweep one after the other in this process. A job that fails does not stop the others; the error
ends the sweep after the last of them. The same command with the same hydra.sweep.dir skips the jobs that have finished
and resumes the one that was stopped.
"""

import csv
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from llama_adapter.files import whole_file
from llama_adapter.launch.entry import job_folder, sentence
from llama_adapter.launch.run_folder import changed_key
from llama_adapter.tables import markdown

# Keys that may differ when a sweep goes on: they change nothing of what a job learns and measures.
HARMLESS = ["objective", "callbacks", "logger", "hardware", "data.num_workers"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepJob:
    """One job, as its folder tells.

    Attributes:
        folder: of the job.
        overrides: its command line, values by key.
        settings: those of them that differ between the jobs of the sweep, but for the task; as typed.
        metrics: of `metrics.json`; empty where it has not finished.
        error: the sentence it failed with just now, or "".
    """

    folder: Path
    overrides: dict[str, str]
    settings: str
    metrics: dict[str, float]
    error: str = ""

    @property
    def task(self) -> str:
        return self.overrides.get("task", "")

    @property
    def status(self) -> str:
        return "failed" if self.error else "finished" if self.metrics else "unfinished"


# --- jobs -------------------------------------------------------------------------------------------------------------


def train_job(config: DictConfig, folder: Path, *, typed: list[str]) -> dict[str, float]:
    """Trains; or, for a job of a sweep that was there before, gives what it measured or trains what is left of it.

    Args:
        config: composed.
        folder: of the run.
        typed: the arguments that the user gave.

    Returns:
        The final metrics.

    Raises:
        ValueError: the folder holds a job with other settings.
    """
    from llama_adapter.launch.training import train  # torch, lightning and transformers take seconds to import
    from llama_adapter.run_checkpoint import RunInterrupted, step_checkpoints

    if not in_sweep():
        return train(config, folder, typed=typed)
    if metrics := finished_metrics(config, folder):
        log.info("%s has finished before.", folder)
        return metrics
    if step_checkpoints(folder / "checkpoints"):
        config = config.copy()
        config.resume = str(folder)
    try:
        return train(config, folder, typed=HARMLESS)
    except RunInterrupted as stop:
        log.warning("The sweep stops. The same command with hydra.sweep.dir=%s goes on with it.", folder.parent)
        sys.exit(128 + stop.signal_number)  # Hydra would take an exception for a failed job, and go on with the next


def in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def finished_metrics(config: DictConfig, folder: Path) -> dict[str, float]:
    """What a finished job measured; nothing where it has not finished.

    Raises:
        ValueError: it had other settings.
    """
    stored = folder / "metrics.json"
    if not stored.is_file():
        return {}
    if changed := changed_key(OmegaConf.load(folder / "config.yaml"), config, folder, HARMLESS):
        key, old, new = changed
        raise ValueError(
            f"{folder} holds a finished job with {key}={old}, and this one has {key}={new}. Choose another "
            "hydra.sweep.dir, or remove the folder."
        )
    return json.loads(stored.read_text(encoding="utf-8"))


# --- their report -----------------------------------------------------------------------------------------------------


class SweepReport(Callback):
    """Writes `sweep.csv` after every job of a sweep, and a table; the last job prints it. A single run has neither.

    Args:
        table: makes a text of all jobs in the sweep's folder; None for `sweep.csv` alone.
        file: name of the table's file.
    """

    def __init__(self, table: Callable[[Sequence[SweepJob]], str] | None = None, file: str = "table.md") -> None:
        self.table = table
        self.file = file
        self.errors: dict[Path, str] = {}
        self.left: int | None = None  # jobs; None outside a sweep

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        overrides = sweep_overrides(config)
        swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        self.left = sum(map(len, BasicSweeper.split_arguments(overrides, None)))
        OmegaConf.register_new_resolver("swept_folder", partial(swept_folder, swept=swept), replace=True)
        log.info("%d jobs. If they are stopped, this goes on with them: hydra.sweep.dir=%s", self.left, _folder(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        if self.left is None:
            return
        folder, sweep = Path(config.hydra.runtime.output_dir), _folder(config)
        self.left -= 1
        self.errors.pop(folder, None)
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value  # the property raises it, which the sweeper does after the last job
            self.errors[folder] = sentence(error)
            log.error("%s failed: %s", folder.name, self.errors[folder])
        jobs = read_jobs(sweep, self.errors)
        write_jobs(jobs, sweep / "sweep.csv")
        if self.table is not None and any(job.metrics for job in jobs):
            text = self.table(jobs)
            with whole_file(sweep / self.file) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
            if self.left == 0:
                log.info("\n%s\n\nWritten to %s: %s and sweep.csv", text, sweep, self.file)
        if self.left == 0 and self.errors:
            log.error("Failed: %s.", ", ".join(folder.name for folder in self.errors))


def _folder(config: DictConfig) -> Path:
    return Path(os.path.abspath(config.hydra.sweep.dir))


def sweep_overrides(config: DictConfig) -> list[Override]:
    """The sweep's parameters and the command line, as Hydra's own sweeper reads them."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return list({override.get_key_element(): override for override in overrides}.values())  # the last one counts


def swept_folder(task: str, overrides: Sequence[str], *, swept: set[str]) -> str:
    """The folder of a job, by its task and settings and without its number: a part of a sweep finds the whole again.

    Args:
        task: the option of that group.
        overrides: of the job.
        swept: keys that differ between jobs.
    """
    settings = [override for override in overrides if override.split("=", 1)[0] in swept - {"task"}]
    return job_folder(task, ",".join(settings))


def read_jobs(sweep: Path, errors: dict[Path, str]) -> list[SweepJob]:
    """All jobs in a sweep's folder, of this call and of those before, in the order of their numbers and names.

    Args:
        sweep: the folder.
        errors: sentences by a job's folder.
    """
    files = sorted(sweep.glob("*/.hydra/overrides.yaml"), key=lambda path: _order(path.parts[-3]))
    overrides = [dict(override.split("=", 1) for override in OmegaConf.load(path) if "=" in override) for path in files]
    keys = list(dict.fromkeys(key for values in overrides for key in values if key != "task"))
    differing = [key for key in keys if len({values.get(key) for values in overrides}) > 1]
    jobs = []
    for path, values in zip(files, overrides, strict=True):
        folder = path.parents[1]
        stored = folder / "metrics.json"
        error = errors.get(folder, "")  # its metrics, where there are some, may be those of other settings
        finished = stored.is_file() and not error
        metrics = json.loads(stored.read_text(encoding="utf-8")) if finished else {}
        settings = ", ".join(f"{key}={values[key]}" for key in differing if key in values)
        jobs.append(SweepJob(folder, values, settings, metrics, error))
    return jobs


def _order(name: str) -> tuple[int, str]:
    number = re.match(r"\d+", name)
    return int(number[0]) if number else -1, name


def write_jobs(jobs: Sequence[SweepJob], path: Path) -> None:
    """A row per job: its folder, what was typed, how it ended, and its metrics."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    names = sorted({name for job in jobs for name in job.metrics})
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["job", *keys, "status", "error", *names])
        rows.writeheader()
        for job in jobs:
            state = {"job": job.folder.name, "status": job.status, "error": job.error}
            rows.writerow(job.overrides | state | job.metrics)


class MetricsTable:
    """A line per job as Markdown: its task and settings, where they differ, and a few metrics.

    Args:
        metrics: names; those that no job measured are left out.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def __call__(self, jobs: Sequence[SweepJob]) -> str:
        measured = [name for name in self.metrics if any(name in job.metrics for job in jobs)]
        rows = [["task", "settings", *measured]]
        for job in jobs:
            cells = (_cell(job.metrics.get(name)) for name in measured)
            rows.append([job.task, job.settings, *cells])
        if len({job.task for job in jobs}) == 1:
            rows = [row[1:] for row in rows]
        return markdown(rows)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
