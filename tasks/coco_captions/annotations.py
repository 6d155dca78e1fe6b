"""Reads captions and splits of COCO, in the official layout and in Karpathy's; both may be gzipped.

- captions_<split>.json (official): `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.
- dataset_coco.json (Karpathy): `{"images": [{"cocoid", "filepath", "filename", "split", "sentences": [{"raw"}]}]}`. It
  says the split of every image and holds the captions too, so it serves as either.
- a list of images (Karpathy's split as text): an id or a path a line, or "<path> <id>".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llama_adapter.data_files import first, read_json, read_text, repeated

SPLIT_OF = {"restval": "train"}  # what is left of val2014 is trained on, as everyone does


@dataclass(frozen=True)
class CaptionedImage:
    """An image and what people say of it.

    Attributes:
        id: COCO's number.
        path: relative to the folder of images, as in val2014/COCO_val2014_000000391895.jpg.
        captions: at least one; COCO has about five.
    """

    id: int
    path: str
    captions: tuple[str, ...]


def read_images(path: str | Path) -> dict[int, CaptionedImage]:
    """The images of a caption file by id, in its order.

    Args:
        path: captions_<split>.json or dataset_coco.json; gzipped too, and found with .gz at its end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, has other contents, names an image twice, or its images and captions do not belong
            together.
    """
    path = _found(Path(path), "task.data.annotations")
    content = read_json(path)
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} has no list `images`. Give captions_val2014.json or dataset_coco.json.")
    read = _karpathy if "sentences" in records[0] else _official
    images = read(path, content)
    if twice := repeated(image.id for image in images):
        raise ValueError(f"{path} has {len(twice)} image ids more than once: {first(twice)}.")
    if silent := [image.id for image in images if not image.captions]:
        raise ValueError(f"{path} has {len(silent)} images without a caption: {first(silent)}.")
    return {image.id: image for image in images}


def read_splits(path: str | Path) -> dict[str, list[int]]:
    """Image ids by split.

    Args:
        path: dataset_coco.json, or a list of images, which is one split and has the name "".

    Returns:
        train (with restval), val and test; or "" alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, has other contents, names no image or names one twice.
    """
    path = _found(Path(path), "task.data.split_file")
    if path.name.removesuffix(".gz").endswith(".json"):
        splits = _karpathy_splits(path)
    else:
        splits = {"": [_id_of_line(path, line) for line in read_text(path).split("\n") if line.strip()]}
    ids = [id for part in splits.values() for id in part]
    if not ids:
        raise ValueError(f"{path} names no image.")
    if twice := repeated(ids):
        raise ValueError(f"{path} names {len(twice)} images more than once: {first(twice)}.")
    return splits


def read_split(path: str | Path, split: str) -> list[int]:
    """Image ids of one split: that of dataset_coco.json, or all of a list.

    Raises:
        FileNotFoundError, ValueError: as `read_splits`; or there is no such split.
    """
    splits = read_splits(path)
    if "" in splits:
        return splits[""]
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}. Choose {', '.join(splits)}.")
    return splits[split]


def chosen(images: Mapping[int, CaptionedImage], ids: Sequence[int], path: str | Path) -> list[CaptionedImage]:
    """The images that a split names, in its order.

    Args:
        images: from `read_images`.
        ids: from `read_split`.
        path: the ids' file, for the error.

    Raises:
        ValueError: names images that have no captions.
    """
    if unknown := [id for id in ids if id not in images]:
        raise ValueError(
            f"{path} names {len(unknown)} images, of {len(ids)}, that no caption file has: {first(unknown)}. Set "
            "task.data.annotations and task.data.train_annotations to the files they are in."
        )
    return [images[id] for id in ids]


def missing_images(images: Iterable[CaptionedImage], folder: Path) -> list[Path]:
    """The files of images that are not there."""
    return [path for path in (folder / image.path for image in images) if not path.is_file()]


def check_images(images: Sequence[CaptionedImage], folder: Path) -> None:
    """Refuses to begin without all images.

    Raises:
        FileNotFoundError: counts the missing ones and names some.
    """
    if missing := missing_images(images, folder):
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images are missing: {first(missing)}. Set task.data.image_folder to the "
            "folder that holds train2014/ and val2014/, or task.data.images=false to do without them."
        )


def _official(path: Path, content: dict) -> list[CaptionedImage]:
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise ValueError(
            f"{path} has no list `annotations`. A file of images alone (image_info_...) has no captions to score with."
        )
    captions: dict[int, list[str]] = {}
    for number, record in enumerate(content["images"]):
        captions[_value(path, f"images[{number}]", record, "id", int)] = []
    unknown = []
    for number, annotation in enumerate(annotations):
        id = _value(path, f"annotations[{number}]", annotation, "image_id", int)
        caption = _value(path, f"annotations[{number}]", annotation, "caption", str)
        if id in captions:
            captions[id].append(caption)
        else:
            unknown.append(id)
    if unknown:
        raise ValueError(f"{path} has {len(unknown)} captions of images that it does not list: {first(unknown)}.")
    return [
        CaptionedImage(record["id"], _official_path(path, number, record), tuple(captions[record["id"]]))
        for number, record in enumerate(content["images"])
    ]


def _official_path(path: Path, number: int, record: dict) -> str:
    """COCO's files name no folder; the address of an image does, and so does the caption file's own name."""
    name = _value(path, f"images[{number}]", record, "file_name", str)
    address = PurePosixPath(str(record.get("coco_url", "")))
    if "/" in name:
        return name
    if address.name == name:
        return f"{address.parent.name}/{name}"
    return f"{re.sub(r'^captions_|[.].*$', '', path.name)}/{name}"


def _karpathy(path: Path, content: dict) -> list[CaptionedImage]:
    images = []
    for number, record in enumerate(content["images"]):
        where = f"images[{number}]"
        id, folder, name, sentences = (
            _value(path, where, record, *field)
            for field in (("cocoid", int), ("filepath", str), ("filename", str), ("sentences", list))
        )
        captions = tuple(_value(path, f"{where}.sentences", sentence, "raw", str) for sentence in sentences)
        images.append(CaptionedImage(id, f"{folder}/{name}", captions))
    return images


def _karpathy_splits(path: Path) -> dict[str, list[int]]:
    content = read_json(path)
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path} has no list `images`. Give dataset_coco.json, or a list of images (.txt).")
    splits: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        split = _value(path, f"images[{number}]", record, "split", str)
        id = _value(path, f"images[{number}]", record, "cocoid", int)
        splits.setdefault(SPLIT_OF.get(split, split), []).append(id)
    return splits


def _id_of_line(path: Path, line: str) -> int:
    # "<path> <id>", "<id>", or a path, whose name ends in the id.
    match = re.fullmatch(r"(?:\S+\s+)?(\d+)|\S*?(\d+)\.\w+", line.strip())
    if match is None:
        raise ValueError(f"{path} has the line {line.strip()!r}; a line is an image id, a path, or a path and an id.")
    return int(match[1] or match[2])


def _value(path: Path, where: str, record: object, key: str, kind: type) -> object:
    names = {int: "a whole number", str: "a text", list: "a list"}
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{path}: {where} has no `{key}`.")
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        raise ValueError(f"{path}: {where} has {record[key]!r} as its `{key}`; it must be {names[kind]}.")
    return record[key]


def _found(path: Path, key: str) -> Path:
    """The file itself, or gzipped."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"No file {path}. Set {key} to the file, relative to task.data.root.")
