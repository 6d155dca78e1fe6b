"""The official caption metrics: BLEU-1 to 4, METEOR, ROUGE-L and CIDEr by pycocoevalcap, each scorer called by itself.

The official program loads five scorers at once, one of which downloads its models; here nothing is downloaded. Two parts
are Java programs in the package's folder and are run from there: the Penn Treebank tokeniser, without which no number is
the official one, and METEOR. BLEU, ROUGE-L and CIDEr are Python.

Values are in the official units: CIDEr is 0 to 10, all others 0 to 1. Published tables print them times 100.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "METEOR", "ROUGE-L", "CIDEr")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SEPARATOR = "|||"  # of METEOR's fields
# pycocoevalcap's command lines, in UTF-8 whatever the locale is.
TOKENISER = ("-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
METEOR = ("-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")

Captions = Mapping[int, Sequence[str]]


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
        self.java = find_java()
        self.package = _package()
        self.spice = spice
        self.meteor: _Meteor | None = None
        if spice:
            _check_spice(self.package)

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
            references: one or more captions of each of these images; others are left out.

        Raises:
            ValueError: nothing to score, or a candidate without references.
            ChildProcessError: a Java program failed.
        """
        if not candidates:
            raise ValueError("There are no captions to score.")
        if alone := [id for id in candidates if not references.get(id)]:
            raise ValueError(f"{len(alone)} captions are of images without references, such as image {alone[0]}.")
        # The tokeniser looks across lines, so the order (of the candidates) and the two runs are the official ones.
        tokenised = self.tokenise({id: references[id] for id in candidates})
        answers = self.tokenise({id: [caption] for id, caption in candidates.items()})
        if self.meteor is None:
            self.meteor = _Meteor(self.java, self.package / "meteor")
        results = python_scores(answers, tokenised) | {"METEOR": self.meteor.score(answers, tokenised)}
        if self.spice:
            results["SPICE"] = _spice(answers, tokenised)
        results = {name: results[name] for name in (*METRICS, "SPICE") if name in results}
        return CaptionScores(
            overall={name: float(overall) for name, (overall, _) in results.items()},
            per_image={name: dict(zip(candidates, map(float, each), strict=True)) for name, (_, each) in results.items()},
        )

    def tokenise(self, captions: Captions) -> dict[int, list[str]]:
        """Captions in lower case, their tokens between blanks, without punctuation.

        Raises:
            ChildProcessError: the tokeniser failed.
        """
        from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

        # Any line break in a caption, of which Unicode has several, would shift all that follow.
        lines = [" ".join(caption.splitlines()) for group in captions.values() for caption in group]
        run = subprocess.run(
            [self.java, "-Dfile.encoding=UTF-8", *TOKENISER],
            cwd=self.package / "tokenizer",
            input="\n".join([*lines, ""]).encode(),
            capture_output=True,
            check=False,
        )
        made = run.stdout.decode().split("\n")[: len(lines)]
        if run.returncode or len(made) < len(lines):
            raise ChildProcessError(_failure("The tokeniser", f"gave {len(made)} of {len(lines)} captions", run.stderr))
        texts = iter(" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in made)
        return {id: [next(texts) for _ in group] for id, group in captions.items()}


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
    bleu = dict(zip(BLEU, zip(overall, per_image, strict=True), strict=True))
    return bleu | {
        "ROUGE-L": Rouge().compute_score(references, candidates),
        "CIDEr": Cider().compute_score(references, candidates),
    }


def find_java() -> str:
    """The Java program: of JAVA_HOME, or on the search path.

    Raises:
        FileNotFoundError: says how to install it.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home, "bin")) if home else None) or shutil.which("java")
    if found is None:
        raise FileNotFoundError(
            "Java is not found. The official tokeniser and METEOR are Java programs, and no caption metric is comparable "
            "without that tokeniser. Install a Java runtime (apt install default-jre-headless, or conda install openjdk) "
            "or set JAVA_HOME to one."
        )
    return found


class _Meteor:
    """METEOR's process. It is asked line by line and answers line by line."""

    def __init__(self, java: str, folder: Path) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115: open as long as the process; a pipe could fill up
        self.process = subprocess.Popen(
            [java, "-Dfile.encoding=UTF-8", *METEOR],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
        )

    def score(self, candidates: Captions, references: Captions) -> tuple[float, list[float]]:
        """The score of the set and of each image."""
        statistics = [
            self._ask(f" {SEPARATOR} ".join(("SCORE", *map(_field, references[id]), _field(candidate))))
            for id, (candidate,) in candidates.items()
        ]
        each = [float(self._ask(f" {SEPARATOR} ".join(("EVAL", *statistics)))), *(self._answer() for _ in statistics)]
        return float(each[-1]), [float(value) for value in each[:-1]]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _ask(self, line: str) -> str:
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said is in the error below
        return self._answer()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise ChildProcessError(_failure("METEOR", "ended before it had scored all captions", self.errors.read()))
        return line.strip()


def _field(text: str) -> str:
    return text.replace(SEPARATOR, "").replace("  ", " ")


def _failure(program: str, what: str, errors: bytes) -> str:
    said = errors.decode(errors="replace").strip().split("\n")[-1]
    return f"{program} (a Java program) {what}. Its last words: {said or 'none'}. Is there memory for Java, about 2 GB?"


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
            "nlp.stanford.edu/software. Put them there, or leave SPICE out (task.scoring.spice=false)."
        )


def _spice(candidates: Captions, references: Captions) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    overall, each = Spice().compute_score(references, candidates)
    # SPICE answers in the order of the ids.
    values = {id: scores["All"]["f"] for id, scores in zip(sorted(candidates), each, strict=True)}
    return overall, [values[id] for id in candidates]
