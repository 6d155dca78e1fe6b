"""The DataModule: which articles are held out, what a batch holds, and how little of it is padding."""

import logging

import pytest
import torch

from llama_adapter.batches import BatchConfig
from llama_adapter.examples import IGNORED
from tasks.squad.data import SpanCollator, SquadDataModule, held_out
from tasks.squad.records import Article, Paragraph, Question
from tests.tiny_squad import (
    answer,
    article,
    bert_tokenizer,
    byte_tokenizer,
    make_articles,
    question,
    roberta_tokenizer,
    write_squad,
)

FILES = {"train_file": "train-v2.0.json", "test_file": "dev-v2.0.json"}


def module(root, tokenizer=None, **options) -> SquadDataModule:
    values = {"version": "v2.0", "max_length": 128, "doc_stride": 20, "max_question_length": 40} | FILES | options
    return SquadDataModule(root, tokenizer or byte_tokenizer(), **values)


@pytest.fixture
def root(tmp_path):
    write_squad(tmp_path, *make_articles(10), name="train-v2.0.json")
    write_squad(tmp_path, *make_articles(4, start=100))
    return tmp_path


def test_the_three_parts(root, caplog):
    caplog.set_level(logging.INFO)
    data = module(root, validation_share=0.25)
    data.setup()
    data.setup("fit")
    parts = (data.train_dataset, data.validation_dataset, data.test_dataset)
    asked = [{windows.questions[n].id for n in windows.question.tolist()} for windows in parts]
    assert [len(ids) for ids in asked] == [21, 9, 12]
    assert not asked[0] & asked[1]
    assert asked[2] == {f"{number}{letter}" for number in range(100, 104) for letter in "abc"}
    titles = [{id[:-1] for id in ids} for ids in asked[:2]]
    assert not titles[0] & titles[1], "whole articles"
    tested = data.test_dataset
    assert f"test: 12 questions in {len(tested)} windows, {tested.tokens} tokens." in caplog.messages


def articles(*counts: int) -> list[Article]:
    return [
        Article(str(n), (Paragraph("c", tuple(Question(f"{n}.{q}", "?", ()) for q in range(count))),))
        for n, count in enumerate(counts)
    ]


@pytest.mark.parametrize(("share", "least"), [(0.0, 0), (0.01, 1), (0.3, 30), (0.9, 90)])
def test_articles_held_out_have_the_share(share, least):
    train, validation = held_out(articles(*[10] * 10), share)
    assert sorted(train + validation) == list(range(100))
    assert (train, validation) == (sorted(train), sorted(validation))
    assert len(validation) == -(-least // 10) * 10
    assert held_out(articles(*[10] * 10), share) == (train, validation)


def test_one_article_is_left_to_train_on():
    train, validation = held_out(articles(5, 5), 0.99)
    assert (len(train), len(validation)) == (5, 5)


def test_one_article_alone():
    assert held_out(articles(3), 0.0) == ([0, 1, 2], [])
    with pytest.raises(ValueError) as error:
        held_out(articles(3), 0.1)
    assert str(error.value) == (
        "The training file has 1 article, and whole articles are held out. Set task.data.validation_share=0."
    )


# --- batches --------------------------------------------------------------------------------------------------------


def example(length: int, start: int, end: int, **more: torch.Tensor) -> dict:
    places = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    return {"input_ids": torch.arange(5, 5 + length)} | places | more


def test_a_batch():
    batch = SpanCollator(1)([example(3, 1, 2), example(5, 0, 0)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 1], [5, 6, 7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert (batch["start_positions"].tolist(), batch["end_positions"].tolist()) == ([1, 0], [2, 0])
    assert batch["counts"] == (8, 10, 2, 9 + 25)
    assert "token_type_ids" not in batch


def test_a_batch_with_token_types():
    types = (torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    batch = SpanCollator(1)([example(len(kinds), 0, 0, token_type_ids=kinds) for kinds in types])
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_batch_without_examples_trains_nothing():
    batch = SpanCollator(1)([])
    assert batch["input_ids"].tolist() == [[1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1]], "a row without any token would give nan"
    assert batch["start_positions"].tolist() == batch["end_positions"].tolist() == [IGNORED]
    assert batch["counts"] == (0, 2, 2, 0)


def test_loaders(root):
    """Training batches in another order in every epoch, evaluation batches from the longest on."""
    batches = BatchConfig(global_batch_size=4, micro_batch_size=2, batching="padded")
    data = module(root, validation_share=0.25, batches=batches)
    data.setup()
    loader = data.train_dataloader()
    seen = []
    for epoch in range(2):
        loader.batch_sampler.sampler.set_epoch(epoch)
        rows = [row for batch in loader for row in batch["input_ids"].tolist() if batch["counts"].useful]
        assert len(rows) == len(data.train_dataset)
        seen.append(rows)
    assert seen[0] != seen[1]
    lengths = [int(batch["attention_mask"].sum(1).max()) for batch in data.test_dataloader() if batch["counts"].useful]
    assert lengths == sorted(lengths, reverse=True)


def test_a_resumed_loader_goes_on_with_the_same_batches(root):
    def rows(loader, epoch: int) -> list[list[list[int]]]:
        loader.batch_sampler.sampler.set_epoch(epoch)
        return [batch["input_ids"].tolist() for batch in loader]

    loaders = []
    for _ in range(2):
        batches = BatchConfig(global_batch_size=4, micro_batch_size=2, batching="padded")
        data = module(root, validation_share=0.0, batches=batches, seed=5)
        data.setup()
        loaders.append(data.train_dataloader())
    whole = rows(loaders[0], epoch=1)
    loaders[1].load_state_dict({"steps": 3})  # of two micro-batches each
    assert rows(loaders[1], epoch=1) == whole[6:]
    assert rows(loaders[0], epoch=2) == rows(loaders[1], epoch=2) != whole


def test_a_tokenizer_with_token_types(root):
    data = module(root, bert_tokenizer(), max_length=40, max_question_length=8, doc_stride=4, validation_share=0.0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1}
    assert len(data.validation_dataset) == 0
    assert list(data.val_dataloader()) == []


def test_the_share_of_useful_tokens_on_real_data(shared, capsys):
    """At least 0.9 where windows are trained and where they are answered; without the order by length it is far less."""
    import sys

    root, name = shared / "data/squad", "dev-v2.0-slice.json"
    files = {"train_file": name, "test_file": name}
    batches = BatchConfig(global_batch_size=16, micro_batch_size=8, batching="padded")
    data = SquadDataModule(
        root, roberta_tokenizer(shared), version="v2.0", validation_share=0.2, batches=batches, **files
    )
    data.setup()
    shares = {}
    for part, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        counts = [batch["counts"] for batch in loader]
        assert sum(count.useful for count in counts) == getattr(data, f"{part}_dataset").tokens
        shares[part] = sum(count.useful for count in counts) / sum(count.computed for count in counts)
    lengths = data.train_dataset.lengths
    plain = [lengths[start : start + 8] for start in range(0, len(lengths), 8)]
    unsorted = sum(lengths) / sum(len(rows) * max(rows) for rows in plain)
    with capsys.disabled():
        sys.stdout.write(f"\nuseful tokens of the real slice: {shares}, in the file's order {unsorted:.3f}\n")
    assert min(shares.values()) >= 0.9
    assert shares["train"] > unsorted


# --- warnings and errors --------------------------------------------------------------------------------------------


def test_questions_that_cannot_be_trained_are_counted(tmp_path, caplog):
    wrong = answer("red", start=50)
    rows = [article(question("a", wrong), question("b", answer("ball"))), article(question("c", wrong))]
    write_squad(tmp_path, *rows, name="train-v2.0.json")
    write_squad(tmp_path, *rows)
    data = module(tmp_path, validation_share=0.0)
    data.setup()
    assert [data.train_dataset.questions[n].id for n in data.train_dataset.question.tolist()] == ["b"]
    assert len(data.test_dataset.of_question) == 3
    assert [message for message in caplog.messages if "answer_start" in message] == [
        "train: the text of no answer stands at its answer_start in 2 of 3 questions, which are not trained: a, c.",
        "test: the text of no answer stands at its answer_start in 2 of 3 questions, which are answered, but not in the "
        "loss: a, c.",
    ]


def test_long_questions_are_counted(root, caplog):
    module(root, max_question_length=20, validation_share=0.0).setup()
    assert "test: 12 questions are cut to 20 tokens." in caplog.messages


def test_no_question_that_can_be_trained(tmp_path):
    write_squad(tmp_path, article(question("a", answer("red", start=50))), name="train-v2.0.json")
    write_squad(tmp_path, article(question("a")))
    with pytest.raises(ValueError) as error:
        module(tmp_path, validation_share=0.0).setup()
    assert str(error.value) == (
        f"None of the 1 training questions of {tmp_path}/train-v2.0.json has an answer whose text stands at its "
        "answer_start, counted in characters."
    )


def test_files_that_are_not_there(root):
    with pytest.raises(
        FileNotFoundError, match=r"nor none\.json\.gz\. Set task\.data\.root .* task\.data\.test_file to"
    ):
        module(root, test_file="none.json").setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "2.0"}, r"task\.data\.version is '2\.0'\. Choose v1\.1 or v2\.0\."),
        ({"validation_share": 1.0}, r"task\.data\.validation_share must be at least 0 and below 1, got 1\.0\."),
        ({"workers": -1}, r"task\.data\.workers must be at least 0, got -1\."),
        ({"doc_stride": 99}, r"task\.data\.max_length 128 leaves 84 tokens of context beside a question of 40"),
    ],
)
def test_values_that_are_none(root, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        module(root, **options)


def test_tokenizers_that_do_not_do(root):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError) as error:
        module(root, Slow())
    assert str(error.value) == (
        "SQuAD needs a tokenizer that tells which characters a token stands for, which Slow does not. Set "
        "model.tokenizer to a folder with a tokenizer.json."
    )
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError) as error:
        module(root, tokenizer)
    assert str(error.value) == "The tokenizer has no padding token. Set pad_token in its tokenizer_config.json."
