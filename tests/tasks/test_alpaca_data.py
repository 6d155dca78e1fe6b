"""The DataModule from plain arguments, as a notebook uses it: its splits, its examples and what it counts."""

import json
import logging

import pytest
import torch

from llama_adapter.batches import BatchConfig
from llama_adapter.tokenizer import Tokenizer, load_tokenizer
from tasks.alpaca.data import AlpacaDataModule
from tasks.alpaca.prompt import TEMPLATES
from tests.tiny_run import make_records, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(make_records(20)))
    return path


def make_data(path, tokenizer, **options) -> AlpacaDataModule:
    data = AlpacaDataModule(path, tokenizer, **({"template": "short", "validation_size": 5} | options))
    data.setup()
    return data


def test_examples_and_batches(file, tokenizer):
    batches = BatchConfig(global_batch_size=4, micro_batch_size=2, batching="padded")
    data = make_data(file, tokenizer, batches=batches, shuffle=False)
    for record, example in zip(data.train_records, data.train_dataset, strict=True):
        assert set(example) == {"input_ids", "labels"}
        trained = example["labels"] != -100
        assert tokenizer.decode(example["input_ids"][trained].tolist()) == record["output"]
        assert tokenizer.decode(example["input_ids"][~trained].tolist()) == TEMPLATES["short"].prompt(record)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape == (2, batch["input_ids"].shape[1])
    # examples 0 and 2: a global batch of four is dealt to two micro-batches in turn
    for row, example in zip(batch["input_ids"], (data.train_dataset[0], data.train_dataset[2]), strict=True):
        assert torch.equal(row[: len(example["input_ids"])], example["input_ids"])
    assert len(data.val_dataloader()) == 4  # two global batches of two micro-batches
    assert len(data.test_dataset) == 0


def test_a_sentencepiece_processor_will_do(file, tokenizer):
    assert torch.equal(
        make_data(file, tokenizer.backend).train_dataset[0]["input_ids"],
        make_data(file, tokenizer).train_dataset[0]["input_ids"],
    )


@pytest.mark.parametrize("split", ["random", "first"])
def test_the_split_is_disjoint_whole_and_in_order(file, tokenizer, split):
    records = make_records(20)
    data = make_data(file, tokenizer, validation_split=split)
    assert (len(data.train_records), len(data.validation_records)) == (15, 5)
    assert [r for r in records if r not in data.validation_records] == data.train_records
    assert [r for r in records if r not in data.train_records] == data.validation_records
    assert (data.validation_records == records[:5]) == (split == "first")


def test_the_split_depends_on_no_seed(file, tokenizer):
    one, other = (make_data(file, tokenizer, seed=seed).validation_records for seed in (0, 7))
    assert one == other


def test_files_of_their_own(file, tokenizer, tmp_path):
    for name, start in (("validation", 100), ("test", 200)):
        (tmp_path / f"{name}.json").write_text(json.dumps(make_records(3, start)))
    data = make_data(
        file,
        tokenizer,
        validation_path=tmp_path / "validation.json",
        test_path=tmp_path / "test.json",
        validation_size=0,
    )
    assert data.train_records == make_records(20)
    assert data.validation_records == make_records(3, 100)
    assert data.test_records == make_records(3, 200)
    assert (len(data.validation_dataset), len(data.test_dataset)) == (3, 3)


def test_no_validation(file, tokenizer):
    data = make_data(file, tokenizer, validation_size=0)
    assert (len(data.train_dataset), len(data.validation_dataset)) == (20, 0)


def test_what_is_cut_and_left_out_is_counted_and_said(tmp_path, tokenizer, caplog):
    whole = {"instruction": "a", "output": "b"}
    long_answer = {"instruction": "a", "output": "red " * 60}
    long_prompt = {"instruction": "red " * 60, "output": "b"}
    file = tmp_path / "a.json"
    file.write_text(json.dumps([whole, long_answer, long_answer, long_prompt]))
    with caplog.at_level(logging.INFO, "tasks.alpaca.data"):
        data = make_data(file, tokenizer, validation_size=0, max_length=40)
    assert [len(example["input_ids"]) for example in data.train_dataset][1:] == [40, 40]
    assert (data.train_dataset.truncated, data.train_dataset.dropped) == (2, 1)
    info, warning = caplog.records
    assert info.levelno == logging.INFO
    assert info.getMessage().startswith(f"train: 3 examples, {data.train_dataset.tokens} tokens, ")
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == (
        "train: 2 answers are cut to fit task.data.max_length 40; 1 records are left out, their prompts leave no room "
        "for an answer."
    )


def test_paper_encoding_keeps_an_example_without_a_trained_token(tmp_path, tokenizer):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "red " * 60, "output": "b"}]))
    data = make_data(file, tokenizer, validation_size=0, max_length=40, encoding="paper")
    assert len(data.train_dataset) == 1
    assert (data.train_dataset[0]["labels"] == -100).all()


def test_nothing_is_warned_of_when_all_fits(file, tokenizer, caplog):
    make_data(file, tokenizer)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_real_alpaca_with_llamas_tokenizer(shared):
    data = AlpacaDataModule(
        shared / "data/alpaca/alpaca_data_first1805.json.gz",
        load_tokenizer(shared / "data/tokenizers/llama"),
        validation_split="first",
        encoding="paper",
    )
    data.setup()
    assert (len(data.train_dataset), len(data.validation_dataset)) == (1605, 200)
    assert 100 < data.train_dataset.tokens / 1605 < 150  # 123 over the whole file


def test_the_template_that_goes_into_the_adapters_file(file, tokenizer):
    texts = {"with_input": "Q {instruction} ({input}) A", "without_input": "Q {instruction} A"}
    data = make_data(file, tokenizer, template=texts)
    assert data.template_texts() == texts
    assert data.prompt({"instruction": "x", "input": ""}) == "Q x A"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "papr"}, "task.data.encoding is 'papr'. Choose default or paper."),
        ({"validation_split": "last"}, "task.data.validation_split is 'last'. Choose random or first."),
        ({"validation_size": -1}, "task.data.validation_size must be at least 0, got -1."),
        ({"max_length": 3}, "task.data.max_length must be at least 4, got 3."),
        (
            {"validation_size": 20},
            "task.data.validation_size is 20, but {file} holds 20 records. Choose 0 to 19.",
        ),
        (
            {"max_length": 5},
            "No record of {file} has room for an answer within task.data.max_length 5. Raise it.",
        ),
    ],
)
def test_errors(file, tokenizer, options, message):
    with pytest.raises(ValueError) as error:
        make_data(file, tokenizer, **options)
    assert str(error.value) == message.format(file=file)


def test_a_tokenizer_of_no_known_kind(file):
    with pytest.raises(
        ValueError, match="A tokenizer is a SentencePieceProcessor or a tokenizer of transformers, got str"
    ):
        AlpacaDataModule(file, "tokenizer.model")
