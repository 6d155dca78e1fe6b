"""Classifies every picture that a run is measured by, and writes down how."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel

from llama_adapter.gallery import Card, write_gallery
from llama_adapter.shares import in_shares
from tasks.vtab1k.data import PictureDataset, VtabDataModule
from tasks.vtab1k.metric import accuracy
from tasks.vtab1k.scoring import write_predictions

log = logging.getLogger(__name__)


class VtabEvaluation:
    """Accuracy in per cent: `test/accuracy`, or `val/accuracy` where the protocol leaves the test pictures alone.

    Args:
        batch_size: pictures that pass the model together. Workers (`data.num_workers`) decode the next ones meanwhile.
        gallery: pictures on the HTML page, spread over the list; 0 writes none.
    """

    def __init__(self, *, batch_size: int = 64, gallery: int = 60) -> None:
        self.batch_size = batch_size
        self.gallery = gallery

    def __call__(self, model: PreTrainedModel, data: VtabDataModule, folder: Path) -> dict[str, float]:
        """Scores the test part, or the validation part where there is no test.

        Args:
            model: with a classification head.
            data: set up.
            folder: gets `predictions.json` and `predictions.html`.

        Returns:
            `<part>/accuracy` and the count `<part>/scored`.
        """
        dataset, part = data.scored_dataset, "test" if len(data.test_dataset) else "val"
        chosen = in_shares(model, range(len(dataset)), lambda share: self._classes(model, data, share))
        values = accuracy([picture.label for picture in dataset.pictures], chosen)
        self._write(dataset, chosen, f"{data.folder.name}, {part}", folder)
        return {f"{part}/{name}": value for name, value in values.items()}

    @torch.no_grad()
    def _classes(self, model: PreTrainedModel, data: VtabDataModule, share: Sequence[int]) -> list[int]:
        if not share:
            return []
        loader = DataLoader(
            Subset(data.scored_dataset, share),
            batch_size=self.batch_size,
            collate_fn=data.collator,
            num_workers=data.batches.num_workers,
            pin_memory=model.device.type == "cuda",
        )
        model.eval()
        # Nothing waits for the device before the end.
        inputs = (batch["pixel_values"].to(model.device, model.dtype, non_blocking=True) for batch in loader)
        return torch.cat([model(pixel_values=pixels).logits.argmax(dim=-1) for pixels in inputs]).tolist()

    @rank_zero_only
    def _write(self, dataset: PictureDataset, chosen: Sequence[int], title: str, folder: Path) -> None:
        write_predictions(folder / "predictions.json", dataset.pictures, chosen)
        if not self.gallery:
            return
        cards = []
        for number in range(0, len(dataset), math.ceil(len(dataset) / self.gallery)):
            picture = dataset.pictures[number]
            facts = [("predicted", str(chosen[number])), ("label", str(picture.label))]
            right = chosen[number] == picture.label
            cards.append(Card(picture.name, facts, right, dataset.path(number)))
        right = sum(label == picture.label for label, picture in zip(chosen, dataset.pictures, strict=True))
        summary = f"{right} of {len(dataset)} pictures are right. The page shows {len(cards)}, spread over the list."
        write_gallery(folder / "predictions.html", cards, title=title, summary=summary)
