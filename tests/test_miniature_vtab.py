"""The miniature's ViT and VTAB: regenerated to the pixel, labels that tell the truth, nothing but the picture tells them."""

import math
import random
from collections import Counter
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTForImageClassification

from miniature import figures, pretrain_vit, vtab
from miniature.build import HERE
from miniature.scenes import GROUNDS, scenes_of
from miniature.world import VALUES
from tasks.vtab1k.data import VtabDataModule
from tasks.vtab1k.lists import read_lists
from tasks.vtab1k.preprocessing import Preprocessing

VTAB = HERE / "data/vtab1k"
GROUND = GROUNDS["snow"][0]
COUNTS = {"train800": 800, "val200": 200, "train800val200": 1000, "test": vtab.SPLITS["test"]}


# --- figures ------------------------------------------------------------------------------------------------------


def test_the_worlds_shapes_are_drawn_and_no_new_kind_has_such_a_name():
    assert tuple(figures.WORLD) == VALUES["shape"]
    assert not set(figures.WORLD) & set(figures.NEW)


@pytest.mark.parametrize("figure", figures.FIGURES)
def test_a_figure_stays_within_its_radius_and_turns(figure):
    assert all(math.hypot(x, y) <= 1.2 for x, y in figures.FIGURES[figure])
    upright = figures.corners(figure, (30, 20), 10)
    turned = figures.corners(figure, (30, 20), 10, angle=90)
    for (x, y), (u, v) in zip(upright, turned, strict=True):
        assert (u - 30, v - 20) == pytest.approx((-(y - 20), x - 30))  # clockwise, y downwards
    assert figures.mask(64, figure, (32, 32), 20).histogram()[255] > 150


# --- data sets ----------------------------------------------------------------------------------------------------


def test_committed_pictures_and_lists_are_regenerated():
    files = dict(vtab.files())
    assert {path.relative_to(VTAB).as_posix() for path in VTAB.rglob("*") if path.is_file()} == files.keys()
    for path, content in files.items():
        if isinstance(content, bytes):
            assert (VTAB / path).read_bytes() == content, path
        else:
            with Image.open(VTAB / path) as image:
                assert image.convert(content.mode).tobytes() == content.tobytes(), path


def test_the_data_are_small():
    sizes = [path.stat().st_size for path in VTAB.rglob("*") if path.is_file()]
    assert len(sizes) <= 9000
    assert sum(sizes) < 4 * 2**20


def test_two_data_sets_a_group():
    groups = Counter(data_set.group for data_set in vtab.DATA_SETS.values())
    assert groups.keys() == {"natural", "specialized", "structured"}
    assert min(groups.values()) >= 2


@pytest.mark.parametrize("name", vtab.DATA_SETS)
def test_the_official_reader_reads_balanced_lists_without_a_shared_picture(name):
    classes = len(vtab.DATA_SETS[name].classes)
    lists = read_lists(VTAB / name, list(COUNTS), classes=classes, counts=COUNTS)
    for name_of_list, pictures in lists.items():
        frequencies = Counter(picture.label for picture in pictures)
        assert len(frequencies) == classes, name_of_list
        assert max(frequencies.values()) - min(frequencies.values()) <= 2
    whole = {(picture.name, picture.label) for picture in lists["train800val200"]}
    assert whole == {(p.name, p.label) for part in ("train800", "val200") for p in lists[part]}
    shown = {split: set() for split in vtab.SPLITS}
    for picture in lists["train800val200"] + lists["test"]:
        shown[picture.name.split("/")[1]].add((VTAB / name / picture.name).read_bytes())
    assert not shown["test"] & (shown["train"] | shown["val"])


def test_every_picture_of_a_label_is_another():
    for data_set in vtab.DATA_SETS.values():
        generator = random.Random(0)
        assert len({data_set.draw(0, generator).tobytes() for _ in range(10)}) == 10


def painted(image: Image.Image) -> torch.Tensor:
    """Where the ground is not, [64, 64] boolean."""
    return (torch.from_numpy(np.array(image)) != torch.tensor(GROUND)).any(dim=-1)


def parts(image: Image.Image) -> int:
    """Connected parts that are not ground."""
    left = {(int(x), int(y)) for x, y in painted(image).nonzero()}
    count = 0
    while left:
        edge, size = {left.pop()}, 0
        while edge:
            size += len(edge)
            edge = {(x + dx, y + dy) for x, y in edge for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & left
            left -= edge
        count += size > 12
    return count


@pytest.mark.parametrize("label", range(len(vtab.COUNTS)))
def test_count_shows_as_many_things_as_its_label_says(label):
    counted = [parts(vtab.count(label, random.Random(seed))) for seed in range(9)]
    assert median(counted) == int(vtab.COUNTS[label])  # in a few pictures two corners touch
    assert max(counted) == int(vtab.COUNTS[label])


def test_position_shows_the_thing_in_its_field():
    for label in range(len(vtab.POSITIONS)):
        rows, columns = painted(vtab.position(label, random.Random(label))).nonzero().float().mean(dim=0) * 3 / 64
        row, column = divmod(label, 3)
        assert row - 0.35 < rows < row + 1.35
        assert column - 0.35 < columns < column + 1.35


def test_distance_makes_things_smaller():
    areas = [
        sum(int(painted(vtab.distance(label, random.Random(seed))).sum()) for seed in range(20)) for label in range(5)
    ]
    assert areas == sorted(areas, reverse=True)


def test_orientation_turns_clockwise():
    """The point of an arrow is narrow: most of it lies behind the middle of its length."""
    for label, direction in enumerate(vtab.DIRECTIONS):
        rows, columns = painted(vtab.orientation(label, random.Random(label))).nonzero().float().unbind(dim=1)
        angle = math.radians(90 * label)
        along = columns * math.sin(angle) - rows * math.cos(angle)
        across = columns * math.cos(angle) + rows * math.sin(angle)
        across = (across - across.mean()).abs()
        middle = (along.max() + along.min()) / 2
        assert across[along > middle].mean() > across[along <= middle].mean(), direction  # the head is the wide half


# --- the ViT ------------------------------------------------------------------------------------------------------


def test_the_vit_is_small_and_loads_without_a_head():
    assert (HERE / "vit/model.safetensors").stat().st_size < 1.5 * 2**20
    model, loaded = ViTForImageClassification.from_pretrained(HERE / "vit", num_labels=5, output_loading_info=True)
    assert set(loaded["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not loaded["unexpected_keys"]
    pixels = torch.zeros(2, 3, 64, 64)
    assert model(pixel_values=pixels).logits.shape == (2, 5)


def test_the_vit_tells_colours_and_shapes_of_unseen_scenes():
    """By a probe fitted on training scenes: no head of the pretraining was kept."""
    model = ViTForImageClassification.from_pretrained(HERE / "vit", dtype=torch.float32).vit.eval()
    generator = random.Random(5)
    seen, of_seen = pretrain_vit.batch_of(list(scenes_of("train")[:1000]), generator)
    new, of_new = pretrain_vit.batch_of(list(scenes_of("val")[:250]), generator)
    with torch.no_grad():
        train, test = (model(pixels).last_hidden_state[:, 0] for pixels in (seen, new))
    train, test = (torch.nn.functional.pad(part, (0, 1), value=1.0) for part in (train, test))
    for divide, least in ((lambda kind: kind // 8, 0.9), (lambda kind: kind % 8, 0.5)):  # colour, shape; chance .125
        one_hot = torch.nn.functional.one_hot(divide(of_seen), 8).float()
        probe = torch.linalg.solve(train.T @ train + torch.eye(train.shape[1]), train.T @ one_hot)
        assert ((test @ probe).argmax(dim=1) == divide(of_new)).float().mean() > least


def test_the_pixels_of_pretraining_are_those_of_the_task(tmp_path):
    image = pretrain_vit.view(scenes_of("val")[3], random.Random(3))
    image.save(tmp_path / "image.png")
    preprocessing = Preprocessing(64, interpolation="bilinear", statistics="half")
    expected = preprocessing.normalise(preprocessing.read(tmp_path / "image.png")[None])
    assert torch.allclose(pretrain_vit.pixel_values([image]), expected, atol=1e-5)


def test_the_data_module_reads_small_grey_pictures_in_the_models_size():
    data = VtabDataModule(VTAB, data_set="cells", classes=5, model_image_size=64, model_patch_size=8, cache=False)
    data.setup()
    assert data.train_dataset[0]["pixels"].shape == (3, 64, 64)
    assert (len(data.train_dataset), len(data.test_dataset)) == (1000, vtab.SPLITS["test"])
