"""Reading the files of data sets, gzipped or not, so that whatever is wrong with one is said in a sentence."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN = 5  # names in a message; the rest is counted


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off or no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Is it cut off, or not UTF-8 text?") from None


def read_json(path: Path, *, unique_keys: bool = False) -> object:
    """The contents of a JSON file.

    Args:
        path: of the file.
        unique_keys: whether a key that comes twice in an object is an error: json alone would take the last one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, no JSON, or has a key twice.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict:
        made = dict(pairs)
        if unique_keys and len(made) < len(pairs):
            raise ValueError(f"{path} has {first(repeated(key for key, _ in pairs))} more than once in one object.")
        return made

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno}). Is it cut off?"
        ) from None


def read_object(path: Path) -> dict:
    """The contents of a JSON file that holds one object, in which no key comes twice.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, no JSON object, or has a key twice.
    """
    content = read_json(path, unique_keys=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold an object.")
    return content


def repeated(values: Iterable[object]) -> list:
    """Those that come more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def first(values: Sequence[object]) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
