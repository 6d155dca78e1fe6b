"""How fast a run is: tokens per second, share of useful tokens, utilisation of the device, peak memory.

What is counted is what an adapter's training must do, so that a number can be compared between implementations: useful
tokens are those of the examples, not of padding, and a floating point operation counts once even where it is computed
again.
"""

import resource
import sys
import time

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops

from llama_adapter.architecture import Architecture
from llama_adapter.attach import adapters, trained_of
from llama_adapter.examples import TokenCounts
from llama_adapter.flops import training_flops

GIB = 2**30


class Throughput(Callback):
    """Measures the training itself: between the ends of two steps, without validation; saving is in it.

    Rows `throughput/...` go to the loggers, the figures of the whole run (its first step left out, in which kernels are
    chosen and compiled) to `totals`. Tokens are those of all devices together, utilisation is the mean of the devices.

    Args:
        every_n_steps: optimizer steps between two rows.
        peak_tflops: of one device in the precision of the matrix products, in 10^12 operations per second; None takes
            Lightning's table of GPUs, and where it has none no utilisation is given.
    """

    def __init__(self, *, every_n_steps: int = 10, peak_tflops: float | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.throughput.every_n_steps must be at least 1, got {every_n_steps}.")
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"hardware.peak_tflops must be above 0, or null where it is not known, got {peak_tflops}.")
        self.every_n_steps = every_n_steps
        self.peak_tflops = peak_tflops
        self.totals: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        adapted = adapters(module.model)
        self._shape = Architecture.from_config(module.model.config)
        self._prompt_length, self._prompt_layers = len(next(iter(adapted.values())).prompt), len(adapted)
        self._trains = trained_of(module.model)
        self._peak = self.peak_tflops and self.peak_tflops * 1e12
        if self._peak is None and module.device.type == "cuda":
            self._peak = get_available_flops(module.device, module.model.dtype)
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)
        self._window, self._run = (torch.zeros(6, dtype=torch.float64) for _ in range(2))
        self._first_step = trainer.global_step + 1
        self._step = trainer.global_step
        self._clock = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._clock = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: dict, batch_idx: int
    ) -> None:
        counts: TokenCounts = batch["counts"]
        now = time.perf_counter()  # a step has read its loss, so the device is done with it
        seconds, self._clock = now - self._clock, now
        trained = module.head.trained(batch)
        flops = training_flops(
            self._shape,
            prompt_length=self._prompt_length,
            prompt_layers=self._prompt_layers,
            tokens=counts.computed - counts.padding,
            attended=counts.attended,
            trained=trained,
            trains=self._trains,
            prompt_sets=int(batch.get("example_count", 1)),
        ).useful
        figures = torch.tensor(
            [seconds, counts.useful, trained, counts.computed, counts.padding, flops], dtype=torch.float64
        )
        self._window += figures
        if self._step >= self._first_step:
            self._run += figures
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every_n_steps == 0:
            module.log_row(self._figures(trainer, module, self._window), self._step)
            self._window.zero_()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.totals = self._figures(trainer, module, self._run)

    def _figures(self, trainer: Trainer, module: LightningModule, sums: torch.Tensor) -> dict[str, float]:
        devices = trainer.world_size
        total = sums.to(module.device)
        if devices > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        seconds, useful, trained, computed, padding, flops = total.tolist()
        if not seconds:
            return {}
        seconds /= devices
        figures = {
            "throughput/useful_tokens_per_second": useful / seconds,
            f"throughput/{module.head.counted}_per_second": trained / seconds,
            # above 1 where a shared prefix is computed once for many examples
            "throughput/useful_share": useful / computed,
            "throughput/prefix_tokens_saved": useful - (computed - padding),
            "throughput/tflops_per_device": flops / seconds / devices / 1e12,
            "throughput/peak_memory_gib": peak_memory(module.device) / GIB,
        }
        if self._peak:
            figures["throughput/model_flop_utilisation"] = flops / seconds / devices / self._peak
        return figures


def peak_memory(device: torch.device) -> int:
    """Bytes: of the tensors on a GPU since the training started; on the CPU of the whole process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # kilobytes on Linux
