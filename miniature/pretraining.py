"""What the miniature's four pretrainings share: two optimizers, one loop, files that are renamed into place.

Muon for the matrices of the layers and AdamW for the rest: with AdamW alone these small models need several times the
steps. Whether that is Muon's doing was not separated from other changes.
"""

import argparse
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

log = logging.getLogger(__name__)


class Pretraining(lightning.LightningModule):
    """A loss, stepped by both optimizers.

    Args:
        model: whose matrices under a name with `.layers.` or `.layer.` are Muon's.
        loss: of the model and a batch.
        rate: factor on both learning rates at a step, from 0.
        steps: of the whole training.
        muon_rate, adamw_rate: highest learning rates.
        betas, weight_decay: of AdamW.
        log_every: steps between two lines; a progress bar says nothing in a file.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, object], Tensor],
        rate: Callable[[int], float],
        *,
        steps: int,
        muon_rate: float,
        adamw_rate: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.rate, self.steps = model, loss, rate, steps
        self.muon = {"lr": muon_rate, "weight_decay": 0.01, "adjust_lr_fn": "original"}
        self.adamw = {"lr": adamw_rate, "betas": betas, "weight_decay": weight_decay}
        self.log_every = log_every
        self.automatic_optimization = False

    def training_step(self, batch: object, step: int) -> None:
        loss = self.loss(self.model, batch)
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        self.log("loss", loss, prog_bar=True)
        if step % self.log_every == 0:
            log.info("step %d of %d: loss %.3f", step, self.steps, loss.item())

    def configure_optimizers(self) -> tuple[list, list]:
        in_layers = (p for name, p in self.model.named_parameters() if ".layers." in name or ".layer." in name)
        matrices = [parameter for parameter in in_layers if parameter.ndim == 2]
        chosen = set(matrices)
        rest = [parameter for parameter in self.model.parameters() if parameter not in chosen]
        optimizers = [torch.optim.Muon(matrices, **self.muon), torch.optim.AdamW(rest, **self.adamw)]
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate) for optimizer in optimizers]


def trapezoid(steps: int, *, warmup_steps: int, decay_share: float) -> Callable[[int], float]:
    """Linear warm-up, constant, linear decay over the last share of the steps."""

    def rate(step: int) -> float:
        decay = (steps - step) / (steps * decay_share)
        return min(1.0, (step + 1) / warmup_steps, max(decay, 0.0))

    return rate


def half_cosine(steps: int, *, warmup_steps: int) -> Callable[[int], float]:
    """Linear warm-up on top of half a cosine."""
    return lambda step: min(1.0, (step + 1) / warmup_steps) * (1 + math.cos(math.pi * step / steps)) / 2


def pretrain(pretraining: Pretraining, batches: IterableDataset) -> None:
    """Trains on the CPU, without files."""
    trainer = lightning.Trainer(
        max_steps=2 * pretraining.steps,  # Lightning counts the steps of both optimizers
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(pretraining, DataLoader(batches, batch_size=None))


def write_folder(output: Path, write: Iterable[Callable[[Path], object]]) -> None:
    """Calls each function with a temporary folder; what they wrote is then renamed into place."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        for call in write:
            call(Path(temporary))
        for path in sorted(Path(temporary).iterdir()):
            path.chmod(0o644)
            os.replace(path, output / path.name)


def run(main: Callable[[int, Path], None], *, description: str, steps: int, output: Path) -> None:
    """The command line of a pretraining: `--steps` and `--output`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps, help=f"optimizer steps ({steps}; fewer for a quick look)")
    parser.add_argument("--output", type=Path, default=output, help="folder to write to")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
