"""Reads ScienceQA in its official layout: problems.json, pid_splits.json, images/<split>/<pid>/image.png.

Every file may be gzipped (`problems.json.gz`). `captions.json`, machine-made descriptions of the images, is read only
where it is asked for.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_adapter.data_files import first, read_object, repeated

SPLITS = ("train", "val", "test", "trainval", "minitrain", "minival", "minitest")
LETTERS = "ABCDE"  # no problem has more choices
TEXTS = ("question", "hint", "grade", "subject", "topic", "category", "skill", "lecture", "solution", "split")
SUBJECTS = ("natural science", "social science", "language science")
FOLDERS = ("train", "val", "test")  # of images: the other splits are made of these

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One question.

    Attributes:
        pid: its number in problems.json, a text.
        question, hint, lecture, solution: texts; all but the question may be empty.
        choices: two to five texts.
        answer: index of the right one.
        image: a file name, or None.
        caption: what captions.json says of the image; empty without one.
        grade: grade1 to grade12.
        subject, topic, category, skill: what it is about, from wide to narrow.
        split: train, val or test; the folder of its image.
    """

    pid: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    image: str | None
    caption: str
    grade: str
    subject: str
    topic: str
    category: str
    skill: str
    lecture: str
    solution: str
    split: str

    def image_path(self, root: Path) -> Path | None:
        return root / "images" / self.split / self.pid / self.image if self.image else None


def read_problems(
    root: str | Path,
    split: str,
    *,
    problems_file: str = "problems.json",
    splits_file: str = "pid_splits.json",
    captions_file: str | None = None,
) -> list[Problem]:
    """The problems of a split, in its order.

    Args:
        root: folder of the data set; the files are named relative to it.
        split: one of `SPLITS`.
        problems_file: may hold a part of the split only; a warning then says how many it holds.
        captions_file: None for problems without captions. An image that the file does not describe has none either.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown split, a file that is cut off or has other contents, or a problem that is none; the file
            and the problem are named.
    """
    root = Path(root)
    pids = read_split(root, split, splits_file)
    records = _read(root / problems_file, "problems_file")
    captions = {} if captions_file is None else _captions(root / captions_file)
    known = [pid for pid in pids if pid in records]
    if not known:
        raise ValueError(
            f"{root / problems_file} holds none of the {len(pids)} problems of {split} ({first(pids)}). Set "
            "task.data.problems_file to the file that does."
        )
    if absent := [pid for pid in pids if pid not in records]:
        counts = f"{len(known)} of the {len(pids)} problems of {split}"
        log.warning("%s holds %s; it lacks %s.", root / problems_file, counts, first(absent))
    return [_problem(pid, records[pid], captions.get(pid, ""), root / problems_file) for pid in known]


def read_split(root: str | Path, split: str, splits_file: str = "pid_splits.json") -> list[str]:
    """The ids of a whole split, whatever the problems file holds of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown split, or a file that does not have it or names one of its problems twice.
    """
    if split not in SPLITS:
        raise ValueError(f"ScienceQA has no split {split!r}. Choose {', '.join(SPLITS)}.")
    path = Path(root) / splits_file
    splits = _read(path, "splits_file")
    if not isinstance(splits.get(split), list):
        raise ValueError(f"{path} has no list {split!r}. It has {', '.join(splits)}.")
    pids = [str(pid) for pid in splits[split]]
    if twice := repeated(pids):
        raise ValueError(f"{path} names problems of {split} more than once: {first(twice)}.")
    return pids


def missing_images(problems: Iterable[Problem], root: Path) -> list[Path]:
    """The image files that problems name and that are not there."""
    paths = (problem.image_path(root) for problem in problems)
    return [path for path in paths if path is not None and not path.is_file()]


def check_images(problems: Sequence[Problem], root: Path) -> None:
    """Refuses to begin without all images.

    Raises:
        FileNotFoundError: names the missing ones.
    """
    if missing := missing_images(problems, root):
        raise FileNotFoundError(
            f"{len(missing)} of {sum(problem.image is not None for problem in problems)} images are missing: "
            f"{first([str(path) for path in missing])}. Set task.data.root to the folder that holds images/, or "
            "task.data.images=false to train without them."
        )


def _problem(pid: str, record: object, caption: object, path: Path) -> Problem:
    where = f"{path}, problem {pid}"
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no object.")
    if absent := [key for key in ("choices", "answer", "image", *TEXTS) if key not in record]:
        raise ValueError(f"{where} has no {first(absent)}.")
    for key in TEXTS:
        if not isinstance(record[key], str):
            raise ValueError(f"{where} has {record[key]!r} as its {key}; it must be a text.")
    choices, answer, image = record["choices"], record["answer"], record["image"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where} has {choices!r} as its choices; they must be a list of texts.")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{where} has {len(choices)} choices; it must have 2 to {len(LETTERS)}.")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"{where} has the answer {answer!r}, but its choices are 0 to {len(choices) - 1}.")
    if image is not None and not isinstance(image, str):
        raise ValueError(f"{where} has {image!r} as its image; it must be a file name or null.")
    if record["subject"] not in SUBJECTS:
        raise ValueError(f"{where} has the subject {record['subject']!r}. ScienceQA has {', '.join(SUBJECTS)}.")
    if record["grade"] not in {f"grade{number}" for number in range(1, 13)}:
        raise ValueError(f"{where} has the grade {record['grade']!r}; it must be grade1 to grade12.")
    if record["split"] not in FOLDERS:
        raise ValueError(f"{where} has the split {record['split']!r}; it must be {', '.join(FOLDERS)}.")
    if not isinstance(caption, str):
        raise ValueError(f"{where} has {caption!r} as its caption; it must be a text.")
    texts = {key: record[key] for key in TEXTS}
    return Problem(pid=pid, choices=tuple(choices), answer=answer, image=image or None, caption=caption, **texts)


def _found(path: Path) -> Path | None:
    """The file itself, or gzipped."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def _read(path: Path, key: str) -> dict:
    found = _found(path)
    if found is None:
        raise FileNotFoundError(
            f"No file {path}. Set task.data.root to the folder of ScienceQA (problems.json, pid_splits.json, images/), "
            f"or task.data.{key} to its name there."
        )
    return read_object(found)


def _captions(path: Path) -> dict:
    captions = _read(path, "captions_file").get("captions")
    if not isinstance(captions, dict):
        raise ValueError(f'{path} has no captions. ScienceQA\'s form is {{"captions": {{pid: text, ...}}}}.')
    return captions
