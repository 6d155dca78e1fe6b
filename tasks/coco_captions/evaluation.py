"""Captions of the test images, with the adapter and without it, and their official scores."""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from transformers import PreTrainedModel

from llama_adapter.attach import adapter_disabled, adapters
from llama_adapter.gallery import Card, write_gallery
from llama_adapter.generation import generate
from llama_adapter.shares import in_shares
from llama_adapter.vision import image_contexts
from tasks.coco_captions.annotations import CaptionedImage
from tasks.coco_captions.data import CocoCaptionsDataModule
from tasks.coco_captions.scorers import CaptionScorer, CaptionScores
from tasks.coco_captions.scoring import empty, metrics, report, write_results

log = logging.getLogger(__name__)

FILES = {"adapted": "captions.json", "without image": "captions_without_image.json", "frozen": "captions_frozen.json"}
# Tags of the gallery: CIDEr of an image from this value on.
CIDER_TAGS = ((1.0, "CIDEr 1 or more"), (0.5, "CIDEr 0.5 to 1"), (0.0, "CIDEr below 0.5"))

Result = TypeVar("Result")


class CaptionEvaluation:
    """Captions every image of the test split and scores the captions.

    Three ways: by the adapted model; by the adapted model that is not shown the image, which says what it has learned
    of captions in general; and by the frozen model, which sees no images either. Without an image every prompt is the
    same, and so is every caption.

    Args:
        max_new_tokens: length limit of a caption.
        batch_size: captions decoded together.
        num_beams: 1 is greedy; the paper's is not published.
        score: whether the captions are scored; without it they are written alone, for a machine without Java.
        spice: whether SPICE is scored too, see `CaptionScorer`.
        gallery: images on the HTML page, spread over the split; 0 writes none.

    Raises:
        FileNotFoundError, ValueError: Java, pycocoevalcap or SPICE's models are missing.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int = 40,
        batch_size: int = 32,
        num_beams: int = 1,
        score: bool = True,
        spice: bool = False,
        gallery: int = 60,
    ) -> None:
        self.decoding = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "num_beams": num_beams}
        self.scorer = CaptionScorer(spice=spice) if score else None
        self.gallery = gallery

    def __call__(self, model: PreTrainedModel, data: CocoCaptionsDataModule, folder: Path) -> dict[str, float]:
        """Scores the test split.

        Args:
            model: attached, or bare to score the frozen model alone.
            data: set up.
            folder: gets `captions.json` and `captions_frozen.json` (COCO's form), `scores.txt` and `captions.html`.

        Returns:
            Metrics by name: `test/...`, `test/CIDEr_without_image` and `test/frozen_...`.
        """
        images = data.test_images
        if not images:
            return {}
        captions: dict[str, dict[int, str]] = {}
        if adapters(model):
            captions["adapted"] = self._captions(model, data, images, seen=data.images is not None)
            if data.images is not None:
                captions["without image"] = self._captions(model, data, images, seen=False)
        with adapter_disabled(model):
            captions["frozen"] = self._captions(model, data, images, seen=False)
        return _on_first_device(lambda: self._finish(data, captions, folder))

    def _captions(
        self, model: PreTrainedModel, data: CocoCaptionsDataModule, images: Sequence[CaptionedImage], *, seen: bool
    ) -> dict[int, str]:
        def answer(share: Sequence[CaptionedImage]) -> list[str]:
            prompts = [data.prompt()] * len(share)
            context = image_contexts(model, share, data.image_columns) if seen else None
            return generate(model, data.tokenizer, prompts, context=context, **self.decoding)

        texts = in_shares(model, images, answer) if seen else answer(images[:1]) * len(images)
        return {image.id: " ".join(text.split()) for image, text in zip(images, texts, strict=True)}

    def _finish(
        self, data: CocoCaptionsDataModule, captions: Mapping[str, Mapping[int, str]], folder: Path
    ) -> dict[str, float]:
        for kind, texts in captions.items():
            write_results(folder / FILES[kind], texts)
        if self.scorer is None:
            log.info("The captions are in %s; score them with evaluate.py predictions=<file>.", folder)
            return {}
        references = {image.id: image.captions for image in data.test_images}
        with self.scorer as scorer:
            scores = {kind: scorer.score(texts, references) for kind, texts in captions.items()}
        best = next(iter(captions))
        text = report(scores, captions[best], whole=len(references), split="test")
        log.info("\n%s", text)
        (folder / "scores.txt").write_text(text + "\n", encoding="utf-8")
        if self.gallery:
            self._write_gallery(data, captions, scores[best], folder / "captions.html")
        values = {}
        if "adapted" in scores:
            values |= metrics(scores["adapted"], "test/") | {"test/empty": float(empty(captions["adapted"]))}
        if "without image" in scores:
            values["test/CIDEr_without_image"] = scores["without image"].overall["CIDEr"]
        return values | metrics(scores["frozen"], "test/frozen_")

    def _write_gallery(
        self,
        data: CocoCaptionsDataModule,
        captions: Mapping[str, Mapping[int, str]],
        scores: CaptionScores,
        path: Path,
    ) -> None:
        images = data.test_images[:: ceil(len(data.test_images) / self.gallery)]
        best, cards = next(iter(captions)), []
        for image in images:
            file = data.folder / image.path
            cider = scores.per_image["CIDEr"][image.id]
            facts = [(kind, texts[image.id]) for kind, texts in captions.items() if kind != best]
            facts += [(f"reference {number}", caption) for number, caption in enumerate(image.captions, start=1)]
            facts.append(("CIDEr", f"{cider:.2f}"))
            tag = next(tag for least, tag in CIDER_TAGS if cider >= least)
            cards.append(Card(captions[best][image.id], facts, image=file if file.is_file() else None, tags=[tag]))
        summary = f"{len(cards)} of {len(data.test_images)} images, captioned by the {best} model."
        write_gallery(path, cards, title="COCO captions", summary=summary)


def _on_first_device(work: Callable[[], Result]) -> Result:
    """The result of work that one device does, on every device."""
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    result = [work() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(result)
    return result[0]
