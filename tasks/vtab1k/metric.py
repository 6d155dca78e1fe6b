"""Accuracy over pictures, in per cent: VTAB's measure, every picture counts the same (micro average)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

NOT_SCORED = -1


class PictureAccuracy(Metric):
    """Accuracy over the pictures that were scored, whatever part of a list they are.

    The state is one prediction per picture, and devices are joined by the largest, of which `NOT_SCORED` is below all
    others. So a picture that a sampler gives to two devices counts once; sums of right answers would count it twice.

    Args:
        labels: of the pictures whose predictions may come.
        options: of `torchmetrics.Metric`, as `sync_on_compute=False` where every device has all predictions.
    """

    full_state_update = False
    predictions: Tensor

    def __init__(self, labels: Sequence[int], **options: bool) -> None:
        super().__init__(**options)
        self.register_buffer("labels", torch.tensor(labels, dtype=torch.long), persistent=False)
        unscored = torch.full((len(labels),), NOT_SCORED, dtype=torch.long)
        self.add_state("predictions", unscored, dist_reduce_fx="max")

    def update(self, numbers: Tensor, predictions: Tensor) -> None:
        """Takes predictions.

        Args:
            numbers: [B], indices of the pictures.
            predictions: [B], classes.
        """
        self.predictions[numbers.to(self.predictions.device)] = predictions.to(self.predictions.device)

    def compute(self) -> dict[str, float]:
        """`accuracy` in per cent, and the count `scored`."""
        scored = self.predictions != NOT_SCORED
        right, count = (self.predictions == self.labels).sum().item(), scored.sum().item()
        return {"accuracy": 100 * right / max(count, 1), "scored": float(count)}


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """`PictureAccuracy` of one prediction, which every device has, per picture."""
    metric = PictureAccuracy(labels, sync_on_compute=False)
    metric.update(torch.arange(len(labels)), torch.tensor(predictions))
    return metric.compute()
