"""Trains an adapter: `python train.py [task=...] [trainer=...] [key=value ...]`. Read this file first."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from llama_adapter.launch import entry

log = logging.getLogger("train")


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    from llama_adapter.launch.build import plan_run

    plan = plan_run(config)
    if config.plan:
        from llama_adapter.launch.trainers import plan_report

        log.info("%s", plan_report(config, plan))
        return None
    from llama_adapter.launch.sweeps import objective_value, train_job

    metrics = train_job(config, Path(config.output_dir), typed=entry.typed)
    return objective_value(config, metrics)


if __name__ == "__main__":
    entry.run(main, restore="resume")
