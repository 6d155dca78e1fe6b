"""Evaluation: files in the official formats, both versions, thresholds, devices, and decoding beside the model."""

import json
import threading

import pytest
import torch
import torch.distributed as dist

from tasks.squad import evaluation as module
from tasks.squad.evaluation import SquadEvaluation
from tasks.squad.scoring import PredictionScoring
from tasks.squad.windows import WindowConfig
from tests.conftest import tiny_encoder
from tests.tiny_squad import Predictor, bert_tokenizer, byte_tokenizer, data_of, make_articles, windows_of, write_squad

CONFIG = WindowConfig(90, 30, "overlap", 40)


@pytest.fixture
def windows(tmp_path):
    return windows_of(write_squad(tmp_path, *make_articles(7)), "v2.0", byte_tokenizer(), CONFIG)


@pytest.fixture
def model():
    return tiny_encoder("roberta", vocab_size=len(byte_tokenizer()), max_position_embeddings=100)


def read(folder, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def answers_of(windows) -> dict[int, tuple[int, int]]:
    asked = enumerate(windows.questions)
    return {number: windows.answer_tokens(number, q.answers[0]) for number, q in asked if q.answers}


def test_a_perfect_predictor(windows, tmp_path):
    assert len(windows) > len(windows.questions)
    metrics = SquadEvaluation(batch_size=3)(Predictor(windows, answers_of(windows)), data_of(windows, "v2.0"), tmp_path)
    assert {name: metrics[f"test/{name}"] for name in ("exact", "f1", "total", "HasAns_f1", "NoAns_f1")} == {
        "exact": 100.0, "f1": 100.0, "total": 21, "HasAns_f1": 100.0, "NoAns_f1": 100.0,
    }  # fmt: skip
    predictions = read(tmp_path, "predictions.json")
    assert list(predictions) == [q.id for q in windows.questions]
    assert (predictions["1a"], predictions["1b"], predictions["1c"]) == ("blue", "there", "")


def test_the_files_are_in_the_official_formats(windows, model, tmp_path):
    SquadEvaluation(n_best=5)(model, data_of(windows, "v2.0"), tmp_path)
    predictions, best, odds, spans = (
        read(tmp_path, f"{name}.json") for name in ("predictions", "nbest_predictions", "null_odds", "best_spans")
    )
    assert {*predictions} == {*best} == {*odds} == {*spans} == {q.id for q in windows.questions}
    for id, rows in best.items():
        assert all({*row} == {"text", "probability", "start_logit", "end_logit"} for row in rows)
        scores = [row["start_logit"] + row["end_logit"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert sum(row["probability"] for row in rows) == pytest.approx(1)
        (null,) = (row for row in rows if row["text"] == "")
        found = [row for row in rows if row["text"]]
        assert len(found) == 5
        assert spans[id] == found[0]["text"]
        assert odds[id] == pytest.approx(
            null["start_logit"] + null["end_logit"] - found[0]["start_logit"] - found[0]["end_logit"]
        )
        assert predictions[id] == ("" if odds[id] > 0 else spans[id])


def test_the_numbers_are_those_of_the_files(windows, model, tmp_path):
    metrics = SquadEvaluation()(model, data_of(windows, "v2.0"), tmp_path)
    scoring = PredictionScoring(tmp_path, version="v2.0", file="dev-v2.0.json")
    plain = scoring(tmp_path / "predictions.json", tmp_path)
    best = scoring(tmp_path / "best_spans.json", tmp_path, na_probs=tmp_path / "null_odds.json")
    best = {name: value for name, value in best.items() if name.startswith("best_")}
    assert metrics == {f"test/{name}": value for name, value in (plain | best).items()}


def test_the_null_threshold(windows, model, tmp_path):
    for threshold, empty in ((-1e9, 21), (1e9, 0)):
        SquadEvaluation(null_threshold=threshold)(model, data_of(windows, "v2.0"), tmp_path)
        assert sum(not text for text in read(tmp_path, "predictions.json").values()) == empty


def test_no_threshold_in_v1(tmp_path, model):
    asked = make_articles(3)
    for row in asked:
        for paragraph in row["paragraphs"]:
            paragraph["qas"] = paragraph["qas"][:2]
    path = write_squad(tmp_path, *asked, name="dev-v1.1.json", version="1.1")
    windows = windows_of(path, "v1.1", byte_tokenizer(), CONFIG)
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = SquadEvaluation(null_threshold=-1e9)(model, data_of(windows, "v1.1"), folder)
    assert {*metrics} == {"test/exact_match", "test/f1"}
    assert sorted(path.name for path in folder.iterdir()) == ["nbest_predictions.json", "predictions.json"]
    assert all(read(folder, "predictions.json").values())
    assert all(row["text"] for rows in read(folder, "nbest_predictions.json").values() for row in rows)


def test_batches_change_nothing(windows, model, tmp_path):
    results = []
    for size in (1, 4, 99):
        SquadEvaluation(batch_size=size)(model, data_of(windows, "v2.0"), tmp_path)
        results.append((read(tmp_path, "predictions.json"), read(tmp_path, "null_odds.json")))
    for predictions, odds in results[1:]:
        assert predictions == results[0][0]
        assert odds == pytest.approx(results[0][1], abs=1e-4)  # float32 logits, in other batches


def test_a_longer_answer_than_allowed_is_not_given(windows, tmp_path):
    model, data = Predictor(windows, answers_of(windows)), data_of(windows, "v2.0")
    SquadEvaluation(max_answer_length=3)(model, data, tmp_path)
    assert all(len(text) <= 3 for text in read(tmp_path, "predictions.json").values())


def test_the_mode_of_the_model_is_left_as_it_was(windows, model, tmp_path):
    model.train()
    model.roberta.embeddings.eval()
    before = [module_.training for module_ in model.modules()]
    SquadEvaluation()(model, data_of(windows, "v2.0"), tmp_path)
    assert [module_.training for module_ in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_spans_are_decoded_while_the_model_computes(windows, tmp_path, monkeypatch):
    """The first batch's spans wait until the model has been called a second time: alone, they would wait for ever."""
    called = threading.Semaphore(0)
    decode, waited = module.window_spans, []

    def waiting(*arguments):
        if not waited:
            called.acquire()  # the first call
            waited.append(called.acquire(timeout=20))
        return decode(*arguments)

    monkeypatch.setattr(module, "window_spans", waiting)
    model = Predictor(windows, {})
    model.register_forward_pre_hook(lambda *_: called.release())
    SquadEvaluation(batch_size=4)(model, data_of(windows, "v2.0"), tmp_path)
    assert waited == [True]


def test_devices_share_the_questions(windows, model, tmp_path, monkeypatch):
    """Three devices, played one after the other: each answers its questions, whole, and gets the same numbers."""
    expected = SquadEvaluation()(model, data_of(windows, "v2.0"), tmp_path)
    data, evaluation, shares = data_of(windows, "v2.0"), SquadEvaluation(), []
    for rank in range(3):
        shares.append(evaluation._decode(model, data, range(len(windows.questions))[rank::3]))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_gather_object", lambda into, own: into.__setitem__(slice(None), shares))
    assert evaluation(model, data, tmp_path) == expected


def test_a_device_without_questions(windows, model):
    assert SquadEvaluation()._decode(model, data_of(windows, "v2.0"), []) == []


def test_values_that_are_none():
    with pytest.raises(ValueError, match=r"^task\.evaluation\.batch_size must be at least 1, got 0\.$"):
        SquadEvaluation(batch_size=0)
    with pytest.raises(ValueError, match=r"^task\.evaluation\.n_best must be at least 1, got 0\.$"):
        SquadEvaluation(n_best=0)


def test_a_model_with_token_types(tmp_path):
    windows = windows_of(
        write_squad(tmp_path, *make_articles(2)), "v2.0", bert_tokenizer(), WindowConfig(30, 4, "overlap", 8)
    )
    model, seen = tiny_encoder("bert"), []
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append({*inputs}), with_kwargs=True)
    SquadEvaluation()(model, data_of(windows, "v2.0", pad_id=0), tmp_path)
    assert seen == [{"input_ids", "attention_mask", "token_type_ids"}]
    assert torch.is_grad_enabled()
