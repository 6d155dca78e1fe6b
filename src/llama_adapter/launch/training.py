"""A training run from beginning to end: build, fit, score, write."""

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from llama_adapter.attach import attach
from llama_adapter.charts import loss_curve
from llama_adapter.checkpoint import save_adapter
from llama_adapter.checkpoint_files import newest_checkpoint, step_checkpoints
from llama_adapter.files import write_json
from llama_adapter.launch import build, loggers, models
from llama_adapter.launch.nodes import node
from llama_adapter.launch.report import metrics_table
from llama_adapter.launch.run_folder import open_folder
from llama_adapter.module import AdapterModule
from llama_adapter.run_checkpoint import logger_run_ids

log = logging.getLogger(__name__)


def train(config: DictConfig, folder: Path, *, typed: list[str]) -> dict[str, float]:
    """Trains, scores and saves one adapter.

    Args:
        config: composed.
        folder: of the run.
        typed: the arguments that the user gave, see `open_folder`.

    Returns:
        The final metrics, as they stand in `metrics.json`.
    """
    build.check_devices(config)
    if rank_zero_only.rank == 0:  # the other devices' processes find the folder opened
        open_folder(config, folder, typed)
    resumed = newest_checkpoint(folder / "checkpoints") if config.resume else None
    start(config)

    tokenizer = models.tokenizer(config)
    data = build.data_module(config, tokenizer)
    plan = build.plan_run(config, data)
    log.info("%s\n", plan)
    evaluation = node(config.task, "evaluation")
    trainer = build.trainer(
        config,
        plan,
        resumed_step=resumed[1] if resumed else None,
        run_ids=logger_run_ids(resumed[0]) if resumed else None,
    )
    model = attach(models.image_backbone(config), node(config, "adapter"))
    if data.batches.cache_frozen:
        data.cache_frozen(model.to(trainer.strategy.root_device))
    module = AdapterModule(model, node(config, "optimizer"), head=models.head(config), dropout=config.model.dropout)
    models.prepare_layers(config, model)
    if resumed:
        log.info("Resuming after step %d from %s.", resumed[1], resumed[0])

    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    try:
        # Our own file with optimizer and loop states, which torch cannot read as weights alone.
        trainer.fit(module, data, ckpt_path=resumed[0] if resumed else None, weights_only=False if resumed else None)
        if module.validated_step < trainer.global_step and len(data.validation_dataset):
            trainer.validate(module, data, verbose=False)  # the run ended within an epoch
        if len(data.test_dataset):
            score(trainer, module, data)
        metrics = module.summary | {"train/parameters": float(plan.trainable_parameters)}
        if trainer.is_global_zero:
            save_adapter(
                model,
                folder,
                task=config.task.name,
                template=data.template_texts(),
                backbone=config.model.name,
                metrics=metrics,
            )
        model.eval().to(trainer.strategy.root_device)  # Lightning has taken it to the CPU when it was done
        metrics |= evaluation(model, data, folder)
        for callback in trainer.callbacks:
            # Not in the adapter's file: what a clock says must not make two files of one run differ.
            metrics |= getattr(callback, "totals", {})
        metrics |= compare(config, folder)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            loss_curve(folder / "metrics.csv", folder / "loss.png")
            write_json(folder / "metrics.json", metrics)
            log.info(
                "\n%s\n\nWritten to %s: adapter.safetensors, metrics.json, metrics.csv, throughput.csv, loss.png and "
                "gates.png",
                metrics_table(metrics, getattr(evaluation, "shares", ())),
                folder,
            )
            loggers.log_results(trainer.loggers, folder, metrics)
    finally:
        loggers.close(trainer.loggers, failed=sys.exception() is not None)
    return metrics


def compare(config: DictConfig, folder: Path) -> dict[str, float]:
    """Trains once more for each of the task's comparisons, the same but for a few keys, in a folder of its own.

    `task.compare` names them: `changed` holds keys and their other values, `metrics` which numbers of that run are
    reported here under which name. One that has finished is not run again.
    """
    reported: dict[str, float] = {}
    for name, comparison in (config.task.get("compare") or {}).items():
        inside = folder / name
        if (inside / "metrics.json").is_file():
            metrics = json.loads((inside / "metrics.json").read_text(encoding="utf-8"))
        else:
            other = config.copy()
            OmegaConf.update(other, "task.compare", None)
            OmegaConf.update(other, "output_dir", str(inside))
            for key, value in comparison.changed.items():
                OmegaConf.update(other, key, value)
            OmegaConf.update(other, "resume", str(inside) if step_checkpoints(inside / "checkpoints") else None)
            log.info("\nThe comparison %s: %s.", name, ", ".join(f"{k}={v}" for k, v in comparison.changed.items()))
            inside.mkdir(exist_ok=True)
            metrics = train(other, inside, typed=[])
        reported |= {ours: metrics[theirs] for theirs, ours in comparison.metrics.items()}
    return reported


def start(config: DictConfig) -> None:
    """Seeds every generator, sets the threads, and leaves Lightning its warnings but not its tips and device lists."""
    if rank_zero_only.rank:
        logging.getLogger().setLevel(logging.ERROR)  # the first device says what all of them would
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training",  # a frozen model is meant to be: its dropout is off
        ".*does not have many workers",  # examples are encoded already; workers would only cost memory
        ".*LeafSpec.*",  # between Lightning and torch
        ".*Total length of `DataLoader` across ranks is zero.*",  # a run without a validation part
        ".*sync_dist=True.*",  # what is logged has been summed over the devices already
    ):
        warnings.filterwarnings("ignore", message=message)


def score(trainer: lightning.Trainer, module: AdapterModule, data) -> dict[str, float]:
    """Loss and perplexity on the test part, or on the validation part where there is no test."""
    part, run = ("test", trainer.test) if len(data.test_dataset) else ("val", trainer.validate)
    run(module, data, verbose=False)
    return {name: value for name, value in module.summary.items() if name.startswith(f"{part}/")}
