"""The evaluation of a model, against the model's own answers one picture at a time."""

import json

import pytest
import torch

from llama_adapter.batches import BatchConfig
from llama_adapter.shares import in_shares
from tasks.vtab1k import evaluation
from tasks.vtab1k.data import VtabDataModule
from tasks.vtab1k.evaluation import VtabEvaluation
from tests.tiny_vtab import COUNTS, tiny_vit, write_vtab


def made(root, workers: int = 0, **options) -> VtabDataModule:
    batches = BatchConfig(num_workers=workers, batching="padded")
    values = {"data_set": "tiny", "classes": 4, "counts": COUNTS, "model_image_size": 32, "model_patch_size": 8}
    data = VtabDataModule(root, batches=batches, **(values | options))
    data.setup()
    return data


@pytest.fixture
def root(tmp_path):
    write_vtab(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return tiny_vit()


def by_hand(model, dataset) -> list[int]:
    normalise = dataset.preprocessing.normalise
    with torch.no_grad():
        return [
            model(pixel_values=normalise(dataset[index]["pixels"])[None]).logits.argmax().item()
            for index in range(len(dataset))
        ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("protocol", "part"), [("final", "test"), ("choose", "val")])
def test_accuracy_and_predictions(root, model, tmp_path, protocol, part, workers):
    data = made(root, workers, protocol=protocol)
    metrics = VtabEvaluation(batch_size=4)(model, data, tmp_path)
    chosen = by_hand(model, data.scored_dataset)
    labels = [picture.label for picture in data.scored_dataset.pictures]
    right = sum(a == b for a, b in zip(chosen, labels, strict=True))
    assert metrics == {f"{part}/accuracy": 100 * right / len(labels), f"{part}/scored": float(len(labels))}
    names = [picture.name for picture in data.scored_dataset.pictures]
    assert json.loads((tmp_path / "predictions.json").read_text()) == dict(zip(names, chosen, strict=True))


def test_a_model_in_training_mode_is_evaluated_without_dropout(root, tmp_path):
    model = tiny_vit()
    model.dropout = torch.nn.Dropout(0.9)
    first = VtabEvaluation()(model.train(), made(root), tmp_path)
    assert first == VtabEvaluation()(tiny_vit(), made(root), tmp_path)


def test_a_model_in_bfloat16(root, tmp_path):
    assert VtabEvaluation()(tiny_vit().bfloat16(), made(root), tmp_path)["test/scored"] == 6


def test_shares_of_devices_make_the_whole(root, model, tmp_path, monkeypatch):
    """Four devices, of which some have one picture and others two: each one's own share, joined as `in_shares` does."""
    data, whole = made(root), {}

    def shares(model, items, work):
        assert in_shares(model, items, work) == in_shares(
            model, items, lambda share: [work([item])[0] for item in share]
        )
        results = [None] * len(items)
        for rank in range(4):
            results[rank::4] = work(items[rank::4])
        whole["chosen"] = results
        return results

    monkeypatch.setattr(evaluation, "in_shares", shares)
    VtabEvaluation()(model, data, tmp_path)
    assert whole["chosen"] == by_hand(model, data.test_dataset)
    assert VtabEvaluation()._classes(model, data, range(0)) == []  # more devices than pictures


@pytest.mark.parametrize(("gallery", "shown"), [(60, 6), (3, 3), (0, None)])
def test_the_page(root, model, tmp_path, gallery, shown):
    VtabEvaluation(gallery=gallery)(model, made(root), tmp_path)
    page = tmp_path / "predictions.html"
    assert page.is_file() == (shown is not None)
    if shown is not None:
        text = page.read_text()
        assert text.count("<article") == text.count("data:image/png;base64,") == shown
        assert f"The page shows {shown}, spread over the list." in text
