"""Prompts against the authors' published texts; texts are never read as templates themselves."""

import json

import pytest

from tasks.alpaca.prompt import TEMPLATES, PromptTemplate, resolve_template


def test_the_alpaca_template_is_the_authors(shared):
    authors = json.loads((shared / "golden/alpaca/encodings_llama.json").read_text())["prompt_templates"]
    assert TEMPLATES["alpaca"].with_input == authors["prompt_input"]
    assert TEMPLATES["alpaca"].without_input == authors["prompt_no_input"]


def test_a_prompt_ends_where_the_answer_begins():
    record = {"instruction": "Count to three.", "input": ""}
    assert TEMPLATES["alpaca"].prompt(record) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nCount to three.\n\n### Response:"
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "a", "input": "b"}, "a|b"),
        ({"instruction": "a", "input": ""}, "a"),
        ({"instruction": "a"}, "a"),
        ({"instruction": "a", "input": " "}, "a| "),  # one blank counts as an input in the authors' code
    ],
)
def test_an_empty_input_takes_the_short_text(record, expected):
    assert PromptTemplate("{instruction}|{input}", "{instruction}").prompt(record) == expected


def test_braces_and_placeholders_in_a_record_stay_as_they_are():
    record = {"instruction": "{input} {0} {not a field} %s", "input": "{instruction} {{}}"}
    assert PromptTemplate("{instruction}|{input}", "{instruction}").prompt(record) == (
        "{input} {0} {not a field} %s|{instruction} {{}}"
    )


def test_other_braces_in_a_template_stay_as_they_are():
    template = PromptTemplate('{"ask": "{instruction}", "about": "{input}"}', "{x} {instruction}")
    assert template.prompt({"instruction": "a", "input": "b"}) == '{"ask": "a", "about": "b"}'
    assert template.prompt({"instruction": "a", "input": ""}) == "{x} a"


def test_a_template_by_name_by_texts_or_as_it_is():
    texts = {"with_input": "{instruction}{input}", "without_input": "{instruction}"}
    assert resolve_template("short") is TEMPLATES["short"]
    assert resolve_template(texts) == PromptTemplate(**texts)
    assert resolve_template(TEMPLATES["alpaca"]) is TEMPLATES["alpaca"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "alpaka",
            "task.data.template is 'alpaka'. Choose alpaca or short, or give the two texts with_input and without_input.",
        ),
        (
            {"with_input": "{instruction}{input}"},
            "task.data.template needs exactly with_input and without_input, got ['with_input'].",
        ),
        (
            {"with_input": "{instruction}", "without_input": "{instruction}"},
            "task.data.template.with_input must contain {instruction} and {input} and no other placeholder, "
            "got {instruction}.",
        ),
        (
            {"with_input": "{instruction}{input}", "without_input": "nothing"},
            "task.data.template.without_input must contain {instruction} and no other placeholder, got none.",
        ),
        (
            {"with_input": "{instruction}{input}", "without_input": "{instruction}{input}"},
            "task.data.template.without_input must contain {instruction} and no other placeholder, "
            "got {instruction} and {input}.",
        ),
    ],
)
def test_errors(template, message):
    with pytest.raises(ValueError) as error:
        resolve_template(template)
    assert str(error.value) == message
