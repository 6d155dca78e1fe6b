"""Instruction files as people have them: the real ones, and those that are cut off, misspelt or of another kind."""

import gzip
import json

import pytest

from tasks.alpaca.records import read_records

RECORD = {"instruction": "a", "input": "b", "output": "c"}


def test_the_first_records_of_alpaca(shared):
    records = read_records(shared / "data/alpaca/alpaca_data_first1805.json.gz")
    assert len(records) == 1805
    assert sum(not record["input"] for record in records) == 993
    assert records[0]["instruction"] == "Give three tips for staying healthy."


@pytest.mark.parametrize(("name", "count"), [("seed_tasks.jsonl", 175), ("user_oriented_instructions.jsonl", 252)])
def test_self_instruct_files(shared, name, count):
    file = shared / "data/alpaca" / name
    tasks = [json.loads(line) for line in file.read_text().splitlines()]
    records = read_records(file)
    assert len({record["id"] for record in records}) == len(tasks) == count
    assert [record["output"] for record in records] == [i["output"] for task in tasks for i in task["instances"]]
    assert all(record["instruction"] and "instances" not in record for record in records)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz"])
def test_every_ending(tmp_path, name):
    rows = [RECORD, RECORD | {"instruction": "zwölf 🦙 {x}\u2028\x85"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n\n".join(lines) if ".jsonl" in name else f"[{','.join(lines)}]"
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert read_records(file) == rows
    assert read_records(str(file)) == rows


def test_what_is_absent_and_what_is_more(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "a", "output": "c", "kind": "k"}]))
    assert read_records(file) == [{"instruction": "a", "input": "", "output": "c", "kind": "k"}]
    file.write_text(json.dumps([{"instruction": "a"}]))
    assert read_records(file, need_output=False) == [{"instruction": "a", "input": "", "output": ""}]


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_records(tmp_path / "none.json")
    assert str(error.value) == (
        f"No file {tmp_path / 'none.json'}. Set task.data.path to the Alpaca JSON (alpaca_data.json of Stanford Alpaca), "
        "or LLAMA_ADAPTER_DATA to the folder that holds alpaca/alpaca_data.json."
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "  ", "{} is empty. An Alpaca file is a list of objects with instruction, input, output."),
        ("a.json", "[]", "{} holds no record. An Alpaca file is a list of objects with instruction, input, output."),
        ("a.json", "{}", "{} holds an object, not a list of records."),
        ("a.json", "3", "{} holds a number, not a list of records."),
        ("a.json", "null", "{} holds null, not a list of records."),
        (
            "a.json",
            '[{"instruction": "a", "out',
            "{} is not JSON: Unterminated string starting at (line 1, column 23). Is it cut off?",
        ),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b"}\n{"instr',
            "{} is not JSON: Unterminated string starting at (line 2, column 2). Is it cut off?",
        ),
        ("a.csv", "a,b", "{} has an unknown ending. Choose a .json, .json.gz, .jsonl or .jsonl.gz file."),
        ("a.json", '["a"]', "{}, record 0 is a text, not an object with instruction, input and output."),
        ("a.json", '[{"instruction": "a"}]', "{}, record 0 has no 'output'. It has 'input', 'instruction'."),
        (
            "a.json",
            '[{"instruction": "a", "output": "b"}, {"Instruction": "a", "output": "b"}]',
            "{}, record 1 has no 'instruction'. It has 'Instruction', 'input', 'output'.",
        ),
        (
            "a.json",
            '[{"instruction": "a", "input": null, "output": "b"}]',
            "{}, record 0 has null as 'input'; it must be a text.",
        ),
        (
            "a.json",
            '[{"instruction": "a", "output": true}]',
            "{}, record 0 has true or false as 'output'; it must be a text.",
        ),
        ("a.json", '[{"instruction": " ", "output": "b"}]', "{}, record 0 has an empty 'instruction'."),
        (
            "a.jsonl",
            '{"instruction": "a", "instances": "b"}',
            "{}, record 0 has instances that are not a list of objects.",
        ),
    ],
)
def test_errors(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError) as error:
        read_records(file)
    assert str(error.value) == message.format(file)


def test_files_that_cannot_be_read(tmp_path):
    whole = gzip.compress(json.dumps([RECORD] * 100).encode())
    for name, content in (
        ("cut.json.gz", whole[:-20]),
        ("no.json.gz", b"[]"),
        ("latin.json", '["ä"]'.encode("latin-1")),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_records(file)
        assert str(error.value).startswith(f"{file} cannot be read: ")
        assert str(error.value).endswith(". Is it cut off, or not UTF-8 text?")
