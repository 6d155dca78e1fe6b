"""The DataModule: which pictures a protocol reads, what a batch holds, and what a user is told."""

import logging

import pytest
import torch
from PIL import Image

from llama_adapter.batches import BatchConfig
from tasks.vtab1k.data import VtabDataModule
from tests.tiny_vtab import COUNTS, write_vtab


def made(root, **options) -> VtabDataModule:
    values = {"data_set": "tiny", "classes": 4, "counts": COUNTS, "model_image_size": 32, "model_patch_size": 8}
    data = VtabDataModule(root, **(values | options))
    data.setup()
    return data


@pytest.fixture
def root(tmp_path):
    write_vtab(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("protocol", "sizes"), [("final", (16, 0, 6)), ("choose", (12, 4, 0))])
def test_protocols(root, protocol, sizes, caplog):
    with caplog.at_level(logging.INFO):
        data = made(root, protocol=protocol)
    assert (len(data.train_dataset), len(data.validation_dataset), len(data.test_dataset)) == sizes
    assert len(data.scored_dataset) == sizes[1] + sizes[2]
    said = {"final": "16 pictures of train800val200.txt, 6 pictures of test.txt"}
    said["choose"] = "12 pictures of train800.txt, 4 pictures of val200.txt"
    assert caplog.messages == [f"tiny, 4 classes: {said[protocol]}."]


def test_choosing_does_not_need_the_test_pictures(root):
    (root / "tiny/test.txt").unlink()
    assert len(made(root, protocol="choose").validation_dataset) == 4


def test_an_example(root):
    example = made(root).train_dataset[2]
    assert example["pixels"].dtype == torch.uint8
    assert (example["pixels"] == 170).all()  # the third of four greys
    assert example["labels"].item() == 2


def test_a_batch(root):
    data = made(root)
    batch = data.collator([data.train_dataset[index] for index in (0, 3)])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert [batch["pixel_values"][0].unique().item(), batch["pixel_values"][1].unique().item()] == [-1, 1]
    assert batch["labels"].tolist() == [0, 3]
    # 4 x 4 patches and the class token
    assert batch["counts"] == (2 * 17, 2 * 17, 0, 2 * 17 * 17)


def test_tokens(root):
    assert made(root).train_dataset.tokens == 16 * 17


def test_a_batch_without_pictures_trains_nothing(root):
    batch = made(root).collator([])
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert batch["labels"].tolist() == [-100]
    assert batch["counts"] == (0, 17, 17, 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [False, True])
def test_every_picture_once_an_epoch(root, cache, workers):
    batches = BatchConfig(global_batch_size=6, micro_batch_size=3, num_workers=workers, batching="padded")
    data = made(root, cache=cache, batches=batches)
    labels = [batch["labels"].tolist() for batch in data.train_dataloader()]
    assert [len(part) for part in labels] == [3, 3, 3, 3, 2, 2]
    assert sorted(label for part in labels for label in part) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_kept_pictures_are_read_once(root, caplog):
    data = made(root)
    with caplog.at_level(logging.INFO):
        before = [data.train_dataset[index]["pixels"].clone() for index in range(16)]
        data.train_dataloader()
        for path in (root / "tiny/images").rglob("*.png"):
            path.unlink()
        data.train_dataloader()
    assert len([message for message in caplog.messages if "16 pictures are kept in 0 MB of memory" in message]) == 1
    for index, pixels in enumerate(before):
        assert torch.equal(data.train_dataset[index]["pixels"], pixels)


def test_awkward_pictures_go_through(root):
    folder = root / "tiny/images/train800"
    Image.new("L", (5, 9), 90).save(folder / "000000.png")
    Image.new("P", (5, 9), 3).save(folder / "000001.png")
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "000002.png")
    Image.new("RGBA", (300, 9), (9, 9, 9, 0)).save(folder / "000003.png")
    Image.new("CMYK", (9, 9)).save(folder / "000004.png", format="JPEG")  # the content counts, not the name
    data = made(root)
    data.train_dataloader()
    assert data.collator([data.train_dataset[index] for index in range(5)])["pixel_values"].shape == (5, 3, 32, 32)


def test_a_picture_that_cannot_be_read_is_named(root):
    path = root / "tiny/images/train800/000003.png"
    path.write_text("no picture")
    with pytest.raises(ValueError, match=rf"{path} is not a readable image: "):
        made(root).train_dataloader()


def test_the_size_is_the_models_unless_it_says_none(root):
    assert made(root).preprocessing.image_size == 32
    assert made(root, model_image_size=None, image_size=48).preprocessing.image_size == 48
    assert made(root, model_image_size=None).preprocessing.image_size == 224
    assert made(root, model_image_size=0).preprocessing.image_size == 224  # of a model that does not say


def test_what_the_adapters_file_is_told(root):
    assert made(root, statistics="imagenet").template_texts() == {
        "interpolation": "bilinear",
        "statistics": "imagenet",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "test"}, "task.data.protocol is 'test'. Choose choose or final."),
        ({"classes": 1}, "task.data.classes must be a whole number of at least 2, got 1."),
        ({"classes": "many"}, "task.data.classes must be a whole number of at least 2, got 'many'."),
        (
            {"counts": {"train": 800}},
            "task.data.counts has 'train', but the lists are train800, val200, train800val200, test.",
        ),
        (
            {"image_size": 48},
            "task.data.image_size is 48, but the model takes pictures of 32 x 32. Set it to null for the model's own.",
        ),
    ],
)
def test_wrong_options(root, options, message):
    with pytest.raises(ValueError) as error:
        made(root, **options)
    assert str(error.value) == message


def test_no_data_set(root):
    with pytest.raises(FileNotFoundError) as error:
        made(root, data_set="dtd")
    assert str(error.value) == f"No data set {root / 'dtd'}. Set task.data.root to the folder that holds dtd/."
