"""The loggers of a run, and what they are handed at its end: final metrics, pictures, predictions, the adapter.

`metrics.csv` takes rows alone. What another logger takes is told by its methods: `log_table` and `log_image` as
Lightning's loggers have them, `log_summary`, `log_adapter`, `use_adapter` and `close` as in `wandb_logger`.
"""

import importlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from llama_adapter.adapter_file import FILE_NAME
from llama_adapter.launch.nodes import node

log = logging.getLogger(__name__)

# What evaluations leave in a run's folder, the most telling first.
PREDICTION_FILES = ("generations.jsonl", "captions.json", "predictions.json")
PREDICTION_ROWS = 200  # of a table: enough to look at, and the file has them all


def loggers_of(
    config: DictConfig, *, job_type: str, resumed_step: int | None = None, run_ids: Mapping[str, str] | None = None
) -> list[Logger]:
    """Builds what stands under `logger`; a logger whose library is not there is left out, with a warning.

    Args:
        config: composed.
        job_type: `train` or `evaluate`, where a logger does not say it itself.
        resumed_step: where a resumed run goes on; rows up to there are kept.
        run_ids: of a resumed run, by the logger's class; a logger with an id of its own keeps it.
    """
    loggers = []
    for name in config.logger:
        given, own = config.logger[name], {}
        if "library" in given and (error := _import_error(given.library.path)):
            log.warning(
                "logger=%s needs the package %s, which cannot be imported (%s): the run has metrics.csv alone.",
                name,
                given.library.path,
                error,
            )
            continue
        if "job_type" in given and given.job_type is None:
            own["job_type"] = job_type
        if "run_id" in given and given.run_id is None:
            own["run_id"] = (run_ids or {}).get(given._target_.rpartition(".")[2])
        loggers.append(node(config.logger, name, **own))
    if resumed_step is not None:
        for logger in loggers:
            if hasattr(logger, "keep_until"):
                logger.keep_until(resumed_step)
    return loggers


def _import_error(package: str) -> str:
    """Why a package cannot be imported: it is not installed, or broken, which comes to the same."""
    try:
        importlib.import_module(package)
    except Exception as error:
        return " ".join(str(error).split())
    return ""


def log_results(loggers: Iterable[Logger], folder: Path, metrics: Mapping[str, float]) -> None:
    """Hands over what a run has written, to every logger that takes it.

    Args:
        loggers: of the run.
        folder: of the run.
        metrics: the final ones.
    """
    columns, rows = predictions(folder)
    for logger in loggers:
        if hasattr(logger, "log_summary"):
            logger.log_summary(metrics)
        if rows and hasattr(logger, "log_table"):
            logger.log_table("predictions", columns=columns, data=rows)
        if (folder / "loss.png").is_file() and hasattr(logger, "log_image"):
            logger.log_image("loss", [str(folder / "loss.png")])
        if (folder / FILE_NAME).is_file() and hasattr(logger, "log_adapter"):
            logger.log_adapter(folder / FILE_NAME, metrics)


def log_evaluation(config: DictConfig, folder: Path, metrics: Mapping[str, float]) -> None:
    """Hands over what an evaluation measured, to the loggers that take more than rows, with the adapter it was of.

    Args:
        config: composed.
        folder: of the evaluation.
        metrics: the final ones.
    """
    loggers = [logger for logger in loggers_of(config, job_type="evaluate") if hasattr(logger, "log_summary")]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        if config.adapter_path and Path(config.adapter_path).suffix != ".pth":  # the authors' files say nothing
            logger.use_adapter(config.adapter_path)
    log_results(loggers, folder, metrics)
    close(loggers, failed=False)


def close(loggers: Iterable[Logger], *, failed: bool) -> None:
    """Ends a run for its loggers.

    Args:
        loggers: of the run.
        failed: whether an error ended it.
    """
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if hasattr(logger, "close"):
            logger.close(failed=failed)


def predictions(folder: Path) -> tuple[list[str], list[list[object]]]:
    """The first rows of what an evaluation wrote, whichever of the tasks' formats it has.

    Args:
        folder: of the run.

    Returns:
        The columns, and 200 rows at most; both empty where nothing was written.
    """
    path = next((folder / name for name in PREDICTION_FILES if (folder / name).is_file()), None)
    if path is None:
        return [], []
    text = path.read_text(encoding="utf-8")
    content = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    if isinstance(content, dict):
        content = content.get("results", content)  # ScienceQA's form
    if isinstance(content, dict):
        content = [{"id": id, "prediction": value} for id, value in content.items()]
    content = content[:PREDICTION_ROWS]
    columns = {
        key: _column([row.get(key) for row in content]) for key in dict.fromkeys(k for row in content for k in row)
    }
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _column(values: list[object]) -> list[object]:
    """Tables take columns of one type: numbers or texts stay what they are, anything else becomes JSON."""
    kinds = {type(value) for value in values}
    if kinds in ({str}, {int}, {float}):
        return values
    if kinds <= {str, type(None)}:
        return [value or "" for value in values]
    return [json.dumps(value, ensure_ascii=False) for value in values]
