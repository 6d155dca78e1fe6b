"""Trains an adapter: `python train.py [task=...] [trainer=...] [key=value ...]`. Read this file first."""

import logging
import math
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from llama_adapter.launch import entry

log = logging.getLogger("train")


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    from llama_adapter.launch.build import plan_run

    plan = plan_run(config)
    if config.plan:
        log.info("%s", plan)
        return None
    from llama_adapter.launch.sweeps import train_job  # torch, lightning and transformers take seconds to import

    metrics = train_job(config, Path(config.output_dir), typed=entry.typed)
    if config.objective.metric not in metrics:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            return None  # a run without a validation part, say: nobody compares it
        raise ValueError(
            f"objective.metric is {config.objective.metric!r}, which this run did not measure. "
            f"Choose one of {', '.join(sorted(metrics))}."
        )
    value = metrics[config.objective.metric]
    if not math.isfinite(value):
        raise ValueError(f"objective.metric {config.objective.metric} is {value} at the end of the run.")
    return value


if __name__ == "__main__":
    entry.run(main, restore="resume")
