"""Scores a file of predictions in ScienceQA's own format, `{"results": {pid: index}}`, without a model."""

import logging
from collections.abc import Sequence
from pathlib import Path

from llama_adapter.data_files import first, read_object
from llama_adapter.files import write_json
from tasks.scienceqa.answers import UNREADABLE
from tasks.scienceqa.metric import accuracy, table
from tasks.scienceqa.problems import LETTERS, Problem, read_problems, read_split

log = logging.getLogger(__name__)


class PredictionScoring:
    """Any part of a split may be scored; how much of it was is said.

    Args:
        root, problems_file, splits_file: see `read_problems`; images are not needed.
        split: that the predictions are of.
    """

    def __init__(
        self,
        root: str,
        *,
        split: str = "test",
        problems_file: str = "problems.json",
        splits_file: str = "pid_splits.json",
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.files = {"problems_file": problems_file, "splits_file": splits_file}

    def __call__(self, path: str | Path, folder: Path) -> dict[str, float]:
        """Scores the file at `path`; the table goes to the log and to `<folder>/scores.txt`.

        Problems of the split without a prediction are left out, and counted in the text. An index that is none of a
        problem's choices is wrong, as an answer that could not be read, and is counted as `unreadable`.

        Returns:
            Metrics by name, `<split>/...`, see `ScienceQAAccuracy`.

        Raises:
            FileNotFoundError, ValueError: the predictions or the problems are not there, not readable, or not of each
                other.
        """
        predictions = read_predictions(path)
        split = set(read_split(self.root, self.split, self.files["splits_file"]))
        if strangers := [pid for pid in predictions if pid not in split]:
            raise ValueError(
                f"{path} has predictions of {len(strangers)} problems that are not in {self.split}: "
                f"{first(strangers)}. Set task.data.test_split to the split that they are of."
            )
        problems = [p for p in read_problems(self.root, self.split, **self.files) if p.pid in predictions]
        if not problems:
            raise ValueError(
                f"{self.root / self.files['problems_file']} has none of the {len(predictions)} problems of {path}. Set "
                "task.data.problems_file to the file that does."
            )
        if len(problems) < len(predictions):
            log.warning(
                "%d of the %d predictions are of problems that the problems file lacks.",
                len(predictions) - len(problems),
                len(predictions),
            )
        values = accuracy(problems, [predictions[problem.pid] for problem in problems])
        text = report(Path(path).name, values, whole=len(split), split=self.split)
        log.info("\n%s", text)
        (folder / "scores.txt").write_text(text + "\n", encoding="utf-8")
        return {f"{self.split}/{name}": value for name, value in values.items()}


def report(name: str, values: dict[str, float], *, whole: int, split: str) -> str:
    """The table, how much of the split was scored, and how many predictions were none of the options.

    Args:
        name: of the row.
        values: of `ScienceQAAccuracy`.
        whole: problems of the split.
        split: its name.
    """
    scored, unreadable = int(values["scored"]), int(values["unreadable"])
    lines = [table({name: values}), "", f"{scored:,} of the {whole:,} problems of {split} were scored."]
    if scored < whole:
        lines[-1] += f" The other {whole - scored:,} are left out, not counted as wrong."
    if unreadable:
        lines.append(f"{unreadable:,} of the predictions are none of their problem's options; they count as wrong.")
    return "\n".join(lines)


def read_predictions(path: str | Path) -> dict[str, int]:
    """Indices of options by problem; a number that is no option of any problem becomes `UNREADABLE`.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or not of this form.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No predictions {path}. Set predictions to a file, .json or .json.gz.")
    results = read_object(path).get("results")
    if not isinstance(results, dict) or not results:
        raise ValueError(f'{path} has no predictions. ScienceQA\'s form is {{"results": {{pid: index, ...}}}}.')
    for pid, index in results.items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise ValueError(f"{path} has {index!r} as the prediction of problem {pid}; it must be a whole number.")
    return {pid: index if 0 <= index < len(LETTERS) else UNREADABLE for pid, index in results.items()}


def write_predictions(path: Path, problems: Sequence[Problem], predictions: Sequence[int]) -> None:
    """In the form that `read_predictions` reads."""
    write_json(path, {"results": {p.pid: index for p, index in zip(problems, predictions, strict=True)}})
