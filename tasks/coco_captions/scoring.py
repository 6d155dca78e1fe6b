"""Result files in COCO's format, `[{"image_id": 1, "caption": "..."}]`, and their scores without a model."""

import logging
from collections.abc import Mapping
from pathlib import Path

from llama_adapter.data_files import first, read_json, repeated
from llama_adapter.files import write_json
from tasks.coco_captions.annotations import CaptionedImage, read_images, read_split
from tasks.coco_captions.scorers import METRICS, CaptionScorer, CaptionScores

log = logging.getLogger(__name__)

# LLaMA-Adapter (arXiv 2303.16199), its table of COCO captions: BLEU-4 and CIDEr, times 100.
PUBLISHED = {
    "ClipCap": {"BLEU-4": 33.5, "CIDEr": 113.1},
    "BLIP": {"BLEU-4": 40.4, "CIDEr": 136.7},
    "BLIP-2": {"BLEU-4": 43.7, "CIDEr": 145.3},
    "LLaMA-Adapter": {"BLEU-4": 36.2, "CIDEr": 122.2},
}


class PredictionScoring:
    """Any part of a split may be scored; how much of it was is said.

    Args:
        root: folder of the data set; the other files are relative to it. No images are needed.
        annotations: captions of the images, see `read_images`.
        split_file: which images are in the split, see `read_splits`; all of `annotations` where there is no such file.
            It decides what is counted and checked; scores depend on the predictions' images alone.
        split: of dataset_coco.json; also the first part of the metrics' names.
        spice: whether SPICE is scored too, see `CaptionScorer`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str = "annotations/captions_val2014.json",
        split_file: str | None = None,
        split: str = "test",
        spice: bool = False,
    ) -> None:
        self.root = Path(root)
        self.annotations = annotations
        self.split_file = split_file
        self.split = split
        self.spice = spice

    def __call__(self, path: str | Path, folder: Path) -> dict[str, float]:
        """Scores the file at `path`; the table goes to the log and to `<folder>/scores.txt`.

        Images of the split without a prediction are left out, as the official program does, and counted in the text.

        Returns:
            Metrics by name, `<split>/...`, and how many captions were `scored` and were `empty`.

        Raises:
            FileNotFoundError, ValueError: the predictions or the annotations are not there, not readable, or not of
                each other; Java or pycocoevalcap is missing.
            ChildProcessError: a Java program failed.
        """
        predictions = read_results(path)
        images = read_images(self.root / self.annotations)
        ids = self._split(images)
        if strangers := [id for id in predictions if id not in ids]:
            raise ValueError(
                f"{path} has captions of {len(strangers)} images that are not in {self.split}: {first(strangers)}. Set "
                "task.data.annotations (and task.data.split_file) to the files of the images that they are of."
            )
        scored = {id: caption for id, caption in predictions.items() if id in images}
        if not scored:
            raise ValueError(
                f"{self.root / self.annotations} has captions of none of the {len(predictions)} images of {path}. Set "
                "task.data.annotations to the file that has them."
            )
        if len(scored) < len(predictions):
            log.warning("%d captions are of images that the annotations lack.", len(predictions) - len(scored))
        with CaptionScorer(spice=self.spice) as scorer:
            scores = scorer.score(scored, {id: images[id].captions for id in scored})
        text = report({Path(path).name: scores}, scored, whole=len(ids), split=self.split)
        log.info("\n%s", text)
        (folder / "scores.txt").write_text(text + "\n", encoding="utf-8")
        return metrics(scores, f"{self.split}/") | {
            f"{self.split}/scored": float(len(scored)),
            f"{self.split}/empty": float(empty(scored)),
        }

    def _split(self, images: Mapping[int, CaptionedImage]) -> set[int]:
        if self.split_file is None:
            return set(images)
        try:
            return set(read_split(self.root / self.split_file, self.split))
        except FileNotFoundError:
            log.warning(
                "No split file %s: all %d images of the annotations are taken for the split.",
                self.root / self.split_file,
                len(images),
            )
            return set(images)


def read_results(path: str | Path) -> dict[int, str]:
    """Captions by image id, in the file's order; captions may be empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, of another form, has no caption or two of one image.
    """
    content = read_json(Path(path))
    form = 'COCO\'s form is [{"image_id": 1, "caption": "..."}, ...].'
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} has no captions. {form}")
    for number, result in enumerate(content):
        id, caption = (result.get("image_id"), result.get("caption")) if isinstance(result, dict) else (None, None)
        if not isinstance(id, int) or isinstance(id, bool) or not isinstance(caption, str):
            raise ValueError(f"{path} has {result!r} as its entry {number}. {form}")
    if twice := repeated(result["image_id"] for result in content):
        raise ValueError(f"{path} has more than one caption of {len(twice)} images: {first(twice)}. Keep one of each.")
    return {result["image_id"]: result["caption"] for result in content}


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """In the form that `read_results` and COCO's server read."""
    write_json(path, [{"image_id": id, "caption": caption} for id, caption in captions.items()])


def metrics(scores: CaptionScores, prefix: str) -> dict[str, float]:
    """In the official units: CIDEr is 0 to 10, all others 0 to 1."""
    return {f"{prefix}{name}": value for name, value in scores.overall.items()}


def empty(captions: Mapping[int, str]) -> int:
    return sum(not caption.strip() for caption in captions.values())


def report(rows: Mapping[str, CaptionScores], captions: Mapping[int, str], *, whole: int, split: str) -> str:
    """The table, and what was scored.

    Args:
        rows: scores by the row's name.
        captions: that were scored.
        whole: images of the split.
        split: its name.
    """
    lines = [table({name: scores.overall for name, scores in rows.items()}), ""]
    lines.append(f"{len(captions):,} of the {whole:,} images of {split} were scored.")
    if len(captions) < whole:
        warning = (
            "CIDEr weighs a word by how many of the scored images have it in their captions: on a part of a split it "
            "is not comparable with that of the whole."
        )
        log.warning("%s %s", lines[-1], warning)
        lines[-1] += f" The others are left out, not counted as 0. {warning}"
    if count := empty(captions):
        lines.append(f"{count:,} of the captions are empty; they count, as 0.")
    return "\n".join(lines)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Scores times 100, as published tables print them, and the paper's own rows below."""
    names = [*METRICS, *(["SPICE"] if any("SPICE" in row for row in rows.values()) else [])]
    width = max(map(len, (*rows, *PUBLISHED)))
    lines = [f"{'times 100':<{width}}" + "".join(f"{name:>9}" for name in names)]
    lines += [
        f"{name:<{width}}" + "".join(f"{100 * row[key]:9.2f}" if key in row else f"{'-':>9}" for key in names)
        for name, row in rows.items()
    ]
    lines.append("published (Karpathy's test split, 5,000 images):")
    lines += [
        f"{name:<{width}}" + "".join(f"{row[key]:9.1f}" if key in row else f"{'-':>9}" for key in names)
        for name, row in PUBLISHED.items()
    ]
    return "\n".join(lines)
