"""What the inspection shows, on records whose tokens are known."""

import json

import pytest

from llama_adapter.encoding import Encoding, encode_default
from tasks.alpaca.inspect import coloured, main, summary
from tests.tiny_run import make_records, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    make_tokenizer(folder)
    (folder / "data.json").write_text(json.dumps(make_records(6)))
    return folder


def show(folder, capsys, *arguments: str) -> str:
    main(["--data", str(folder / "data.json"), "--tokenizer", str(folder), "--template", "short", *arguments])
    return capsys.readouterr().out


def test_trained_tokens_stand_in_brackets(folder, capsys):
    output = show(folder, capsys, "--first", "2")
    assert output.count("--- record") == 2
    first = output.split("--- record 1")[0]
    prompt, answer = first.split("\n", 1)[1].split("[", 1)
    assert prompt.removeprefix("<s>").strip() == "Instruction: Name the colour of ball 0.\nResponse:"
    assert "".join(piece.rstrip("]") for piece in answer.strip().split("[")).strip() == "It is red.</s>"
    assert "6 examples, " in output
    assert "cut to 512 tokens: 0\n" in output
    assert "without a trained token: 0\n" in output


def test_colours(folder):
    tokenizer = make_tokenizer(folder)
    encoding = encode_default(tokenizer, "a", "b", 32)
    text = coloured(tokenizer, encoding)
    assert text.count("\033[1;32m") == encoding.trained_tokens
    assert text.count("│") == len(encoding.ids) - 1


def test_summary_of_known_lengths():
    encodings = [Encoding([1] * 10, 4, 10), Encoding([1] * 12, 6, 20), Encoding([1] * 12, 12, 12)]
    assert summary(encodings, 12).splitlines() == [
        "3 examples, 34 tokens, 12 trained",
        "tokens before cutting: mean 14.0, median 12, 90 % 20, 99 % 20, longest 20",
        "trained tokens: mean 4.0, fewest 0, most 6",
        "cut to 12 tokens: 1 (records 1)",
        "without a trained token: 1 (records 2)",
    ]


def test_long_lists_of_records_are_cut():
    assert (
        summary([Encoding([1], 1, 2)] * 12, 1).splitlines()[-1].endswith("(records 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)")
    )


def test_paper_encoding_and_cutting(folder, capsys):
    output = show(folder, capsys, "--encoding", "paper", "--max-length", "20", "--first", "0", "--no-color")
    assert "cut to 20 tokens: 6 (records 0, 1, 2, 3, 4, 5)" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.json"], "error: No file none.json."),
        (["--template", "alpaka"], "error: task.data.template is 'alpaka'. Choose alpaca or short,"),
        (["--tokenizer", "/none"], "error: No file or folder /none."),
    ],
)
def test_errors_are_one_sentence(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        show(folder, capsys, *arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_miniature_is_shown_without_arguments(capsys):
    main([])
    assert capsys.readouterr().out.count("--- record") == 3
