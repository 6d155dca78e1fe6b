"""A run on Weights & Biases, or in offline files where it cannot be reached; whatever fails there, the run goes on.

No Python file imports wandb: `conf/logger/wandb.yaml` names the package and hands it over. What stands beside this
logger, `metrics.csv` and the run's folder, holds the same numbers, pictures and tables.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from llama_adapter.adapter_file import FILE_NAME
from llama_adapter.files import write_json
from llama_adapter.wandb_artifacts import adapter_artifact, base_of, identity_artifact
from llama_adapter.wandb_server import first_line, unreachable, within, without_terminal

log = logging.getLogger(__name__)

# Settings of wandb that say how long a run may wait for its server, and the variables with which a user sets them.
WAITING = {"init_timeout": ("WANDB_INIT_TIMEOUT", 10.0), "finish_timeout": ("WANDB_FINISH_TIMEOUT", 300.0)}
ARTIFACT_SECONDS = 60.0  # that the end of a run waits for an artifact, which W&B itself does without a limit
SECRET = re.compile(r"(^|_)(api_?key|token|secret|password|credentials?)$", re.IGNORECASE)
HIDDEN = "<hidden>"
RECORD = "run.json"  # in <folder>/wandb: what an evaluation needs to find the run that trained its adapter


def never_stops(method: Callable[..., None]) -> Callable[..., None]:
    """A logger's method whose error becomes a warning: no log is worth a run. It does nothing on other devices."""

    @rank_zero_only
    @functools.wraps(method)
    def guarded(self: "RunWandbLogger", *args: object, **kwargs: object) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._warn_of(method.__name__, error)

    return guarded


class Nothing:
    """Takes what a run of W&B takes and does nothing. W&B's own disabled run would become the user's `wandb.run`."""

    def __getattr__(self, name: str) -> "Nothing":
        return self

    def __call__(self, *args: object, **kwargs: object) -> "Nothing":
        return self


class RunWandbLogger(WandbLogger):
    """Lightning's logger, which falls back: to offline files without a key or a network, to nothing where W&B fails.

    The environment says what it always says to W&B: WANDB_MODE (online, offline, disabled), WANDB_API_KEY,
    WANDB_BASE_URL, and `~/.netrc`. Nothing is ever asked on the terminal.

    Args:
        library: the package `wandb`.
        folder: of the run; local files go to `wandb/` in it.
        project: on W&B; `entity`, the user or team, is W&B's default when not given.
        name: None for WANDB_NAME, else the name of the folder.
        group: runs that stand together.
        job_type: `train` or `evaluate`.
        tags: to find the run by.
        offline: writes files for `wandb sync` without trying for a server.
        run_id: of a run to continue; None for a new one.
    """

    def __init__(
        self,
        library: ModuleType,
        *,
        folder: str | Path,
        project: str = "llama-adapter",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
        run_id: str | None = None,
    ) -> None:
        folder = Path(os.path.abspath(folder))
        super().__init__(
            name=name or os.environ.get("WANDB_NAME") or folder.name,
            save_dir=folder,
            project=project,
            entity=entity,
            group=group,
            job_type=job_type,
            tags=tags,
            offline=offline,
            id=run_id,
        )
        del self._wandb_init["anonymous"]  # W&B warns of it even when it is None
        self._library = library
        self._folder = folder
        self._failing: set[str] = set()  # methods that W&B has failed in
        self._unfinished = None  # a run that failed, to be ended with the other
        self._config: dict = {}

    # --- the run --------------------------------------------------------------------------------------------------

    @property
    @rank_zero_experiment
    def experiment(self):
        """W&B's run; one that takes everything and does nothing where W&B is switched off or has failed."""
        if self._experiment is None:
            try:
                self._experiment = self._start()
            except Exception as error:
                self._warn_of("experiment", error)
        return self._experiment

    @property
    def run_id(self) -> str | None:
        """Of the run, under which a resumed one continues it; None before it has begun, and on other devices."""
        return self._id

    @property
    def version(self) -> str | None:
        """The same, for Lightning."""
        return self._id

    def _start(self):
        settings, reason = self._library.setup().settings, ""
        if settings.mode == "disabled":
            return Nothing()
        if not self._offline and settings.mode not in ("offline", "dryrun"):
            reason = unreachable(settings.base_url)
            if not reason:
                try:
                    return self._open()
                except Exception as error:
                    reason = first_line(error)
        run = self._open(mode="offline")
        if reason:
            log.warning("%s", fallback(reason, self._folder))
        return run

    def _open(self, **options: str):
        waiting = {key: seconds for key, (variable, seconds) in WAITING.items() if variable not in os.environ}
        (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
        with without_terminal():
            # A run of its own, whatever else this process has begun: jobs of a sweep, comparisons, a user's own.
            run = self._library.init(**self._wandb_init, **options, reinit="create_new", settings=waiting)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._id = run.id
        return run

    def _warn_of(self, method: str, error: Exception) -> None:
        if method not in self._failing:
            log.warning(
                "W&B failed in %s (%s: %s); the run goes on, and its folder has everything.",
                method,
                type(error).__name__,
                first_line(error),
            )
        self._failing.add(method)
        if method in ("experiment", "log_metrics"):  # a picture may be at fault; where a row fails, all will
            self._unfinished, self._experiment = self._experiment, Nothing()

    @never_stops
    def close(self, *, failed: bool = False) -> None:
        """Ends the run and waits until W&B has it, or for five minutes; the files stay for `wandb sync`.

        Args:
            failed: marks it as failed.
        """
        run, self._unfinished = self._unfinished or self._experiment, None
        if run is not None:
            self._experiment = Nothing()  # nothing comes after the end
            run.finish(exit_code=int(failed))

    # --- what is logged -------------------------------------------------------------------------------------------

    log_metrics = never_stops(WandbLogger.log_metrics)

    @never_stops
    def log_table(self, key: str, columns: list[str], data: list[list[object]], step: int | None = None) -> None:
        """A table; its rows are cells in the order of the columns, which have one type each."""
        self._check_server()
        # Lightning's own ends in `log_metrics`, which cannot tell a table that is refused from a W&B that is gone.
        super().log_metrics({key: self._library.Table(columns=columns, data=data)}, step)

    @never_stops
    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        """Pictures, by their paths."""
        super().log_metrics({key: [self._library.Image(image) for image in images]}, step)

    @never_stops
    def log_hyperparams(self, params: Mapping[str, object]) -> None:
        """The whole configuration, but for values of keys that look like secrets."""
        self._config = without_secrets(params)
        super().log_hyperparams(self._config)

    @never_stops
    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """The final metrics, those in `metrics.json`."""
        self.experiment.summary.update(dict(metrics))

    # --- lineage --------------------------------------------------------------------------------------------------

    @never_stops
    def log_adapter(self, path: str | Path, metrics: Mapping[str, float]) -> None:
        """The adapter as an artifact with its backbone, data and metrics, under the aliases `k<K>-l<L>` and `run-<id>`.

        An offline run cannot say that it used the artifacts of its backbone and its data; the adapter's metadata do.

        Args:
            path: of the adapter file.
            metrics: final numbers.
        """
        if self.experiment.disabled:
            return
        self._check_server()
        within(ARTIFACT_SECONDS, lambda: self._log_adapter(Path(path), metrics))

    def _log_adapter(self, path: Path, metrics: Mapping[str, float]) -> None:
        settings = self._config.get("task", {}).get("data", {})
        data = {key: value for key, value in settings.items() if isinstance(value, str | int | float)}
        artifact, aliases = adapter_artifact(self._library, path, data=data, metrics=metrics)
        run, names = self.experiment, {"run_id": self.run_id, "artifact": artifact.name}
        write_json(self._folder / "wandb" / RECORD, names | {"entity": run.entity, "project": run.project})
        run.log_artifact(artifact, aliases=[*aliases, f"run-{self.run_id}"])
        if not run.offline:
            base, task = base_of(path), artifact.metadata["task"]
            for kind, name, description in (("base", base["name"], base), ("data", task, data)):
                run.use_artifact(identity_artifact(self._library, kind, name, description))

    @never_stops
    def use_adapter(self, path: str | Path) -> None:
        """Links an evaluation to the adapter that it scores, and to the run that trained it.

        Args:
            path: of the adapter file, or of the run's folder that holds it.
        """
        if self.experiment.disabled:
            return
        path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        record = path.parent / "wandb" / RECORD
        trained_by = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        self.experiment.config.update({"adapter_file": {"base": base_of(path), "trained_by": trained_by}})
        if self.experiment.offline:
            return
        self._check_server()
        if trained_by:
            place = "/".join(trained_by[key] for key in ("entity", "project", "artifact") if trained_by[key])
            used = f"{place}:run-{trained_by['run_id']}"
        else:  # nobody has logged it yet
            used = adapter_artifact(self._library, path, metrics={})[0]
        within(ARTIFACT_SECONDS, lambda: self.experiment.use_artifact(used))

    def _check_server(self) -> None:
        """Where W&B would wait for its server; rows and pictures are its own process's business."""
        if not self.experiment.offline and (reason := unreachable(self._library.setup().settings.base_url)):
            raise ConnectionError(reason)


def fallback(reason: str, folder: Path) -> str:
    """What a user is told whose run is not online, in one sentence.

    Args:
        reason: why.
        folder: of the run.
    """
    files = folder / "wandb"
    files = files.relative_to(Path.cwd()) if files.is_relative_to(Path.cwd()) else files
    return (
        f"logger=wandb logs offline ({reason}): `wandb sync {files}` sends the run to W&B later, and "
        "logger.wandb.offline=true, which says that this is meant, silences this message."
    )


def without_secrets(value: object) -> object:
    """The same configuration with `<hidden>` for the values of keys such as `api_key`, `hub_token` and `password`."""
    if isinstance(value, Mapping):
        hidden = {key for key, inner in value.items() if SECRET.search(str(key)) and inner is not None}
        return {key: HIDDEN if key in hidden else without_secrets(inner) for key, inner in value.items()}
    return [without_secrets(inner) for inner in value] if isinstance(value, list) else value
