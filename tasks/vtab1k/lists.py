"""Reads the list files of VTAB-1k: `<data set>/train800.txt` and the like, one picture and its label in a line.

A line is `images/<split>/<name>.jpg <label>`: a path relative to the folder of the data set, one space, and a whole
number from 0. The label stands behind the last space, so names may hold spaces. Blank lines are passed over.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from llama_adapter.data_files import first

LISTS = ("train800", "val200", "train800val200", "test")

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """One line of a list.

    Attributes:
        name: path of the file, relative to the data set's folder.
        label: its class.
        line: of the list, counted from 1.
    """

    name: str
    label: int
    line: int


def read_lists(
    folder: Path, names: Sequence[str], *, classes: int, counts: Mapping[str, int | Sequence[int] | None]
) -> dict[str, list[Picture]]:
    """The lists that a run reads, by name. Those that it does not read are checked too where they are there.

    Args:
        folder: of the data set.
        names: of the lists to read, any of `LISTS`. Their pictures must be there.
        classes: labels are 0 to classes - 1.
        counts: lines of each list, or a few numbers any of which is right; None, or no entry, for any number.

    Raises:
        FileNotFoundError: a list or a picture is not there.
        ValueError: a line is wrong, or the number of lines is.
    """
    lists = {}
    for name in LISTS:
        path = folder / f"{name}.txt"
        if name in names or path.is_file():
            lists[name] = read_list(path, classes=classes)
            check_count(path, len(lists[name]), counts.get(name))
    for name in names:
        check_pictures(folder / f"{name}.txt", lists[name])
    return {name: lists[name] for name in names}


def read_list(path: Path, *, classes: int) -> list[Picture]:
    """The lines of one list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the first line that is wrong: no label, a label that is no class, a path that leaves the
            folder, or a picture that has stood there with another label.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No list {path}. Set task.data.root to the folder that holds {path.parent.name}/{path.name}."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from None
    pictures: dict[str, Picture] = {}
    listed = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        picture = _picture(line.strip(), classes, path, number)
        before = pictures.setdefault(picture.name, picture)
        if before.label != picture.label:
            raise ValueError(
                f"{path}, line {number}: {picture.name} has the label {picture.label}, but {before.label} on line "
                f"{before.line}. Remove one of the two."
            )
        listed.append(picture)
    if not listed:
        raise ValueError(f"{path} lists no picture. Its lines are 'images/<split>/<name>.jpg <label>'.")
    if len(pictures) < len(listed):
        log.warning("%s lists %d pictures more than once.", path, len(listed) - len(pictures))
    return listed


def _picture(line: str, classes: int, path: Path, number: int) -> Picture:
    where = f"{path}, line {number}"
    name, space, label = line.rpartition(" ")
    name = name.rstrip()
    if not space:
        raise ValueError(f"{where}: {line!r} has no label. A line is 'images/<split>/<name>.jpg <label>'.")
    if not re.fullmatch(r"-?[0-9]{1,9}", label) or not 0 <= int(label) < classes:
        raise ValueError(
            f"{where}: the label is {label!r}, but this data set has {classes} classes: labels are 0 to "
            f"{classes - 1}. Correct the line, or set task.data.classes."
        )
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise ValueError(f"{where}: {name} leaves the folder {path.parent}. Paths are relative to it.")
    return Picture("/".join(parts), int(label), number)


def check_count(path: Path, found: int, expected: int | Sequence[int] | None) -> None:
    """Compares the number of lines.

    Raises:
        ValueError: it is another one.
    """
    if expected is None:
        return
    right = [expected] if isinstance(expected, int) else list(expected)
    if found not in right:
        raise ValueError(
            f"{path} lists {found} pictures, but {' or '.join(map(str, right))} are expected. Get the whole list, or "
            f"set task.data.counts.{path.stem} to {found} (null: any number) where that is right."
        )


def check_pictures(path: Path, pictures: Sequence[Picture]) -> None:
    """Looks whether the pictures of a list are there, by reading each folder once.

    Raises:
        FileNotFoundError: some are not; names the first few and their lines.
    """
    folder = path.parent
    there: dict[Path, set[str]] = {}
    missing = []
    for picture in pictures:
        file = folder / picture.name
        if file.parent not in there:
            there[file.parent] = set(os.listdir(file.parent)) if file.parent.is_dir() else set()
        if file.name not in there[file.parent]:
            missing.append(picture)
    if missing:
        shown = first([f"{picture.name} (line {picture.line})" for picture in missing])
        raise FileNotFoundError(
            f"{len(missing)} of the {len(pictures)} pictures of {path} are not in {folder}: {shown}. Set "
            f"task.data.root to the folder that holds {folder.name}/ with its images/."
        )
