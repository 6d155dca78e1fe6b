"""The GPUs of this machine, which a sweep deals out to its jobs."""

import os

from omegaconf import DictConfig


def gpus_needed(config: DictConfig) -> int:
    """GPUs that a job asks for on this machine; 0 on the CPU.

    Raises:
        ValueError: it asks for certain ones, or for several machines.
    """
    if config.trainer.num_nodes != 1:
        raise ValueError(
            f"trainer.num_nodes is {config.trainer.num_nodes}, and hydra/launcher=subprocess starts jobs on this "
            "machine alone. Use hydra/launcher=slurm."
        )
    if config.trainer.accelerator == "cpu":
        return 0
    if not isinstance(config.trainer.devices, int):
        raise ValueError(
            f"trainer.devices is {config.trainer.devices}. hydra/launcher=subprocess deals the GPUs out itself: give "
            "the number that a job needs; CUDA_VISIBLE_DEVICES chooses which there are."
        )
    return config.trainer.devices


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch  # takes seconds

        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in named.split(",")]
    known = next((number for number, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:known]  # CUDA, too, stops at the first that is none
