"""Files of predictions, `{"images/test/1.jpg": 3, ...}`, and their scores without a model."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_adapter.data_files import first
from llama_adapter.files import write_json
from tasks.vtab1k.lists import Picture, check_count, read_list
from tasks.vtab1k.metric import accuracy

log = logging.getLogger(__name__)

FORM = 'The form is {"images/test/<name>.jpg": <label>, ...}.'


class PredictionScoring:
    """Any part of the test list may be scored; how much of it was is said.

    Args:
        root, data_set, classes, counts: see `VtabDataModule`; pictures are not needed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        data_set: str,
        classes: int,
        counts: Mapping[str, int | Sequence[int] | None] | None = None,
    ) -> None:
        self.path = Path(root) / data_set / "test.txt"
        self.classes = classes
        self.expected = (counts or {}).get("test")

    def __call__(self, path: str | Path, folder: Path) -> dict[str, float]:
        """Scores the file at `path`; the text goes to the log and to `<folder>/scores.txt`.

        Returns:
            `test/accuracy` in per cent, and the count `test/scored`.

        Raises:
            FileNotFoundError, ValueError: the predictions or the list are not there, not readable, or not of each
                other.
        """
        predictions = read_predictions(Path(path), self.classes)
        listed = read_list(self.path, classes=self.classes)
        check_count(self.path, len(listed), self.expected)
        if strangers := sorted(predictions.keys() - {picture.name for picture in listed}):
            raise ValueError(
                f"{path} has predictions of {len(strangers)} pictures that are not in {self.path}: {first(strangers)}. "
                "Set task.data.data_set to the one that they are of."
            )
        scored = [picture for picture in listed if picture.name in predictions]
        values = accuracy([picture.label for picture in scored], [predictions[picture.name] for picture in scored])
        text = f"{Path(path).name}: {values['accuracy']:.2f} per cent of {len(scored):,} pictures are right."
        if left_out := len(listed) - len(scored):
            text += f" The other {left_out:,} of the list have no prediction and are left out, not counted as wrong."
        log.info("\n%s", text)
        (folder / "scores.txt").write_text(text + "\n", encoding="utf-8")
        return {f"test/{name}": value for name, value in values.items()}


def read_predictions(path: Path, classes: int) -> dict[str, int]:
    """Labels by picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another form, or has a label that is no class.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No predictions {path}. Set predictions to a file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Is it cut off?") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} has no predictions. {FORM}")
    for name, label in content.items():
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            raise ValueError(f"{path} predicts {label!r} for {name}; it must be a whole number of 0 to {classes - 1}.")
    return content


def write_predictions(path: Path, pictures: Sequence[Picture], predictions: Sequence[int]) -> None:
    """In the form that `read_predictions` reads."""
    write_json(path, {picture.name: label for picture, label in zip(pictures, predictions, strict=True)})
