"""Miniature COCO captions in the official layout: annotations/captions_<year>.json, Karpathy's split, image folders.

Every image shows a scene and has five captions in different words. The scenes are none of ScienceQA's, and those of a
split are in no other.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from miniature import scienceqa
from miniature.captions import captions
from miniature.scenes import SIZE, Scene, draw, scenes_of

COCO_SEED = 2014
FOLDERS = {"train": "train2014", "restval": "val2014", "val": "val2014", "test": "val2014"}  # as in Karpathy's split
IMAGES = {"train": 280, "restval": 20, "val": 40, "test": 100}
SCENES = {"train": "train", "restval": "train", "val": "val", "test": "test"}  # whose scenes a split shows


@dataclass(frozen=True)
class Picture:
    """One image of the data set."""

    id: int
    split: str
    scene: Scene
    captions: list[str]

    @property
    def folder(self) -> str:
        return FOLDERS[self.split]

    @property
    def file_name(self) -> str:
        return f"COCO_{self.folder}_{self.id:012d}.png"


def pictures() -> list[Picture]:
    """All images, split after split."""
    generator = random.Random(COCO_SEED)
    used = dict(scienceqa.WITH_IMAGE)
    made: list[Picture] = []
    for split, count in IMAGES.items():
        source = SCENES[split]
        for scene in scenes_of(source)[used[source] : used[source] + count]:
            made.append(Picture(len(made) + 1, split, scene, captions(scene, generator)))
        used[source] += count
    return made


def files() -> Iterator[tuple[str, bytes | Image.Image]]:
    """The data set, file by file: paths relative to its root, with bytes or a picture."""
    every = pictures()
    for folder in dict.fromkeys(FOLDERS.values()):
        content = annotations([picture for picture in every if picture.folder == folder])
        yield f"annotations/captions_{folder}.json", _json(content)
    yield "dataset_coco.json", _json(karpathy(every))
    for picture in every:
        yield f"{picture.folder}/{picture.file_name}", draw(picture.scene, seed=picture.id)


def annotations(chosen: list[Picture]) -> dict[str, object]:
    """COCO's own form."""
    images = [
        {"license": 1, "file_name": picture.file_name, "height": SIZE, "width": SIZE, "id": picture.id}
        for picture in chosen
    ]
    sentences = [
        {"image_id": picture.id, "id": _sentence_id(picture, number), "caption": text}
        for picture in chosen
        for number, text in enumerate(picture.captions)
    ]
    info = {"description": "Miniature COCO captions: drawn scenes of an invented world", "version": "1.0"}
    licenses = [{"id": 1, "name": "the licence of this repository"}]
    return {"info": info, "images": images, "licenses": licenses, "annotations": sentences}


def karpathy(every: list[Picture]) -> dict[str, object]:
    """Karpathy's form, which says the split of every image."""
    images = []
    for number, picture in enumerate(every):
        sentences = [
            {
                "tokens": re.findall(r"\w+", text.lower()),
                "raw": text,
                "imgid": number,
                "sentid": _sentence_id(picture, index),
            }
            for index, text in enumerate(picture.captions)
        ]
        images.append(
            {
                "filepath": picture.folder,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": picture.file_name,
                "imgid": number,
                "split": picture.split,
                "sentences": sentences,
                "cocoid": picture.id,
            }
        )
    return {"images": images, "dataset": "coco"}


def _sentence_id(picture: Picture, number: int) -> int:
    return len(picture.captions) * (picture.id - 1) + number + 1


def _json(content: object) -> bytes:
    """Without indentation, as COCO's own files."""
    return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
