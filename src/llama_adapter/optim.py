"""The optimizer's settings and the paper's schedule: warm-up, then half a cosine, set at every optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

REFERENCE_BATCH = 256  # base learning rates are stated for this global batch (authors' code, after MAE)


@dataclass
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the paper's Alpaca recipe.

    Args:
        base_learning_rate: at a global batch of 256; the peak is this times global batch / 256.
        min_learning_rate: what the cosine ends at, absolute.
        warmup_epochs: epochs of linear warm-up from 0; may be a fraction.
        weight_decay: on prompts and gates alike, as in the authors' run.
        betas: of AdamW.
        other_rate_factor: learning rate of what is trained besides prompts and gates (a head, the projection of
            images), as a multiple of theirs. Prompts start at N(0, 1) and take larger steps than weights do.
    """

    base_learning_rate: float = 9e-3
    min_learning_rate: float = 0.0
    warmup_epochs: float = 2.0
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    other_rate_factor: float = 1.0

    def __post_init__(self) -> None:
        self.betas = tuple(self.betas)
        for key in ("base_learning_rate", "min_learning_rate", "warmup_epochs", "weight_decay", "other_rate_factor"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ValueError(f"optimizer.{key} must be a finite number of at least 0, got {getattr(self, key)}.")
        if not self.base_learning_rate:
            raise ValueError(
                "optimizer.base_learning_rate is 0, so nothing would be trained. Choose a positive number."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers from 0 to below 1, got {list(self.betas)}.")

    def learning_rate(self, global_batch_size: int) -> float:
        """The peak: base rate x global batch / 256 (0.009 x 64 / 256 = 2.25e-3 in the paper's run)."""
        return self.base_learning_rate * global_batch_size / REFERENCE_BATCH


def learning_rate_at(epoch: float, *, peak: float, minimum: float, warmup_epochs: float, epochs: float) -> float:
    """The paper's schedule at a fractional epoch.

    Args:
        epoch: f, epochs seen so far.
        peak, minimum: the learning rates at the end of warm-up and at the end of the run.
        warmup_epochs: W. For f < W: peak * f / W.
        epochs: E. Then minimum + (peak - minimum) * (1 + cos(pi * (f - W) / (E - W))) / 2.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if epochs <= warmup_epochs:  # a run that ends within its warm-up
        return peak
    return minimum + (peak - minimum) * 0.5 * (1 + cos(pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def schedule(
    config: OptimizerConfig, *, peak: float, epochs: float, epoch_fraction: Callable[[int], float]
) -> Callable[[int], float]:
    """The factor on the peak learning rate at each optimizer step, for torch's LambdaLR.

    Args:
        config: warm-up and minimum.
        peak: the learning rate the optimizer was made with.
        epochs: length of the run, in epochs; a fraction when `trainer.max_steps` ends it early.
        epoch_fraction: optimizer step to epochs of examples seen before it.
    """

    def factor(step: int) -> float:
        rate = learning_rate_at(
            epoch_fraction(step),
            peak=peak,
            minimum=config.min_learning_rate,
            warmup_epochs=config.warmup_epochs,
            epochs=epochs,
        )
        return rate / peak

    return factor
