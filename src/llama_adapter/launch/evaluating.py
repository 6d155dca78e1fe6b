"""One task's evaluation of an adapter file, from its check to its metrics."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from llama_adapter.attach import adapter_disabled, adapters
from llama_adapter.files import write_json
from llama_adapter.launch import build, models
from llama_adapter.launch.loggers import log_evaluation
from llama_adapter.launch.nodes import node
from llama_adapter.launch.report import metrics_table
from llama_adapter.launch.schema import check_keys
from llama_adapter.launch.training import score, start
from llama_adapter.module import AdapterModule

log = logging.getLogger(__name__)


def evaluate(config: DictConfig, folder: Path) -> dict[str, float]:
    """Scores the adapter at `adapter_path`, answers the file `instructions` with it, or scores the file `predictions`.

    The adapter is checked against the backbone before any weight is loaded.

    Args:
        config: composed.
        folder: gets `metrics.json` and `generations.jsonl`.

    Returns:
        The metrics; empty when instructions were answered.
    """
    check_keys(config)
    if config.predictions:
        return score_predictions(config, folder)
    build.check_devices(config)
    start(config)
    tokenizer = models.tokenizer(config)
    data = build.data_module(config, tokenizer)
    evaluation = node(config.task, "evaluation")
    if config.instructions and not hasattr(evaluation, "answer"):
        raise ValueError(f"task={config.task.name} answers no file of instructions. Leave instructions out.")
    model = models.adapted_backbone(config)

    if config.instructions:
        count = evaluation.answer(model, data, config.instructions, folder)
        log.info("%d answers are in %s.", count, folder / "generations.jsonl")
        return {}

    trainer = build.evaluation_trainer(config)
    module = AdapterModule(model, head=models.head(config))
    metrics = {}
    if adapters(model):
        metrics |= score(trainer, module, data)
    with adapter_disabled(model):
        metrics |= {name.replace("/", "/frozen_"): value for name, value in score(trainer, module, data).items()}
    model.to(trainer.strategy.root_device)  # Lightning has taken it to the CPU when it was done
    metrics |= evaluation(model, data, folder)
    if trainer.is_global_zero:
        write_json(folder / "metrics.json", metrics)
        log.info("\n%s\n\nWritten to %s.", metrics_table(metrics, getattr(evaluation, "shares", ())), folder)
        log_evaluation(config, folder, metrics)
    return metrics


def score_predictions(config: DictConfig, folder: Path) -> dict[str, float]:
    """Scores a file in the benchmark's own format, without a model.

    Raises:
        ValueError: the task has no such format, or a model was asked for as well.
    """
    if "scoring" not in config.task:
        raise ValueError(f"task={config.task.name} has no scoring of prediction files: its node has no 'scoring'.")
    for key in ("adapter_path", "instructions"):
        if config[key]:
            raise ValueError(f"predictions are scored without a model, but {key} is {config[key]!r}. Leave one out.")
    options = {"na_probs": config.na_probs} if config.na_probs else {}
    metrics = node(config.task, "scoring")(config.predictions, folder, **options)
    write_json(folder / "metrics.json", metrics)
    log.info("Written to %s: metrics.json, scores.txt", folder)
    return metrics
