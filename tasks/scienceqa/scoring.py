"""Scores a file of predictions in ScienceQA's own format, `{"results": {pid: index}}`, without a model."""

import logging
from pathlib import Path

import torch

from llama_adapter.files import write_json
from tasks.scienceqa.metric import ScienceQAAccuracy, table
from tasks.scienceqa.problems import SHOWN, Problem, read_object, read_problems, split_size

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

        An index that is none of a problem's choices is wrong, as an answer that could not be read.

        Returns:
            Metrics by name, `<split>/...`.

        Raises:
            FileNotFoundError, ValueError: the predictions or the problems are not there, not readable, or not of each
                other.
        """
        predictions = read_predictions(Path(path))
        problems = read_problems(self.root, self.split, **self.files)
        metric = ScienceQAAccuracy(problems)
        numbers = {problem.pid: number for number, problem in enumerate(problems)}
        if unknown := [pid for pid in predictions if pid not in numbers]:
            self._refuse_unknown(unknown, len(predictions), path)
        scored = {pid: index for pid, index in predictions.items() if pid in numbers}
        metric.update(torch.tensor([numbers[pid] for pid in scored]), torch.tensor(list(scored.values())))
        values = metric.compute()
        whole = split_size(self.root, self.split, self.files["splits_file"])
        text = (
            f"{table({Path(path).name: values})}\n\n"
            f"{len(scored):,} of the {whole:,} problems of {self.split} were scored."
            + ("" if len(scored) == whole else " The others are left out, not counted as wrong.")
        )
        log.info("\n%s", text)
        (folder / "scores.txt").write_text(text + "\n", encoding="utf-8")
        return {f"{self.split}/{name}": value for name, value in values.items()}

    def _refuse_unknown(self, unknown: list[str], given: int, path: str | Path) -> None:
        """Predictions of the split's other problems are passed over with a word; those of no problem are an error."""
        whole = {str(pid) for pid in read_object(_existing(self.root / self.files["splits_file"]))[self.split]}
        strangers = [pid for pid in unknown if pid not in whole]
        if strangers:
            shown = ", ".join(strangers[:SHOWN]) + (", ..." if len(strangers) > SHOWN else "")
            raise ValueError(
                f"{path} has predictions for {len(strangers)} problems that are not in {self.split}: {shown}. "
                "Set task.data.test_split to the split they are of."
            )
        log.warning("%d of the %d predictions are for problems that the problems file lacks.", len(unknown), given)


def _existing(path: Path) -> Path:
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def read_predictions(path: Path) -> dict[str, int]:
    """Indices of options by problem; -1 or any other number that is no choice counts as wrong.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or not of this form.
    """
    results = read_object(path).get("results")
    if not isinstance(results, dict) or not results:
        raise ValueError(f'{path} has no predictions. ScienceQA\'s form is {{"results": {{pid: index, ...}}}}.')
    for pid, index in results.items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise ValueError(f"{path} has {index!r} as the prediction of problem {pid}; it must be a whole number.")
    return {pid: max(index, -1) for pid, index in results.items()}


def write_predictions(path: Path, problems: list[Problem], predictions: list[int]) -> None:
    """In the form that `read_predictions` reads."""
    write_json(path, {"results": {p.pid: index for p, index in zip(problems, predictions, strict=True)}})
