"""Answers that are known beforehand, and likelihoods against a loop over single examples."""

import json

import pytest
import torch

from llama_adapter.attach import adapters, attach
from llama_adapter.zero_init import AdapterConfig
from tasks.scienceqa import evaluation as module
from tasks.scienceqa.data import ScienceQADataModule
from tasks.scienceqa.evaluation import ScienceQAEvaluation, log_likelihoods
from tasks.scienceqa.problems import SPLITS
from tasks.scienceqa.scoring import PredictionScoring
from tests.conftest import tiny_model
from tests.tiny_run import make_tokenizer
from tests.tiny_scienceqa import record, write_scienceqa

CHOICES = ["red", "blue", "green", "grey", "white"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def data(tmp_path, tokenizer):
    problems = {
        str(pid): record(question=f"Ball {pid}?", choices=CHOICES[: 2 + pid], answer=pid, hint="A lamp." * pid)
        for pid in range(4)
    }
    root = write_scienceqa(tmp_path, problems, {split: list(problems) for split in SPLITS})
    data = ScienceQADataModule(root, tokenizer, images=False, test_split="minitest")
    data.setup()
    return data


@pytest.fixture
def model(tokenizer):
    model = tiny_model("llama", vocab_size=tokenizer.vocabulary_size, max_position_embeddings=512)
    model = attach(model, AdapterConfig(prompt_length=2, prompt_layers=2))
    for adapter in adapters(model).values():
        torch.nn.init.constant_(adapter.gate, 0.7)  # a closed gate would be the frozen model again
    return model


def test_answers_by_generation(data, model, tmp_path, monkeypatch):
    """With the adapter: right, right without brackets, an option that there is not, and no answer."""
    adapted = ["The answer is (A).", " The answer is B", "The answer is (E).", "grey"]

    def generate(model, tokenizer, prompts, **settings):
        assert prompts[1] == "Question: Ball 1?\nContext: A lamp.\nOptions: (A) red (B) blue (C) green\nAnswer:"
        enabled = all(adapter.enabled for adapter in adapters(model).values())
        return adapted if enabled else ["The answer is (B)."] * 4

    monkeypatch.setattr(module, "generate", generate)
    metrics = ScienceQAEvaluation(likelihood=False, gallery=3)(model, data, tmp_path)
    assert (metrics["test/accuracy"], metrics["test/scored"], metrics["test/unreadable"]) == (50, 4, 2)
    assert (metrics["test/acc_no_context"], metrics["test/acc_has_text"]) == (100, pytest.approx(100 / 3))
    assert (metrics["test/frozen_accuracy"], metrics["test/frozen_unreadable"]) == (25, 0)
    assert "test/likelihood_accuracy" not in metrics
    assert metrics["test/generation_accuracy"] == metrics["test/accuracy"]
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"results": {"0": 0, "1": 1, "2": -1, "3": -1}}
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert (rows[1]["pid"], rows[1]["reference"], rows[1]["adapted"]) == ("1", "B", "The answer is B")
    page = (tmp_path / "answers.html").read_text()
    assert page.count("<article") == 2  # every second problem: three at most
    assert "2 of 4 problems are right. The page shows 2, spread over the split." in page
    again = PredictionScoring(data.root, split="minitest")(tmp_path / "predictions.json", tmp_path)
    assert {name.replace("minitest/", "test/"): value for name, value in again.items()}.items() <= metrics.items()


def test_likelihoods_are_those_of_single_examples(data, model):
    examples = list(ScienceQAEvaluation()._options(data, data.test_problems))
    assert len(examples) == sum(len(problem.choices) for problem in data.test_problems)
    together = log_likelihoods(model, examples)
    for example, found in zip(examples, together, strict=True):
        ids, trained = example["input_ids"], example["labels"] >= 0
        assert data.tokenizer.decode(ids[trained]).startswith("The answer is (")
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)  # [T, V]
        expected = sum(logits[at - 1, ids[at]] for at in trained.nonzero()[:, 0].tolist())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)  # a sum of about 15 float32 terms


def test_the_likeliest_option_is_chosen(data, model, monkeypatch):
    """Of its own problem: scores rise over all options of a batch, so the last one of each is chosen."""
    monkeypatch.setattr(module, "log_likelihoods", lambda model, examples: torch.arange(len(examples)))
    chosen = ScienceQAEvaluation(batch_size=3)._most_likely(model, data, data.test_problems)
    assert chosen == [len(problem.choices) - 1 for problem in data.test_problems]
    monkeypatch.setattr(module, "log_likelihoods", lambda model, examples: -torch.arange(len(examples)))
    assert ScienceQAEvaluation()._most_likely(model, data, data.test_problems) == [0] * 4


def test_scored_by_likelihood(data, model, tmp_path, monkeypatch):
    """Categories, predictions and page are of the likeliest options; what generation gives stands beside them."""
    monkeypatch.setattr(
        module, "generate", lambda model, tokenizer, prompts, **_: ["The answer is (B)."] * len(prompts)
    )
    monkeypatch.setattr(module, "log_likelihoods", lambda model, examples: torch.arange(len(examples)))
    metrics = ScienceQAEvaluation(scored_by="likelihood")(model, data, tmp_path)
    assert metrics["test/accuracy"] == metrics["test/likelihood_accuracy"] == 0, "the last option is never right"
    assert (metrics["test/generation_accuracy"], metrics["test/frozen_generation_accuracy"]) == (25, 25)
    chosen = json.loads((tmp_path / "predictions.json").read_text())["results"]
    assert chosen == {problem.pid: len(problem.choices) - 1 for problem in data.test_problems}


def test_a_prompt_without_room_for_an_answer_is_wrong_and_not_the_end(data, model, tmp_path, monkeypatch, caplog):
    lengths = sorted(len(data.tokenizer.encode(data.prompt(problem), bos=True)) for problem in data.test_problems)
    monkeypatch.setattr(model.config, "max_position_embeddings", lengths[-2] + 5)
    metrics = ScienceQAEvaluation(max_new_tokens=5, likelihood=False)(model, data, tmp_path)
    assert metrics["test/scored"] == 4
    assert f"1 of 4 prompts have more than {lengths[-2]} tokens, which leaves no room for an answer" in caplog.text


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="^task.evaluation.scored_by is 'luck'. Choose generation or likelihood.$"):
        ScienceQAEvaluation(scored_by="luck")
    with pytest.raises(ValueError, match="scored_by is likelihood, but task.evaluation.likelihood is false."):
        ScienceQAEvaluation(scored_by="likelihood", likelihood=False)


def test_captions_that_are_asked_for_must_be_there(data, tokenizer):
    data = ScienceQADataModule(data.root, tokenizer, images=False, captions=True)
    with pytest.raises(FileNotFoundError, match=r"^No file .*/captions\.json\."):
        data.setup()


def test_captions_join_the_context(data, tokenizer):
    (data.root / "captions.json").write_text('{"captions": {"1": "A red ball."}}')
    data = ScienceQADataModule(data.root, tokenizer, images=False, captions=True)
    data.setup()
    contexts = [data.prompt(problem).split("\n")[1] for problem in data.test_problems]
    assert contexts[:2] == ["Context: N/A", "Context: A lamp. A red ball."]
