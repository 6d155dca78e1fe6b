"""Reads the file that W&B keeps of an offline run, `run-<id>.wandb`: what would be sent to the server.

It is LevelDB's log format after a header of seven bytes: blocks of 32 KiB, in them fragments of records with a checksum,
a length and a kind (1 whole, 2 first, 3 middle, 4 last). A record is a protocol buffer of W&B's own kind.
"""

import json
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HEADER, BLOCK = 7, 32 * 1024


@dataclass
class OfflineRun:
    """What an offline file says of a run.

    Attributes:
        run: id, project, group, job type, name, tags.
        config, summary: by key.
        rows: of the history.
        artifacts: records of what was logged.
        exit_code: None where the run was never ended.
        files: the folder of pictures and tables.
    """

    files: Path
    run: object = None
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    artifacts: list = field(default_factory=list)
    exit_code: int | None = None

    def column(self, name: str) -> dict[int, object]:
        """The values of a metric by optimizer step."""
        return {int(row["trainer/global_step"]): row[name] for row in self.rows if name in row}

    def table(self, name: str) -> dict:
        """The last table of this name: `columns` and `data`."""
        entry = [row[name] for row in self.rows if name in row][-1]
        return json.loads((self.files / entry["path"]).read_text(encoding="utf-8"))

    def pictures(self, name: str) -> list[Path]:
        """The files of all pictures of this name, oldest first."""
        rows = [row[name] for row in self.rows if name in row]
        return [self.files / file for row in rows for file in row["filenames"]]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All runs in a run's folder, oldest first; W&B's service may take a moment longer than `finish` to write one."""
    paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    for _ in range(30):
        runs = [read_run(path) for path in paths]
        if all(run.exit_code is not None for run in runs):
            break
        time.sleep(0.1)
    return runs


def read_run(path: Path) -> OfflineRun:
    """One file."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = OfflineRun(path.parent / "files")
    for content in records(path.read_bytes()):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        value = getattr(record, kind)
        if kind == "run":
            found.run = value
            found.config |= _items(value.config.update)
        elif kind == "config":
            found.config |= _items(value.update)
        elif kind == "summary":
            found.summary |= _items(value.update)
        elif kind == "history":
            found.rows.append(_items(value.item))
        elif kind == "artifact":
            found.artifacts.append(value)
        elif kind == "exit":
            found.exit_code = value.exit_code
    return found


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log, whole ones alone."""
    assert content[:4] == b":W&B"
    position, pending = HEADER, b""
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK  # no fragment begins in the last bytes of a block
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        fragment = content[position + 7 : position + 7 + length]
        if len(fragment) < length or not kind:
            return  # a killed process left half a record
        position += 7 + length
        pending = fragment if kind in (1, 2) else pending + fragment
        if kind in (1, 4):
            yield pending


def _items(items) -> dict:
    found: dict = {}
    for item in items:
        inside = found
        *outer, key = item.nested_key or [item.key]
        for name in outer:
            inside = inside.setdefault(name, {})
        inside[key] = json.loads(item.value_json)
    return found


@contextmanager
def wandb_alone(folder: Path, **environment: str) -> Iterator[None]:
    """W&B with these variables of the environment and no others of its own, and with its caches in a folder."""
    import wandb

    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("WANDB_") or name == "NETRC"}
    places = {name: str(folder / name.lower()) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    given = places | {"NETRC": str(folder / "netrc"), "WANDB_ERROR_REPORTING": "false"} | environment
    os.environ.update(given)
    wandb.teardown()  # it reads its environment once
    try:
        yield
    finally:
        wandb.teardown()
        for name in given:
            os.environ.pop(name, None)
        os.environ.update(kept)
