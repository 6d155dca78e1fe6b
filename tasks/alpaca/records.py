"""Reads files of instructions: Alpaca's JSON (.json, .json.gz), JSON lines (.jsonl), self-instruct's instances."""

import gzip
import json
from pathlib import Path

Record = dict[str, str]


def read_records(path: str | Path, *, need_output: bool = True) -> list[Record]:
    """The records of a file, each with `instruction`, `input` ("" if absent), `output`, and whatever else it has.

    Args:
        path: a list of objects in `.json`, or an object per line in `.jsonl`; either may end in `.gz`. A self-instruct
            object, whose `instances` hold inputs and outputs, gives one record per instance.
        need_output: False for files of questions alone; a missing output is then "".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, holds no record, or a record lacks a text; the file and the record are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {path}. Set task.data.path to the Alpaca JSON (alpaca_data.json of Stanford Alpaca), "
            "or LLAMA_ADAPTER_DATA to the folder that holds alpaca/alpaca_data.json."
        )
    records = [
        record
        for number, value in enumerate(_read_values(path))
        for record in _records_of(value, f"{path}, record {number}", need_output)
    ]
    if not records:
        raise ValueError(
            f"{path} holds no record. An Alpaca file is a list of objects with instruction, input, output."
        )
    return records


def _read_values(path: Path) -> list:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Is it cut off, or not UTF-8 text?") from None
    name = path.name.removesuffix(".gz")
    if not text.strip():
        raise ValueError(f"{path} is empty. An Alpaca file is a list of objects with instruction, input, output.")
    if name.endswith(".jsonl"):
        # Not splitlines(): a text may hold Unicode's other line ends as they are.
        return [_parse(line, path, n) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not name.endswith(".json"):
        raise ValueError(f"{path} has an unknown ending. Choose a .json, .json.gz, .jsonl or .jsonl.gz file.")
    values = _parse(text, path)
    if not isinstance(values, list):
        raise ValueError(f"{path} holds {_kind(values)}, not a list of records.")
    return values


def _parse(text: str, path: Path, first_line: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(
            f"{path} is not JSON: {error.msg} (line {line}, column {error.colno}). Is it cut off?"
        ) from None


def _records_of(value: object, where: str, need_output: bool) -> list[Record]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_kind(value)}, not an object with instruction, input and output.")
    if "instances" in value:
        common = {key: item for key, item in value.items() if key != "instances"}
        if not isinstance(value["instances"], list) or not all(isinstance(item, dict) for item in value["instances"]):
            raise ValueError(f"{where} has instances that are not a list of objects.")
        return [_checked(common | instance, where, need_output) for instance in value["instances"]]
    return [_checked(value, where, need_output)]


def _checked(record: dict, where: str, need_output: bool) -> Record:
    record = {"input": ""} | ({} if need_output else {"output": ""}) | record
    for key in ("instruction", "input", "output"):
        if key not in record:
            raise ValueError(f"{where} has no {key!r}. It has {', '.join(map(repr, sorted(record)))}.")
        if not isinstance(record[key], str):
            raise ValueError(f"{where} has {_kind(record[key])} as {key!r}; it must be a text.")
    if not record["instruction"].strip():
        raise ValueError(f"{where} has an empty 'instruction'.")
    return record


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
