"""The official caption metrics: BLEU-1 to 4, METEOR, ROUGE-L and CIDEr by pycocoevalcap, scorer by scorer.

The official program starts five scorers at once, one of which downloads its models; here nothing is downloaded. BLEU,
ROUGE-L and CIDEr are Python; METEOR and the tokeniser, without which no number is the official one, need Java.

Values are in the official units: CIDEr is 0 to 10, all others 0 to 1. Published tables print them times 100.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.coco_captions.java_programs import Captions, Meteor, find_java, tokenise

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "METEOR", "ROUGE-L", "CIDEr")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@dataclass(frozen=True)
class CaptionScores:
    """Scores by metric.

    Attributes:
        overall: of the whole set; the mean over its images for all but BLEU and METEOR.
        per_image: of each image by its id.
    """

    overall: dict[str, float]
    per_image: dict[str, dict[int, float]]


class CaptionScorer:
    """Scores candidates against references; use it in a `with`, which ends METEOR's process.

    METEOR takes seconds to start and starts when it is first needed, so score many sets with one scorer.

    Args:
        spice: whether SPICE is scored too. Its models must be there; they are never downloaded.

    Raises:
        FileNotFoundError: Java is not there, or SPICE's models are not.
        ValueError: pycocoevalcap is not installed.
    """

    def __init__(self, *, spice: bool = False) -> None:
        self.programs = {"java": find_java(), "package": _package()}
        self.spice = spice
        self.meteor: Meteor | None = None
        if spice:
            _check_spice(self.programs["package"])

    def __enter__(self) -> "CaptionScorer":
        return self

    def __exit__(self, *error: object) -> None:
        if self.meteor is not None:
            self.meteor.close()
            self.meteor = None

    def score(self, candidates: Mapping[int, str], references: Captions) -> CaptionScores:
        """Scores of one set of images.

        Args:
            candidates: a caption by image id; may be empty, which scores 0.
            references: one or more captions of each of these images; those of others are left out.

        Raises:
            ValueError: nothing to score, or a candidate without references.
            ChildProcessError: a Java program failed.
        """
        if not candidates:
            raise ValueError("There are no captions to score.")
        if alone := [id for id in candidates if not references.get(id)]:
            raise ValueError(f"{len(alone)} captions are of images without references, such as image {alone[0]}.")
        # Apart and in this order, as the official program does.
        truth = tokenise({id: references[id] for id in candidates}, **self.programs)
        answers = tokenise({id: [caption] for id, caption in candidates.items()}, **self.programs)
        self.meteor = self.meteor or Meteor(**self.programs)
        results = python_scores(answers, truth) | {"METEOR": self.meteor.score(answers, truth)}
        if self.spice:
            results["SPICE"] = _spice(answers, truth)
        overall, per_image = {}, {}
        for name in sorted(results, key=(*METRICS, "SPICE").index):
            overall[name] = float(results[name][0])
            per_image[name] = dict(zip(candidates, map(float, results[name][1]), strict=True))
        return CaptionScores(overall, per_image)


def python_scores(candidates: Captions, references: Captions) -> dict[str, tuple[float, Sequence[float]]]:
    """BLEU, ROUGE-L and CIDEr of tokenised captions; this part needs no Java.

    Args:
        candidates: one caption by image id.
        references: of the same images in the same order.

    Returns:
        By metric, the score of the set and that of each image.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    overall, per_image = Bleu(4).compute_score(references, candidates, verbose=0)
    return dict(zip(BLEU, zip(overall, per_image, strict=True), strict=True)) | {
        "ROUGE-L": Rouge().compute_score(references, candidates),
        "CIDEr": Cider().compute_score(references, candidates),
    }


def _package() -> Path:
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None:
        raise ValueError('Caption metrics need pycocoevalcap: pip install "llama-adapter[captions]".')
    return Path(next(iter(found.submodule_search_locations)))


def _check_spice(package: Path) -> None:
    folder = package / "spice" / "lib"
    if absent := [name for name in SPICE_MODELS if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"SPICE needs {' and '.join(absent)} in {folder}: they are in stanford-corenlp-full-2015-12-09.zip of "
            "nlp.stanford.edu/software. Put them there, or leave SPICE out (task.evaluation.spice=false)."
        )


def _spice(candidates: Captions, references: Captions) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    overall, each = Spice().compute_score(references, candidates)
    # SPICE answers in the order of the ids.
    values = {id: scores["All"]["f"] for id, scores in zip(sorted(candidates), each, strict=True)}
    return overall, [values[id] for id in candidates]
