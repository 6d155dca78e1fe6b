"""Jobs of a sweep that go on where they stopped, and the value that a sweeper compares them by.

The same command with the same hydra.sweep.dir skips the jobs that have finished and goes on with those that failed or
were stopped. A job that fails does not stop the others, unless sweep.fail_fast is set; the error ends the sweep after
the last of them.
"""

import json
import logging
import math
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from llama_adapter.checkpoint_files import step_checkpoints
from llama_adapter.launch.run_folder import changed_key

# Keys that may differ when a sweep goes on: they change nothing of what a job learns and measures.
HARMLESS = ["objective", "callbacks", "logger", "hardware", "data.num_workers", "sweep"]

log = logging.getLogger(__name__)


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
    from llama_adapter.run_checkpoint import RunInterrupted

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
        say_that_it_goes_on(folder.parent)
        sys.exit(128 + stop.signal_number)  # Hydra would take an exception for a failed job, and go on with the next


def in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def say_that_it_goes_on(sweep: Path) -> None:
    """What a sweep that was told to stop ends with."""
    log.warning("The sweep stops. The same command with hydra.sweep.dir=%s goes on with it.", sweep)


def finished_metrics(config: DictConfig, folder: Path) -> dict[str, float]:
    """What a finished job measured; nothing where it has not finished.

    Raises:
        ValueError: it had other settings.
    """
    stored = folder / "metrics.json"
    if not stored.is_file():
        return {}
    check_settings(config, folder, "a finished")
    return json.loads(stored.read_text(encoding="utf-8"))


def check_settings(config: DictConfig, folder: Path, kind: str) -> None:
    """Makes sure that the job in a folder is the one that is asked for.

    Args:
        config: composed.
        folder: of the job.
        kind: of the job there, for the message.

    Raises:
        ValueError: it had other settings.
    """
    if not (folder / "config.yaml").is_file():
        return
    if changed := changed_key(OmegaConf.load(folder / "config.yaml"), config, folder, HARMLESS):
        key, old, new = changed
        raise ValueError(
            f"{folder} holds {kind} job with {key}={old}, and this one has {key}={new}. Choose another "
            "hydra.sweep.dir, or remove the folder."
        )


def objective_value(config: DictConfig, metrics: dict[str, float]) -> float | None:
    """The metric that `objective.metric` names.

    Returns:
        None for a single run that did not measure it (it has no validation part, say): nobody compares it.

    Raises:
        ValueError: a job of a sweep did not measure it, or it is no finite number.
    """
    name = config.objective.metric
    if name not in metrics:
        if not in_sweep():
            return None
        raise ValueError(
            f"objective.metric is {name!r}, which this run did not measure. Choose one of {', '.join(sorted(metrics))}."
        )
    if not math.isfinite(metrics[name]):
        raise ValueError(f"objective.metric {name} is {metrics[name]} at the end of the run.")
    return metrics[name]
