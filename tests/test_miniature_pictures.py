"""The miniature's pictures: regenerated to the pixel, needed by the questions about them, told apart by the tower."""

import random
import re
from collections import Counter

import pytest
import torch
from PIL import Image

from llama_adapter.vision import load_processor, load_tower, read_image
from miniature import coco, scienceqa
from miniature.build import HERE
from miniature.captions import WORDINGS, caption, captions
from miniature.pretrain_clip import Pictures
from miniature.scenes import DARK, DOT, DOTS, DRAWN, PAINTS, SIZE, SPLIT_SCENES, Scene, draw, scenes_of
from miniature.world import VALUES, things
from tasks.coco_captions.annotations import check_images, chosen, read_images, read_splits
from tasks.scienceqa.metric import CATEGORIES, categories_of
from tasks.scienceqa.problems import SPLITS, read_problems

SCIENCEQA, COCO = HERE / "data/scienceqa", HERE / "data/coco"


def regions(image: Image.Image, colour: tuple[int, int, int]) -> list[set[tuple[int, int]]]:
    """The connected parts of one colour (neighbours share a side)."""
    left = {(x, y) for x in range(SIZE) for y in range(SIZE) if image.getpixel((x, y)) == colour}
    parts = []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            edge = {(x + dx, y + dy) for x, y in edge for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))} & left
            left -= edge
        parts.append(part)
    return parts


# --- scenes -------------------------------------------------------------------------------------------------------


def test_every_scene_is_in_one_split():
    scenes = [scene for split in SPLIT_SCENES for scene in scenes_of(split)]
    assert len(scenes) == len(set(scenes)) == 8**4


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"^split is 'minival'; choose one of train, val, test\.$"):
        scenes_of("minival")


@pytest.mark.parametrize("shape", VALUES["shape"])
@pytest.mark.parametrize("number", VALUES["number"])
def test_a_picture_shows_its_colour_and_as_many_dots_as_it_says(shape, number):
    image = draw(Scene("blue", shape, "cave", number), seed=len(shape))
    assert sorted(len(part) for part in regions(image, DARK)) == [DOT * DOT] * DOTS[number]
    assert sum(map(len, regions(image, PAINTS["blue"]))) > 150


def test_drawing_is_deterministic_and_varied():
    scene = scenes_of("train")[0]
    assert draw(scene, seed=1).tobytes() == draw(scene, seed=1).tobytes()
    assert len({draw(scene, seed=seed).tobytes() for seed in range(20)}) == 20


def test_captions_tell_the_scene():
    scene = Scene("orange", "moon", "lake", "two")
    assert caption(scene, WORDINGS[0]) == "An orange moon with two dots in the lake."
    assert caption(Scene("red", "moon", "lake", "two"), WORDINGS[1]).startswith("The picture shows a red moon with")
    made = captions(scene, random.Random(0))
    assert len(set(made)) == 5
    assert all("orange moon" in text for text in made)


# --- data sets ----------------------------------------------------------------------------------------------------


def test_committed_pictures_and_files_are_regenerated(tmp_path):
    for root, data_set in ((SCIENCEQA, scienceqa), (COCO, coco)):
        files = dict(data_set.files())
        assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == files.keys()
        for path, content in files.items():
            if isinstance(content, bytes):
                assert (root / path).read_bytes() == content, path
            else:
                with Image.open(root / path) as image:
                    assert image.convert("RGB").tobytes() == content.tobytes(), path


def test_the_official_readers_read_scienceqa():
    for split in SPLITS:
        problems = read_problems(SCIENCEQA, split, captions_file="captions.json")
        assert all(problem.image is None or problem.image_path(SCIENCEQA).is_file() for problem in problems)
        assert all(bool(problem.caption) == bool(problem.image) for problem in problems)
    filled = Counter(name for problem in read_problems(SCIENCEQA, "test") for name in categories_of(problem))
    assert all(filled[name] >= 50 for name in CATEGORIES)
    assert {len(problem.choices) for problem in read_problems(SCIENCEQA, "test")} == {2, 3, 4, 5}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_nothing_but_the_picture_tells_the_answer(split):
    names = {thing.name for thing in things()}
    asked = [problem for problem in read_problems(SCIENCEQA, split) if problem.image]
    for problem in asked:
        words = set(re.findall(r"\w+", f"{problem.question} {problem.hint}"))
        assert not words & names
        assert not words & set(problem.choices), "neither question nor hint holds a choice"
    chance = sum(1 / len(problem.choices) for problem in asked) / len(asked)
    assert chance == pytest.approx(0.32, abs=0.04)
    # Guessing by place or by value is no better than chance; four standard errors of a share near one third.
    bound = chance + 4 * (0.23 / len(asked)) ** 0.5
    for place in range(5):
        assert sum(problem.answer == place for problem in asked) / len(asked) < bound
    right = Counter(problem.choices[problem.answer] for problem in asked)
    offered = Counter(choice for problem in asked for choice in problem.choices)
    best = sum(
        max(problem.choices, key=lambda value: right[value] / offered[value]) == problem.choices[problem.answer]
        for problem in asked
    )
    if split == "train":  # large enough to say
        assert best / len(asked) < bound


def test_an_image_shows_the_right_answer_and_no_split_shares_a_scene():
    shown: dict[str, set[Scene]] = {}
    for split in scienceqa.WITH_IMAGE:
        for record, scene in scienceqa.problems(split):
            if scene is not None:
                assert record["choices"][record["answer"]] in [scene.value(attribute) for attribute in DRAWN]
                assert scene in scenes_of(split)
                shown.setdefault(split, set()).add(scene)
    assert not shown["train"] & shown["test"]


def test_the_official_readers_read_coco():
    images = {}
    for name in ("captions_train2014.json", "captions_val2014.json"):
        images |= read_images(COCO / "annotations" / name)
    assert read_images(COCO / "dataset_coco.json") == images
    splits = read_splits(COCO / "dataset_coco.json")
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 300, "val": 40, "test": 100}
    for ids in splits.values():
        check_images(chosen(images, ids, "split"), COCO)
    assert all(len(image.captions) == 5 for image in images.values())


def test_coco_shows_no_scene_of_scienceqa():
    asked = {scene for split in scienceqa.WITH_IMAGE for _, scene in scienceqa.problems(split)}
    assert not asked & {picture.scene for picture in coco.pictures()}


def test_the_data_are_small():
    files = [path for root in (SCIENCEQA, COCO) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4 * 2**20


# --- the tower ----------------------------------------------------------------------------------------------------


def shown_and_seen(split: str) -> tuple[list[Scene], torch.Tensor]:
    """The scenes of a split's images and the last class token of each, [scenes, C]."""
    tower, processor = load_tower(HERE / "clip"), load_processor(HERE / "clip")
    problems = [problem for problem in read_problems(SCIENCEQA, split) if problem.image]
    scenes = [scene for _, scene in scienceqa.problems(split) if scene is not None]
    pixels = torch.stack([read_image(problem.image_path(SCIENCEQA), processor) for problem in problems])
    assert pixels.shape == (len(scenes), 3, SIZE, SIZE)
    with torch.no_grad():
        return scenes, tower(pixels).last_hidden_state[:, 0]


def test_the_tower_is_small_and_tells_every_attribute_of_unseen_scenes():
    assert (HERE / "clip/model.safetensors").stat().st_size < 2 * 2**20
    (train, seen), (test, new) = shown_and_seen("train"), shown_and_seen("test")
    mean, std = seen.mean(dim=0), seen.std(dim=0)
    seen, new = (torch.nn.functional.pad((part - mean) / std, (0, 1), value=1.0) for part in (seen, new))
    for attribute, least in {"colour": 0.95, "place": 0.95, "shape": 0.5, "number": 0.5}.items():  # chance .125
        targets, truth = (
            torch.tensor([VALUES[attribute].index(scene.value(attribute)) for scene in part]) for part in (train, test)
        )
        one_hot = torch.nn.functional.one_hot(targets, 8).float()
        probe = torch.linalg.solve(seen.T @ seen + 10 * torch.eye(seen.shape[1]), seen.T @ one_hot)  # ridge regression
        assert ((new @ probe).argmax(dim=1) == truth).float().mean() > least, attribute


def test_the_pixels_of_pretraining_are_those_of_the_processor(tmp_path):
    pictures = Pictures("val", 1)
    scene = pictures.scenes[5]
    draw(scene, seed=5).save(tmp_path / "image.png")
    expected = read_image(tmp_path / "image.png", load_processor(HERE / "clip"))
    assert torch.allclose(pictures([scene], random.Random(0))[0], expected, atol=1e-5)
