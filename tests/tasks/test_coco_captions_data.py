"""The DataModule from plain arguments: which image is in which split, its examples, and what it refuses."""

import json
import logging

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llama_adapter.batches import BatchConfig
from llama_adapter.images import ImageFeatures
from llama_adapter.tokenizer import Tokenizer, load_tokenizer
from tasks.coco_captions.data import TEMPLATE, CocoCaptionsDataModule
from tests.test_vision import SIZE, tiny_tower
from tests.tiny_run import make_tokenizer

PROMPT = TEMPLATE.replace("{instruction}", "Generate caption for this image")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    tiny_tower().save_pretrained(folder)
    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def annotations(ids: range) -> dict:
    """Images with one caption or two, without and with blanks around it."""
    captions = [(id, f"ball {id}") for id in ids] + [(id, f" the ball is {id} ") for id in ids if id % 2]
    return {
        "images": [{"id": id, "file_name": f"{id}.png"} for id in ids],
        "annotations": [{"image_id": id, "caption": caption} for id, caption in captions],
    }


@pytest.fixture
def root(tmp_path):
    """Ten images: train2014 has 0 to 5, val2014 has 6 to 9."""
    (tmp_path / "annotations").mkdir()
    for folder, ids in (("train2014", range(6)), ("val2014", range(6, 10))):
        (tmp_path / f"annotations/captions_{folder}.json").write_text(json.dumps(annotations(ids)))
        (tmp_path / folder).mkdir()
        for id in ids:
            Image.new("RGB", (20, 12), (25 * id, 0, 0)).save(tmp_path / folder / f"{id}.png")
    return tmp_path


def make_data(root, tokenizer, **options) -> CocoCaptionsDataModule:
    data = CocoCaptionsDataModule(
        root, tokenizer, **({"images": False, "split_file": None, "max_length": 400} | options)
    )
    data.setup()
    return data


def ids_of(data: CocoCaptionsDataModule) -> tuple[list[int], ...]:
    parts = (data.train_dataset, data.validation_dataset, data.test_dataset)
    return tuple([image.id for image in part.images] for part in parts)


def test_without_a_split_the_annotations_are_the_test(root, tokenizer):
    assert ids_of(make_data(root, tokenizer)) == ([0, 1, 2, 3, 4, 5], [], [6, 7, 8, 9])
    (root / "validation.txt").write_text("5\n9\n")
    data = make_data(root, tokenizer, validation_split_file="validation.txt")
    assert ids_of(data) == ([0, 1, 2, 3, 4], [5, 9], [6, 7, 8])


def test_lists_of_test_and_validation_leave_the_rest_to_training(root, tokenizer):
    (root / "test.txt").write_text("8\n6\n")
    (root / "validation.txt").write_text("9\n")
    data = make_data(root, tokenizer, split_file="test.txt", validation_split_file="validation.txt")
    assert ids_of(data) == ([0, 1, 2, 3, 4, 5, 7], [9], [8, 6])


def test_karpathys_split(root, tokenizer):
    splits = {0: "train", 1: "train", 6: "restval", 7: "val", 8: "test"}
    images = [{"cocoid": id, "split": split} for id, split in splits.items()]
    (root / "dataset_coco.json").write_text(json.dumps({"images": images}))
    assert ids_of(make_data(root, tokenizer, split_file="dataset_coco.json")) == ([0, 1, 6], [7], [8])


def test_karpathys_file_is_all_that_is_needed(tmp_path, tokenizer):
    images = [
        {"cocoid": id, "split": split, "filepath": "val2014", "filename": f"{id}.jpg", "sentences": [{"raw": "a ball"}]}
        for id, split in ((1, "train"), (2, "restval"), (3, "val"), (4, "test"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    options = {"annotations": "dataset_coco.json", "split_file": "dataset_coco.json", "train_annotations": None}
    assert ids_of(make_data(tmp_path, tokenizer, **options)) == ([1, 2], [3], [4])


def test_every_caption_is_an_example(root, tokenizer, caplog):
    with caplog.at_level(logging.INFO, "tasks.coco_captions"):
        data = make_data(root, tokenizer)
    captions = [caption.strip() for image in data.train_dataset.images for caption in image.captions]
    assert len(data.train_dataset) == len(captions) == 9
    for example, caption in zip(data.train_dataset, captions, strict=True):
        assert set(example) == {"input_ids", "labels"}
        trained = example["labels"] != -100
        assert torch.equal(example["labels"][trained], example["input_ids"][trained])
        assert tokenizer.decode(example["input_ids"][~trained].tolist()) == PROMPT
        assert tokenizer.decode(example["input_ids"][trained].tolist()) == caption
        assert example["input_ids"][-1] in tokenizer.eos_ids
    assert data.train_dataset.tokens == sum(len(example["input_ids"]) for example in data.train_dataset)
    assert len(data.test_dataset) == 6
    assert caplog.records[0].getMessage().startswith("train: 6 images with 9 captions; ")
    assert data.prompt() == data.prompt({"instruction": "x"}) == PROMPT
    assert data.template_texts() == {"prompt": PROMPT}


def test_an_image_comes_with_each_of_its_captions(root, tokenizer, tower):
    reader = ImageFeatures(tower)
    batches = BatchConfig(global_batch_size=3, micro_batch_size=3)
    data = make_data(root, tokenizer, images=True, image_reader=reader, batches=batches, shuffle=False)
    folders = [image.path for image in data.train_dataset.images for _ in image.captions]
    for example, path in zip(data.train_dataset, folders, strict=True):
        assert torch.equal(example["pixel_values"], reader.columns([root / path])["pixel_values"])
    outline = data.train_dataset.outline(1)
    assert (len(outline["input_ids"]), len(outline["pixel_values"])) == (len(data.train_dataset[1]["input_ids"]), 1)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)
    assert len(data.image_columns(data.test_images)) == 4


def test_real_images_and_captions(shared, tower, tmp_path):
    """Grey and colour photographs of any shape, COCO's own files, and LLaMA's tokenizer, without special cases."""
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama")
    file = "captions_val2017_with_images.json"
    images = json.loads((shared / "data/coco" / file).read_text())["images"]
    (tmp_path / "half.txt").write_text("\n".join(str(image["id"]) for image in images[::2]))
    data = CocoCaptionsDataModule(
        shared / "data/coco",
        tokenizer,
        image_reader=ImageFeatures(tower),
        image_folder="images",
        train_annotations=None,
        annotations=file,
        split_file=str(tmp_path / "half.txt"),
        batches=BatchConfig(global_batch_size=60, micro_batch_size=60),
    )
    data.setup()
    assert (len(data.train_dataset), len(data.test_dataset)) == (60, 60)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (60, 3, SIZE, SIZE)
    assert torch.isfinite(batch["pixel_values"]).all()
    prompt = len(tokenizer.encode(PROMPT, bos=True))
    assert data.train_dataset.prompt == tokenizer.encode(PROMPT, bos=True)
    assert prompt + 8 < data.train_dataset.tokens / 60 < prompt + 20  # captions of about 10 words


def test_long_captions_are_cut_and_counted(root, tokenizer, caplog):
    length = len(tokenizer.encode(PROMPT, bos=True)) + 6
    data = make_data(root, tokenizer, max_length=length)
    cut = [len(example["input_ids"]) == length for example in data.train_dataset]
    assert data.train_dataset.truncated == 3
    assert sum(cut) >= 3
    assert all(example["input_ids"][-1] in tokenizer.eos_ids for example in data.train_dataset)
    assert caplog.records[0].getMessage() == f"train: 3 captions are cut to fit task.data.max_length {length}."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"images": True},
            "task.data.images is true, which needs an image_reader. Set it to false for text alone.",
        ),
        ({"max_length": 3}, "task.data.max_length must be at least 4, got 3."),
        ({"template": "Say: "}, "task.data.template is 'Say: '. It must hold {instruction}."),
        (
            {"template": "{instruction}", "instruction": "x", "max_length": 4, "validation_split_file": "v.txt"},
            "v.txt names 1 images, of 1, that no caption file has: 77. Set task.data.annotations and "
            "task.data.train_annotations to the files they are in.",
        ),
        (
            {"split_file": "both.txt", "validation_split_file": "both.txt"},
            "both.txt and both.txt both name 2 images: 6, 7. An image is in one split.",
        ),
        (
            {"train_annotations": None},
            "All 4 images of annotations/captions_val2014.json are for validation and test, so none is left to train "
            "on. Set task.data.train_annotations, task.data.split_file, or both.",
        ),
    ],
)
def test_errors(root, tokenizer, options, message):
    (root / "v.txt").write_text("77\n")
    (root / "both.txt").write_text("7\n6\n")
    with pytest.raises(ValueError) as error:
        make_data(root, tokenizer, **options)
    assert str(error.value) == message


def test_a_prompt_without_room_for_a_caption(root, tokenizer):
    length = len(tokenizer.encode(PROMPT, bos=True))
    for limit in (length + 1, 5):
        with pytest.raises(ValueError) as error:
            make_data(root, tokenizer, max_length=limit)
        assert str(error.value) == (
            f"The prompt has {length} tokens, which leaves no room for a caption within task.data.max_length {limit}. "
            "Raise it."
        )


def test_missing_images_are_refused_at_once(root, tokenizer, tower):
    (root / "val2014/7.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 10 images are missing: .*7.png. Set task.data.image_folder"):
        make_data(root, tokenizer, images=True, image_reader=ImageFeatures(tower))
