"""Scores against answers that are known beforehand: a model whose words the test chooses."""

import json
import logging

import pytest

from llama_adapter.attach import adapters, attach
from llama_adapter.tokenizer import Tokenizer
from llama_adapter.zero_init import AdapterConfig
from tasks.alpaca import evaluation as module
from tasks.alpaca.data import AlpacaDataModule
from tasks.alpaca.evaluation import InstructionEvaluation
from tests.conftest import tiny_model
from tests.tiny_run import make_records, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def data(tmp_path, tokenizer) -> AlpacaDataModule:
    (tmp_path / "train.json").write_text(json.dumps(make_records(10)))
    (tmp_path / "test.json").write_text(json.dumps(make_records(4, 1000)))
    data = AlpacaDataModule(
        tmp_path / "train.json", tokenizer, test_path=tmp_path / "test.json", validation_size=3, template="short"
    )
    data.setup()
    return data


@pytest.fixture
def model(tokenizer):
    return attach(
        tiny_model("llama", vocab_size=tokenizer.vocabulary_size), AdapterConfig(prompt_length=2, prompt_layers=1)
    )


@pytest.fixture
def asked(monkeypatch, data) -> list[list[str]]:
    """Prompts of every call; adapted answers are right but for the last, frozen ones go on after the reference."""
    calls = []
    answers = {data.prompt(record): record["output"] for record in data.test_records}

    def generate(model, tokenizer, prompts, **settings):
        calls.append(list(prompts))
        frozen = not all(adapter.enabled for adapter in adapters(model).values()) or not adapters(model)
        if prompts[0] not in answers:
            return [" It is red.\nIt goes on."] * len(prompts)
        right = [f" {answers[prompt]}\n" for prompt in prompts]
        return [f"{answer}### and so on" for answer in right] if frozen else [*right[:-1], "no"]

    monkeypatch.setattr(module, "generate", generate)
    return calls


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_with_groups_beside_the_frozen_model(tmp_path, model, data, asked, caplog):
    evaluation = InstructionEvaluation(exact_match=True, group_by="kind", containing_tokens=30, worked_examples=2)
    with caplog.at_level(logging.INFO, "tasks.alpaca.evaluation"):
        metrics = evaluation(model, data, tmp_path)
    red = sum(record["output"] == "It is red." for record in data.test_records) / 4
    assert metrics == {
        "test/exact_match": 0.75,
        "test/exact_match/with input": 0.5,  # records 1001 and 1003, of which the last is wrong
        "test/exact_match/without": 1.0,
        "test/frozen_exact_match": 0.0,
        "test/frozen_contains_in_30_tokens": 1.0,
        "test/frozen_exact_match_with_2_examples": red,
    }
    rows = lines(tmp_path / "generations.jsonl")
    assert [row["reference"] for row in rows] == [record["output"] for record in data.test_records]
    assert rows[0] == {
        "instruction": "Name the colour of ball 1000.",
        "input": "",
        "kind": "without",
        "answer": data.test_records[0]["output"],
        "reference": data.test_records[0]["output"],
    }
    assert rows[-1]["answer"] == "no"
    frozen = lines(tmp_path / "generations_frozen.jsonl")
    assert {row["answer_with_worked_examples"] for row in frozen} == {"It is red."}
    assert "reference: " in caplog.text


def test_worked_examples_are_of_the_records_own_group_and_from_the_training_file(tmp_path, model, data, asked):
    evaluation = InstructionEvaluation(exact_match=True, group_by="kind", worked_examples=2)
    evaluation(model, data, tmp_path)
    for record, prompt in zip(data.test_records, asked[-1], strict=True):
        *examples, question = prompt.split("\n\n")
        assert question == data.prompt(record)
        like = [r for r in data.train_records if r["kind"] == record["kind"]]
        assert len(set(examples)) == 2
        assert set(examples) <= {f"{data.prompt(r)} {r['output']}" for r in like}


def test_the_frozen_model_alone(tmp_path, tokenizer, data, asked):
    bare = tiny_model("llama", vocab_size=tokenizer.vocabulary_size)
    metrics = InstructionEvaluation(exact_match=True)(bare, data, tmp_path)
    assert metrics == {"test/frozen_exact_match": 0.0}
    assert not (tmp_path / "generations.jsonl").exists()
    assert len(lines(tmp_path / "generations_frozen.jsonl")) == 4


def test_the_validation_part_where_there_is_no_test(tmp_path, model, data, asked):
    data.test_records = []
    metrics = InstructionEvaluation(exact_match=True)(model, data, tmp_path)
    assert set(metrics) == {"val/exact_match", "val/frozen_exact_match"}
    assert len(asked[0]) == 3


def test_nothing_is_generated_when_exact_match_means_nothing(tmp_path, model, data, asked):
    assert InstructionEvaluation()(model, data, tmp_path) == {}
    assert not asked


def test_answers_to_a_file_without_outputs(tmp_path, model, data):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"instruction": "a {b}"}\n{"instruction": "c", "input": "d", "id": 7}\n')
    count = InstructionEvaluation(max_new_tokens=3).answer(model, data, questions, tmp_path)
    rows = lines(tmp_path / "generations.jsonl")
    assert count == len(rows) == 2
    assert [set(row) for row in rows] == [
        {"instruction", "input", "answer", "reference"},
        {"instruction", "input", "id", "answer", "reference"},
    ]
    assert rows[0]["instruction"] == "a {b}"


def test_decoding_settings_reach_generation(tmp_path, model, data, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "generate", lambda *a, **settings: seen.append(settings) or [""] * len(a[2]))
    settings = {"max_new_tokens": 5, "batch_size": 2, "temperature": 0.1, "top_p": 0.75, "num_beams": 1}
    InstructionEvaluation(exact_match=True, **settings)(model, data, tmp_path)
    assert seen == [settings | {"seed": 0}] * 2
