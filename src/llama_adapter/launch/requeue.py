"""The same command again and again: `resume=auto`, and processes that torchrun or SLURM have started."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llama_adapter.checkpoint_files import step_checkpoints

SETTLING_SECONDS = 0.5  # much longer than a small file takes to be written
AUTO = "resume=auto"
FOLDER = "hydra.run.dir="


def automatic_arguments(arguments: Sequence[str]) -> list[str] | None:
    """The command line with `resume=auto` replaced by what the folder of `hydra.run.dir` calls for.

    It resumes where the folder holds an unfinished run and begins where it holds none. Every process of a run decides
    for itself and they agree: a first checkpoint needs all of them, and so does the end of a run.

    Args:
        arguments: as typed.

    Returns:
        The arguments; None where the folder's run has finished, so that nothing is left to do.

    Raises:
        ValueError: no folder is given, or it depends on what only Hydra knows.
    """
    arguments = list(arguments)
    if AUTO not in arguments:
        return arguments
    if {"-m", "--multirun"} & {*arguments}:
        raise ValueError(
            "resume=auto is for a single run. A sweep goes on by itself: leave resume out, and give "
            "hydra.sweep.dir=<its folder>."
        )
    folder = run_folder(arguments)
    if folder is None:
        raise ValueError("resume=auto needs the run's folder: give hydra.run.dir=<folder>, the same every time.")
    if "${" in str(folder):
        raise ValueError(f"resume=auto needs a plain folder, got hydra.run.dir={folder}. Write it out.")
    if (folder / "metrics.json").is_file():
        if process_of_run()[0] == 0:
            sys.stdout.write(f"{folder} holds a finished run (metrics.json): nothing is left to do.\n")
        return None
    unfinished = step_checkpoints(folder / "checkpoints")
    return [f"resume={folder}" if a == AUTO else a for a in arguments if unfinished or a != AUTO]


def started_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of one of many processes: all write into one folder, and one of them its `.hydra` and log.

    Lightning cares for the processes that it starts itself.

    Raises:
        ValueError: no folder is given; each process would choose one by its own clock.
    """
    arguments = list(arguments)
    rank, processes = process_of_run()
    if processes == 1:
        return arguments
    if run_folder(arguments) is None and not any(argument.startswith("resume=") for argument in arguments):
        raise ValueError(
            f"torchrun or SLURM has started {processes} processes of this run, which need one folder: give "
            "hydra.run.dir=<folder>."
        )
    return arguments if rank == 0 else [*arguments, "hydra.output_subdir=null", f"hydra.job.name=train_process_{rank}"]


def settled_text(path: Path) -> str:
    """What a file holds that the first process may be writing anew, with the same meaning, while others read it."""
    text = path.read_text(encoding="utf-8")
    while process_of_run()[0] > 0:
        time.sleep(SETTLING_SECONDS)
        before, text = text, path.read_text(encoding="utf-8")
        if text == before and text:
            break
    return text


def run_folder(arguments: Sequence[str]) -> Path | None:
    """What `hydra.run.dir` is set to, the last time; None where it is not."""
    given = [argument.removeprefix(FOLDER) for argument in arguments if argument.startswith(FOLDER)]
    return Path(given[-1].strip("'\"")) if given else None


def process_of_run() -> tuple[int, int]:
    """The rank of this process and how many there are, where torchrun or SLURM's srun has started them; else 0 and 1.

    As Lightning sees it, which takes an interactive job of SLURM's for a plain machine.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return int(environment.get("SLURM_PROCID", 0)), int(environment["SLURM_NTASKS"])
    return 0, 1


def cluster_plugins() -> list:
    """What keeps Lightning from putting a SLURM job into the queue again by itself, on SIGUSR1 and in any phase.

    It would save a file of its own, which nothing here reads. The job's script does it: docs/cluster.md.
    """
    from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]
