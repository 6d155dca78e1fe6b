"""A file is whole or not there, whatever happens while it is written."""

import errno
import json
import os
import subprocess
import sys

import pytest

from llama_adapter.files import whole_file, write_json, write_json_lines


def entries(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replaces_the_old_file_at_the_end_only(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert temporary == tmp_path / "result.txt.part"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert entries(tmp_path) == ["result.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(str(path)) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["result.txt"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, 1)

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, name, no_space)
            write_json(path, 2)
        assert json.loads(path.read_text()) == 1
        assert entries(tmp_path) == ["result.json"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == 1
    assert entries(tmp_path) == ["result.json"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "result.txt"):
        pass
    assert entries(tmp_path) == []


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_size))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    with whole_file(tmp_path / "result.txt") as temporary:
        temporary.write_text("four")
    assert events == [4, "rename"]


def test_a_killed_process_leaves_no_half_file(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from llama_adapter.files import whole_file\n"
        "with whole_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert ended.returncode == -9
    assert path.read_text() == "old"


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "a.json", {"answer": "Zürich", "loss": 0.5})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "answer": "Zürich",\n  "loss": 0.5\n}\n'.encode()


def test_json_lines(tmp_path):
    rows = [{"text": "two\nlines é"}, {"text": ""}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    content = (tmp_path / "a.jsonl").read_bytes()
    assert [json.loads(line) for line in content.decode().splitlines()] == rows
    assert "é".encode() in content
    write_json_lines(tmp_path / "a.jsonl", [])
    assert (tmp_path / "a.jsonl").read_bytes() == b""
