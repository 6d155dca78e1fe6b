"""`hydra/launcher=subprocess`: each job of a sweep is a run of its own, started as `python train.py` in a new process.

So a job may use several devices: Lightning starts the other devices' processes by repeating the command line, which
within a sweep would be the whole sweep. Hydra finds plugins in the package `hydra_plugins` only; it imports this file
at every start of `train.py`, so what takes time to import waits until there is something to launch.
"""

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from llama_adapter.checkpoint_files import step_checkpoints
from llama_adapter.launch.entry import quoted
from llama_adapter.launch.gpus import gpus_needed, visible_gpus
from llama_adapter.launch.job_process import JobProcess
from llama_adapter.launch.live_table import FAILED, FINISHED, RUNNING, STOPPED, JobView, LiveTable
from llama_adapter.launch.sweep_jobs import swept_keys
from llama_adapter.launch.sweeps import check_settings, finished_metrics, objective_value, say_that_it_goes_on

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is what SLURM's users send before a time limit
POLL_SECONDS = 0.1
TAIL_LINES = 10  # of a failed job's log that are shown

# Hydra's own overrides that are of the sweep, not of a job: by their beginning.
OF_THE_SWEEP = ("hydra.mode", "hydra.run.", "hydra.sweep.", "hydra/launcher", "hydra.launcher", "hydra/sweeper",
                "hydra.sweeper")  # fmt: skip


@dataclass(eq=False)
class Job:
    """A job of the sweep.

    Attributes:
        overrides: its command line.
        config: composed, with the node `hydra`.
        folder: of the job.
        gpus_needed: how many it asks for; 0 on the CPU.
        view: what is shown of it.
        process: once it runs.
        gpus: which it was dealt.
        result: once it has ended.
    """

    overrides: list[str]
    config: DictConfig
    folder: Path
    gpus_needed: int
    view: JobView
    process: JobProcess | None = None
    gpus: list[str] = field(default_factory=list)
    result: JobReturn | None = None


class SubprocessLauncher(Launcher):
    """Runs jobs side by side on this machine, each as a process of its own.

    Args:
        parallel: jobs at a time; None for as many as there are GPUs for, and one on the CPU.
        stop_seconds: how long jobs that are told to stop may take to save a checkpoint, before they are killed.
        log_seconds: between two lines per running job, where there is no terminal for a table.
    """

    def __init__(self, parallel: int | None = None, stop_seconds: float = 120.0, log_seconds: float = 60.0) -> None:
        self.parallel = parallel
        self.stop_seconds = stop_seconds
        self.log_seconds = log_seconds
        self._signals: list[int] = []
        self._views: list[JobView] = []  # of earlier calls too: a sampler launches its jobs little by little

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs and waits for them.

        Raises:
            ValueError: a job asks for more than this machine has; or `parallel` is below 1.
        """
        if self.parallel is not None and self.parallel < 1:
            raise ValueError(f"hydra.launcher.parallel must be at least 1, or null, got {self.parallel}.")
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self._job(list(overrides), number) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        free = visible_gpus() if any(job.gpus_needed for job in jobs) else []
        for job in jobs:
            if job.gpus_needed > len(free):
                raise ValueError(
                    f"trainer.devices={job.gpus_needed} of {job.folder.name} are GPUs, of which this process sees "
                    f"{len(free)}. Choose fewer, or look at nvidia-smi and CUDA_VISIBLE_DEVICES."
                )
        objective = self.config.objective
        self._views += [job.view for job in jobs]
        self._table = LiveTable(
            self._views,
            objective=objective.metric,
            direction=objective.direction,
            log_seconds=self.log_seconds,
        )
        with self._told_to_stop(), self._table:
            self._run(jobs, free)
        if self._signals:
            say_that_it_goes_on(jobs[0].folder.parent)
            sys.exit(128 + self._signals[0])
        return [job.result for job in jobs]

    # --- before -------------------------------------------------------------------------------------------------------

    def _job(self, overrides: list[str], number: int) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        with _as_current(config):
            folder = Path(os.path.abspath(config.hydra.sweep.dir)) / config.hydra.sweep.subdir
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(folder)
        swept = swept_keys(self.config)
        settings = ", ".join(override for override in overrides if override.split("=", 1)[0] in swept)
        return Job(overrides, config, folder, gpus_needed(config), JobView(settings or folder.name, folder))

    def _command(self, job: Job) -> list[str]:
        of_hydra = [o for o in self.config.hydra.overrides.hydra if not o.lstrip("+~").startswith(OF_THE_SWEEP)]
        folder = quoted(job.folder)
        resume = [f"resume={folder}"] if step_checkpoints(job.folder / "checkpoints") else []
        script = os.path.abspath(sys.argv[0])
        return [sys.executable, script, *job.overrides, *of_hydra, "hydra.mode=RUN", f"hydra.run.dir={folder}", *resume]

    # --- while they run -----------------------------------------------------------------------------------------------

    def _run(self, jobs: Sequence[Job], free: list[str]) -> None:
        waiting, running = deque(jobs), []
        parallel = self.parallel or (len(jobs) if free else 1)
        try:
            while (waiting or running) and not self._signals:
                while waiting and len(running) < parallel and waiting[0].gpus_needed <= len(free):
                    job = waiting.popleft()
                    if self._start(job, free):
                        running.append(job)
                for job in [job for job in running if job.process.status() is not None]:
                    running.remove(job)
                    free += job.gpus
                    self._end(job)
                self._table.update()
                time.sleep(POLL_SECONDS if running else 0)
        finally:  # told to stop, or a failed job ends the sweep
            self._stop(running)

    def _start(self, job: Job, free: list[str]) -> bool:
        """Whether there is something to run: jobs that have finished, or are of other settings, end here."""
        task_config = job.config.copy()
        with open_dict(task_config):
            del task_config["hydra"]
        job.result = JobReturn(
            overrides=job.overrides, cfg=task_config, hydra_cfg=job.config, working_dir=os.getcwd(), task_name="train"
        )
        with _as_current(job.config):
            self.hydra_context.callbacks.on_job_start(config=job.config, task_function=self.task_function)
        overrides = job.folder / ".hydra" / "overrides.yaml"
        if not overrides.is_file():  # so that the job is known, if it fails before Hydra's own start
            overrides.parent.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(job.overrides), overrides)
        try:
            with _as_current(job.config):
                if finished_metrics(task_config, job.folder):
                    log.info("%s has finished before.", job.folder)
                    self._end(job)
                    return False
                if step_checkpoints(job.folder / "checkpoints"):
                    check_settings(task_config, job.folder, "an unfinished")
        except ValueError as error:
            self._end(job, error)
            return False
        job.gpus = [free.pop(0) for _ in range(job.gpus_needed)]
        job.process = JobProcess(self._command(job), job.folder, job.gpus or None)
        job.view.state, job.view.started = RUNNING, time.monotonic()
        return True

    def _end(self, job: Job, error: Exception | None = None) -> None:
        job.view.ended = time.monotonic()
        status = job.process.status() if job.process else 0
        with _as_current(job.config):
            if status:
                tail = "\n".join(job.process.tail(TAIL_LINES))
                log.error("The last lines of %s:\n%s", job.process.log, tail)
                error = ChildProcessError(job.process.failure(status))
            elif error is None:
                try:
                    if metrics := finished_metrics(job.result.cfg, job.folder):  # a plan has none
                        job.view.value = job.result.return_value = objective_value(job.result.cfg, metrics)
                except ValueError as own:
                    error = own
            job.view.state = FAILED if error else FINISHED
            job.result.status = JobStatus.FAILED if error else JobStatus.COMPLETED
            if error:
                job.result.return_value = error
            self._table.update()
            self.hydra_context.callbacks.on_job_end(config=job.config, job_return=job.result)

    # --- the end ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _told_to_stop(self) -> Iterator[None]:
        self._signals.clear()
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _stop(self, running: list[Job]) -> None:
        if not running:
            return
        log.warning("Jobs that run save a checkpoint and stop: %d. Once more stops them at once.", len(running))
        signals, deadline = len(self._signals), time.monotonic() + self.stop_seconds
        for job in running:
            job.process.stop()
        while any(job.process.status() is None for job in running):
            if len(self._signals) > signals or time.monotonic() > deadline:
                for job in running:
                    job.process.kill()
            self._table.update()
            time.sleep(POLL_SECONDS)
        for job in running:
            job.view.state, job.view.ended = STOPPED, time.monotonic()


@contextmanager
def _as_current(config: DictConfig) -> Iterator[None]:
    """Makes a job's configuration the one that `${hydra:...}` reads."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
