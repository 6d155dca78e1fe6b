"""Scores files of predictions in SQuAD's own format, `{id: text}`, without a model."""

import logging
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from llama_adapter.data_files import first, read_object
from tasks.squad.metric import NO_ANSWER_THRESHOLD, SquadScores
from tasks.squad.records import check_version, questions_of, read_articles, shortened, squad_file

log = logging.getLogger(__name__)

# LLaMA-Adapter (arXiv 2303.16199), its table of SQuAD with RoBERTa-large: exact match and F1 on the dev sets.
PUBLISHED = {
    "v1.1": {
        "full fine-tuning": (88.9, 94.6),
        "prompt tuning": (1.2, 12.0),
        "P-tuning v2": (88.5, 94.4),
        "zero-init attention": (88.8, 94.6),
    },
    "v2.0": {
        "full fine-tuning": (86.5, 89.4),
        "prompt tuning": (50.2, 50.2),
        "P-tuning v2": (82.1, 85.5),
        "zero-init attention": (83.9, 87.2),
    },
}


class PredictionScoring:
    """The official numbers of a file of predictions.

    Args:
        root: folder of the data set.
        version: v1.1 or v2.0.
        file: questions and answers, relative to the root; `.json`, or the same gzipped.
        na_threshold: a question whose no-answer probability is above it is answered with nothing. Not used without
            such probabilities.
    """

    def __init__(self, root: str | Path, *, version: str, file: str, na_threshold: float = NO_ANSWER_THRESHOLD) -> None:
        check_version(version)
        self.root = Path(root)
        self.version = version
        self.file = file
        self.na_threshold = na_threshold

    def __call__(self, path: str | Path, folder: Path, *, na_probs: str | Path | None = None) -> dict[str, float]:
        """Scores the file at `path`; the table goes to the log and to `<folder>/scores.txt`.

        As in the official scripts, predictions of other questions are passed over (here with a warning), and a question
        without a prediction counts as 0 in v1.1 and is an error in v2.0.

        Args:
            path: of the predictions, `.json` or `.json.gz`.
            folder: gets `scores.txt`.
            na_probs: a file of no-answer probabilities, `{id: number}` (v2.0).

        Returns:
            By the official names, see `SquadScores`.

        Raises:
            FileNotFoundError, ValueError: a file is not there, not readable, or not of the others.
        """
        if na_probs is not None and self.version == "v1.1":
            raise ValueError(f"na_probs is {na_probs}, but every question of v1.1 has an answer. Leave it out.")
        predictions = read_predictions(path)
        probabilities = None if na_probs is None else read_na_probs(na_probs)
        source = squad_file(self.root, self.file, "test_file")
        questions = list(questions_of(read_articles(source, self.version)))
        numbers = {question.id: number for number, question in enumerate(questions)}
        known = [id for id in predictions if id in numbers]
        if not known:
            raise ValueError(
                f"{source} has none of the {len(predictions)} questions of {path}. Set task.data.test_file to the file "
                "that does."
            )
        if len(known) < len(predictions):
            log.warning("%d of the %d predictions are of no question.", len(predictions) - len(known), len(predictions))
        if probabilities is not None and (absent := [id for id in known if id not in probabilities]):
            raise ValueError(f"{na_probs} has no number for {len(absent)} of the predictions: {first(absent)}.")
        scores = SquadScores(questions, self.version, na_threshold=self.na_threshold)
        places = {} if probabilities is None else {id: place for place, id in enumerate(probabilities)}
        scores.update(
            [numbers[id] for id in known],
            [predictions[id] for id in known],
            None if probabilities is None else [probabilities[id] for id in known],
            None if probabilities is None else [places[id] for id in known],
        )
        values = scores.compute()
        text = report(Path(path).name, values, self.version, questions=len(questions), missing=scores.missing)
        log.info("\n%s", text)
        (folder / "scores.txt").write_text(text + "\n", encoding="utf-8")
        return values


def report(name: str, values: Mapping[str, float], version: str, *, questions: int, missing: list[str]) -> str:
    """The table, and how many questions were scored.

    Args:
        name: of the row.
        values: of `SquadScores`.
        questions: how many there are.
        missing: ids of those without a prediction.
    """
    lines = [table({name: values}, version), ""]
    lines.append(f"{questions - len(missing):,} of the {questions:,} questions have a prediction.")
    if missing:
        lines[-1] += f" The other {len(missing):,} count as 0: {first(missing)}."
    for key, title in (("exact", "exact match"), ("f1", "F1")):
        if f"best_{key}" in values:
            threshold = values[f"best_{key}_thresh"]
            lines.append(f"The best {title} over all thresholds is {values[f'best_{key}']:.2f}, at {threshold:.6g}.")
    return "\n".join(lines)


def table(rows: Mapping[str, Mapping[str, float]], version: str) -> str:
    """Exact match and F1 in per cent, the paper's own rows below them.

    Args:
        rows: metrics by the row's name.
        version: v1.1 or v2.0; v2.0 has the questions with an answer and those without one in columns too.
    """
    exact = "exact_match" if version == "v1.1" else "exact"
    columns = {"EM": exact, "F1": "f1"}
    if version == "v2.0":
        columns |= {"HasAns EM": "HasAns_exact", "HasAns F1": "HasAns_f1", "NoAns": "NoAns_exact"}
    width = max(map(len, (*rows, *PUBLISHED[version])))
    lines = [" " * width + "".join(f"{title:>11}" for title in columns)]
    for name, values in rows.items():
        cells = (f"{values[key]:11.2f}" if key in values else f"{'-':>11}" for key in columns.values())
        lines.append(f"{name:<{width}}" + "".join(cells))
    lines.append(f"published (RoBERTa-large, dev set of {version}):")
    for name, row in PUBLISHED[version].items():
        lines.append(f"{name:<{width}}" + "".join(f"{value:11.1f}" for value in row))
    return "\n".join(lines)


def read_predictions(path: str | Path) -> dict[str, str]:
    """Texts by id, "" for no answer.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or not of this form.
    """
    predictions = _read(path, "predictions", '{"<id>": "<text>", ...}')
    for id, text in predictions.items():
        if not isinstance(text, str):
            raise ValueError(f"{path} has {shortened(text)} as the prediction of {id}; it must be a text.")
    return predictions


def read_na_probs(path: str | Path) -> dict[str, float]:
    """How sure a predictor is that a question has no answer, by id: probabilities, or any other scale.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or not of this form.
    """
    values = _read(path, "na_probs", '{"<id>": <number>, ...}')
    for id, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            raise ValueError(f"{path} has {shortened(value)} for {id}; it must be a number.")
    return values


def _read(path: str | Path, key: str, form: str) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Set {key} to a file, .json or .json.gz.")
    content = read_object(path)
    if not content:
        raise ValueError(f"{path} is empty. Its form is {form}.")
    return content
