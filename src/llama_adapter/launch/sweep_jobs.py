"""The jobs of a sweep, as their folders tell: what was typed, how they ended, what they measured."""

import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from llama_adapter.files import whole_file
from llama_adapter.launch.entry import job_folder

LONGEST = 100  # characters of a folder's name, see `job_folder`
FAILURE = "failed.json"  # in a job's folder: the sentence that it ended in; gone when it starts again
NO_SETTINGS = ("resume", "sweep")  # overrides that say how a job is run, not what it learns


@dataclass(frozen=True)
class SweepJob:
    """One job, as its folder tells.

    Attributes:
        folder: of the job.
        overrides: its command line, values by key.
        settings: those of them that differ between the jobs of the sweep, but for the task; as typed.
        metrics: of `metrics.json`; empty where it has not finished.
        error: the sentence it failed with when it was last run, or "".
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


# --- what a sweep's command asks for ----------------------------------------------------------------------------------


def sweep_overrides(config: DictConfig) -> list[Override]:
    """The sweep's parameters and the command line, as Hydra's own sweeper reads them."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return list({override.get_key_element(): override for override in overrides}.values())  # the last one counts


def swept_keys(config: DictConfig) -> set[str]:
    """Keys for which the command gives several values, or a range of them."""
    return {override.get_key_element() for override in sweep_overrides(config) if override.is_sweep_override()}


def asked_jobs(config: DictConfig) -> list[dict[str, str]] | None:
    """The overrides of each job that the command asks for; None where a sampler chooses them as it goes."""
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    [jobs] = BasicSweeper.split_arguments(sweep_overrides(config), None)
    return [as_typed(overrides) for overrides in jobs]


def as_typed(overrides: Sequence[str]) -> dict[str, str]:
    """Values by key."""
    return dict(override.split("=", 1) for override in overrides if "=" in override)


def swept_folder(task: str, overrides: Sequence[str], *, swept: set[str]) -> str:
    """The folder of a job, by its task and settings and without its number: a part of a sweep finds the whole again.

    Args:
        task: the option of that group.
        overrides: of the job.
        swept: keys that differ between jobs.
    """
    settings = ",".join(override for override in overrides if override.split("=", 1)[0] in swept - {"task"})
    if len(task) + len(settings) >= LONGEST:  # what differs may be at the end
        settings = f"{settings[: LONGEST - 10 - len(task)]}_{crc32(settings.encode()):08x}"
    return job_folder(task, settings)


# --- what its folder holds --------------------------------------------------------------------------------------------


def read_jobs(sweep: Path, errors: Mapping[Path, str] | None = None) -> list[SweepJob]:
    """All jobs in a sweep's folder, of this call and of those before, in the order of their numbers and names.

    Args:
        sweep: the folder.
        errors: sentences by a job's folder, of jobs whose folder holds the metrics of other settings.
    """
    files = sorted(sweep.glob("*/.hydra/overrides.yaml"), key=lambda path: _order(path.parts[-3]))
    overrides = [as_typed(OmegaConf.load(path)) for path in files]
    differing = differing_keys(overrides)
    jobs = []
    for path, values in zip(files, overrides, strict=True):
        folder = path.parents[1]
        metrics, failure = (_read(folder / name) for name in ("metrics.json", FAILURE))
        error = (errors or {}).get(folder, "") or ("" if metrics else failure.get("error", ""))
        settings = ", ".join(f"{key}={values[key]}" for key in differing if key in values)
        jobs.append(SweepJob(folder, values, settings, {} if error else metrics, error))
    return jobs


def differing_keys(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values are not the same in all jobs, but for the task and what only says how a job is run."""
    keys = dict.fromkeys(key for values in overrides for key in values)
    settings = [key for key in keys if key != "task" and key.split(".")[0] not in NO_SETTINGS]
    return [key for key in settings if len({values.get(key) for values in overrides}) > 1]


def _order(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]  # 5 before 10


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def begin_again(sweep: Path, asked: Sequence[Mapping[str, str]] | None, redo: str) -> list[Path]:
    """Empties the folders of the jobs that are to begin again from nothing.

    Args:
        sweep: the folder.
        asked: see `asked_jobs`; jobs of the folder that this command does not ask for are left as they are.
        redo: see `SweepConfig`.

    Returns:
        The folders.
    """
    jobs = read_jobs(sweep)
    # Not keys that differ between this command and the one before: a failed job may begin again with a smaller batch.
    telling = {"task", *differing_keys([job.overrides for job in jobs]), *differing_keys(asked or [])}
    wanted = None if asked is None else [[values.get(key) for key in telling] for values in asked]
    emptied = []
    for job in jobs:
        ours = wanted is None or [job.overrides.get(key) for key in telling] in wanted
        if ours and (redo == "all" or job.status == "failed"):
            _empty(job.folder)
            emptied.append(job.folder)
    return emptied


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".hydra":
            continue  # it still is the folder of this job
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_jobs(jobs: Sequence[SweepJob], path: Path) -> None:
    """A row per job: its folder, what was typed, how it ended, and its metrics."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    keys = [key for key in keys if key != "resume" and not key.startswith("sweep.")]
    names = sorted({name for job in jobs for name in job.metrics})
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["job", *keys, "status", "error", *names], extrasaction="ignore")
        rows.writeheader()
        for job in jobs:
            state = {"job": job.folder.name, "status": job.status, "error": job.error}
            rows.writerow(job.overrides | state | job.metrics)
