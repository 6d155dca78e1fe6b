"""Scores an adapter, or the frozen model: `python evaluate.py adapter_path=<run folder|file|null> [task=...]`."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from llama_adapter.launch import entry

log = logging.getLogger("evaluate")


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    from llama_adapter.launch.evaluating import evaluate  # torch, lightning and transformers take seconds to import

    evaluate(config, Path(config.output_dir))


if __name__ == "__main__":
    entry.run(main, restore="adapter_path")
