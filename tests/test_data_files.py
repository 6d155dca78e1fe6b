"""What is wrong with a file of a data set is said in a sentence that names it."""

import gzip
import re

import pytest

from llama_adapter.data_files import first, read_json, read_object, read_text, repeated


def test_gzipped_or_not(tmp_path):
    (tmp_path / "a.json").write_text('{"é": [1]}', encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress('{"é": [1]}'.encode()))
    assert read_json(tmp_path / "a.json") == read_object(tmp_path / "a.json.gz") == {"é": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": [1', r"is not JSON: .* \(line 1, column 9\)\. Is it cut off\?"),
        (b"\xff\xfe", "cannot be read: .* Is it cut off, or not UTF-8 text?"),
        (b"[1]", "does not hold an object."),
        (b'{"a": {"b": 1, "b": 2}}', "has b more than once in one object."),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {message}"):
        read_object(path)


def test_a_file_that_is_cut_off_or_missing(tmp_path):
    path = tmp_path / "file.json.gz"
    with pytest.raises(FileNotFoundError, match=f"^No file {re.escape(str(path))}.$"):
        read_text(path)
    path.write_bytes(gzip.compress(b"{}" * 100)[:-9])
    with pytest.raises(ValueError, match="cannot be read: .* Is it cut off"):
        read_text(path)


def test_a_key_that_comes_twice_is_only_an_error_where_it_is_asked_for(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1, "a": 2}]')
    assert read_json(tmp_path / "a.json") == [{"a": 2}]


def test_a_few_of_many():
    assert repeated("abcab") == ["a", "b"]
    assert first([1, 2, 3]) == "1, 2, 3"
    assert first("abcdefg") == "a, b, c, d, e and 2 more"
