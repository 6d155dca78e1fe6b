"""Caption files and splits in both layouts, whole and broken; every error says what to do."""

import gzip
import json

import pytest

from tasks.coco_captions.annotations import (
    CaptionedImage,
    check_images,
    chosen,
    missing_images,
    read_images,
    read_split,
    read_splits,
)


def official(images: dict[int, str], captions: list[tuple[int, str]], **surplus) -> dict:
    """COCO's layout, with the keys that nobody reads."""
    return {
        "info": {"year": 2014},
        "images": [{"id": id, "file_name": name, "height": 1} | surplus for id, name in images.items()],
        "annotations": [{"id": 900 + n, "image_id": id, "caption": text} for n, (id, text) in enumerate(captions)],
    }


def karpathy(*rows: tuple[int, str, list[str]]) -> dict:
    return {
        "dataset": "coco",
        "images": [
            {
                "cocoid": id,
                "imgid": number,
                "split": split,
                "filepath": "val2014",
                "filename": f"COCO_val2014_{id:012}.jpg",
                "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
            }
            for number, (id, split, captions) in enumerate(rows)
        ],
    }


def write(path, content) -> object:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


TWO = {7: "a.jpg", 3: "b.jpg"}


def test_official_annotations(tmp_path):
    path = write(tmp_path / "captions_val2014.json", official(TWO, [(3, "a dog"), (7, " A café. "), (3, "")]))
    images = read_images(path)
    assert list(images) == [7, 3]
    assert images[7] == CaptionedImage(7, "val2014/a.jpg", (" A café. ",))  # the folder of the file's own name
    assert images[3].captions == ("a dog", "")


def test_the_folder_of_an_image_is_what_the_file_says(tmp_path):
    content = official({1: "x/a.jpg"}, [(1, "a dog")])
    content["images"].append({"id": 2, "file_name": "b.jpg", "coco_url": "http://images.cocodataset.org/val2017/b.jpg"})
    content["annotations"].append({"image_id": 2, "caption": "b"})
    images = read_images(write(tmp_path / "some.json", content))
    assert [image.path for image in images.values()] == ["x/a.jpg", "val2017/b.jpg"]


@pytest.mark.parametrize("name", ["captions_val2014.json.gz", "captions_val2014.json"])
def test_a_gzipped_file_is_read_and_found(tmp_path, name):
    content = json.dumps(official(TWO, [(3, "a"), (7, "b")])).encode()
    (tmp_path / "captions_val2014.json.gz").write_bytes(gzip.compress(content))
    assert read_images(tmp_path / name)[3] == CaptionedImage(3, "val2014/b.jpg", ("a",))


def test_karpathys_file_has_captions_and_splits(tmp_path):
    rows = [(5, "restval", ["a", "b"]), (9, "test", ["c"]), (4, "train", ["d"]), (2, "val", ["e"])]
    path = write(tmp_path / "dataset_coco.json", karpathy(*rows))
    assert read_images(path)[5] == CaptionedImage(5, "val2014/COCO_val2014_000000000005.jpg", ("a", "b"))
    assert read_splits(path) == {"train": [5, 4], "test": [9], "val": [2]}
    assert read_split(path, "train") == [5, 4]


def test_lists_of_images(tmp_path):
    text = "val2014/COCO_val2014_000000391895.jpg 391895\n12\nval2014/COCO_val2014_000000000060.jpg\n\n"
    path = write(tmp_path / "test.txt", text)
    assert read_splits(path) == {"": [391895, 12, 60]}
    assert read_split(path, "test") == read_split(path, "val") == [391895, 12, 60]


def test_the_real_files(shared):
    images = read_images(shared / "data/coco/captions_val2017.json")
    assert (len(images), sum(len(image.captions) for image in images.values())) == (5000, 25014)
    test, val = (read_split(shared / f"data/coco/karpathy_{name}_images.txt", name) for name in ("test", "valid"))
    assert len(test) == len(val) == 5000
    assert not set(test) & set(val)
    assert sum(id in images for id in test) == 593
    with_images = read_images(shared / "data/coco/captions_val2017_with_images.json")
    assert missing_images(with_images.values(), shared / "data/coco/images") == []
    assert len(missing_images(images.values(), shared / "data/coco/images")) == 5000 - 24


def test_missing_images_are_counted_and_named(tmp_path):
    images = [CaptionedImage(id, f"val2014/{id}.jpg", ("a",)) for id in range(8)]
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/3.jpg").touch()
    check_images([images[3]], tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        check_images(images, tmp_path)
    shown = ", ".join(str(tmp_path / f"val2014/{id}.jpg") for id in (0, 1, 2, 4, 5))
    assert str(error.value) == (
        f"7 of 8 images are missing: {shown} and 2 more. Set task.data.image_folder to the folder that holds "
        "train2014/ and val2014/, or task.data.images=false to do without them."
    )


ONE = {1: "a.jpg"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "{path} is not JSON: Expecting ',' delimiter (line 1, column 6). Is it cut off?"),
        ([], "{path} has no list `images`. Give captions_val2014.json or dataset_coco.json."),
        ({"images": []}, "{path} has no list `images`. Give captions_val2014.json or dataset_coco.json."),
        (
            {"images": [{"id": 1, "file_name": "a"}]},
            "{path} has no list `annotations`. A file of images alone (image_info_...) has no captions to score with.",
        ),
        ({"images": [{"file_name": "a"}], "annotations": []}, "{path}: images[0] has no `id`."),
        (
            {"images": [{"id": "1", "file_name": "a"}], "annotations": []},
            "{path}: images[0] has '1' as its `id`; it must be a whole number.",
        ),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]},
            "{path}: images[0] has no `file_name`.",
        ),
        (official(ONE, [(1, "a")]) | {"annotations": [{"image_id": 1}]}, "{path}: annotations[0] has no `caption`."),
        (official(ONE, [(1, None)]), "{path}: annotations[0] has None as its `caption`; it must be a text."),
        (
            official(ONE, [(1, "a"), *((id, "a") for id in range(2, 9))]),
            "{path} has 7 captions of images that it does not list: 2, 3, 4, 5, 6 and 2 more.",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": [{"image_id": 1, "caption": "a"}]},
            "{path} has 1 image ids more than once: 1.",
        ),
        (official(TWO, [(3, "a")]), "{path} has 1 images without a caption: 7."),
        (karpathy((1, "test", [])), "{path} has 1 images without a caption: 1."),
        (
            {"images": [{"cocoid": 1, "sentences": [], "filename": "a"}]},
            "{path}: images[0] has no `filepath`.",
        ),
        (
            {"images": [{"cocoid": 1, "sentences": ["a"], "filename": "a", "filepath": "b"}]},
            "{path}: images[0].sentences has no `raw`.",
        ),
    ],
)
def test_broken_caption_files(tmp_path, content, message):
    path = write(tmp_path / "captions.json", content)
    with pytest.raises(ValueError) as error:
        read_images(path)
    assert str(error.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "{path} names no image."),
        ("a.txt", "5\n5\n6\n", "{path} names 1 images more than once: 5."),
        (
            "a.txt",
            "val2014/dog.jpg\n",
            "{path} has the line 'val2014/dog.jpg'; a line is an image id, a path, or a path and an id.",
        ),
        ("a.json", [1, 2], "{path} has no list `images`. Give dataset_coco.json, or a list of images (.txt)."),
        ("a.json", {"images": [{"cocoid": 1}]}, "{path}: images[0] has no `split`."),
        ("a.json", karpathy((1, "train", ["a"])), "{path} has no split 'test'. Choose train."),
    ],
)
def test_broken_split_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError) as error:
        read_split(path, "test")
    assert str(error.value) == message.format(path=path)


def test_files_that_are_not_there_or_cut(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_images(tmp_path / "a.json")
    assert str(error.value) == (
        f"No file {tmp_path}/a.json. Set task.data.annotations to the file, relative to task.data.root."
    )
    with pytest.raises(FileNotFoundError, match="Set task.data.split_file to the file, relative to task.data.root"):
        read_split(tmp_path / "a.txt", "test")
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(b"[" + b"1, " * 1000)[:-12])
    with pytest.raises(ValueError, match="cut.json.gz cannot be read: .* Is it cut off, or not UTF-8 text?"):
        read_images(cut)


def test_a_split_that_names_unknown_images(tmp_path):
    images = {id: CaptionedImage(id, "a", ("a",)) for id in (1, 2)}
    assert [image.id for image in chosen(images, [2, 1], "a.txt")] == [2, 1]
    with pytest.raises(ValueError) as error:
        chosen(images, [1, *range(3, 10)], "a.txt")
    assert str(error.value) == (
        "a.txt names 7 images, of 8, that no caption file has: 3, 4, 5, 6, 7 and 2 more. Set task.data.annotations and "
        "task.data.train_annotations to the files they are in."
    )
