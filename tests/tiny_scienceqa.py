"""A ScienceQA of a few problems in the official layout, and the file of real ones that tests use."""

import gzip
import json
from pathlib import Path

from tasks.scienceqa.problems import SPLITS

REAL = "problems_first1773.json"  # the part of problems.json that the shared folder holds


def record(**changed: object) -> dict:
    """One problem as problems.json holds it."""
    texts = ("hint", "lecture", "solution", "topic", "category", "skill")
    plain = dict.fromkeys(texts, "") | {"question": "Which is a fruit?", "choices": ["apple", "bus"], "answer": 0}
    plain |= {"image": None, "grade": "grade3", "subject": "natural science", "split": "test", "topic": "biology"}
    return plain | changed


def write_scienceqa(folder: Path, problems: dict | None = None, splits: dict | None = None) -> Path:
    """Writes a data set, by default of three problems that are in every split.

    Args:
        folder: gets problems.json and pid_splits.json.
        problems: records by id.
        splits: ids by split.
    """
    problems = problems or {str(number): record() for number in (1, 2, 3)}
    (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    splits = splits or {split: list(problems) for split in SPLITS}
    (folder / "pid_splits.json").write_text(json.dumps(splits), encoding="utf-8")
    return folder


def read_gzipped(path: Path) -> dict:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
