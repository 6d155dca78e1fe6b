"""Miniature VTAB-1k in the official layout: a folder and four list files for each data set.

As in VTAB (arXiv 1910.04867) there are three groups. Natural: things in the world's places, of kinds and shades that
the ViT never saw. Specialized: other ways to make a picture, pen drawings and cells under a microscope. Structured: the
things are known, the question is not: how many, where, which way, how far.

Every class is as frequent as the others (up to one picture), so guessing is right once in as many times as there are
classes. A label is drawn first, then everything else at random, whatever the label: size, colour, place, angle.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from miniature import figures
from miniature.scenes import GROUNDS, PAINTS, SIZE, draw_place
from miniature.world import VALUES

VTAB_SEED = 1910
SPLITS = {"train": 800, "val": 200, "test": 120}  # pictures
LISTS = {"train800": ("train",), "val200": ("val",), "train800val200": ("train", "val"), "test": ("test",)}

Colour = tuple[int, int, int]
Point = tuple[float, float]

TURN = 30  # degrees, either way
NEW_KINDS = tuple(figures.NEW)
SHADES: dict[str, Colour] = {
    "pink": (250, 150, 190),
    "rose": (215, 60, 120),
    "wine": (120, 20, 50),
    "rust": (180, 75, 30),
    "brown": (105, 65, 35),
    "beige": (215, 185, 150),
    "gold": (205, 155, 30),
    "olive": (115, 115, 30),
    "lime": (170, 225, 40),
    "mint": (130, 225, 180),
    "teal": (20, 125, 125),
    "cyan": (60, 210, 230),
    "navy": (20, 30, 100),
    "indigo": (85, 60, 200),
    "lilac": (190, 155, 235),
    "grey": (128, 128, 128),
}
COUNTS = tuple(str(count) for count in range(1, 7))
CELLS = ("plain", "dividing", "hollow", "long", "ragged")
GRID = 3  # fields across and down
POSITIONS = tuple(f"row {row} column {column}" for row in range(1, GRID + 1) for column in range(1, GRID + 1))
DIRECTIONS = ("up", "right", "down", "left")
NEAREST, FARTHER = 26, 1.5  # pixels: the radius of a thing at distance 1; each class is so many times as far away
DISTANCES = tuple(f"{FARTHER**step:.1f}" for step in range(5))


def kinds(label: int, generator: random.Random) -> Image.Image:
    """A thing of a new kind in a place of the world."""
    image = _place(generator)
    radius = generator.uniform(16, 22)
    _paint(image, NEW_KINDS[label], _paint_of(generator), _anywhere(generator, radius), radius, _turn(generator))
    return image


def colours(label: int, generator: random.Random) -> Image.Image:
    """A thing in a new shade in a place of the world, with smaller things in other shades beside it."""
    image = _place(generator)
    radius = generator.uniform(12, 22)
    shades = list(SHADES.values())
    for _ in range(2):
        centre = _anywhere(generator, 6)
        _paint(image, _shape(generator), generator.choice(shades), centre, radius * 0.4, _turn(generator))
    _paint(image, _shape(generator), shades[label], _anywhere(generator, radius), radius, _turn(generator))
    return image


def outlines(label: int, generator: random.Random) -> Image.Image:
    """A shape of the world as the line of a pen, among straight strokes."""
    paper, ink = generator.choice((((250, 248, 240), (40, 40, 60)), ((25, 50, 110), (225, 235, 250))))
    image = Image.new("RGB", (SIZE, SIZE), paper)
    pen = ImageDraw.Draw(image)
    for _ in range(3):
        start = _anywhere(generator, 3)
        turn, length = generator.uniform(0, 2 * math.pi), generator.uniform(8, 16)
        pen.line((*start, start[0] + length * math.cos(turn), start[1] + length * math.sin(turn)), fill=ink)
    radius = generator.uniform(16, 24)
    corners = figures.corners(VALUES["shape"][label], _anywhere(generator, radius), radius, _turn(generator))
    pen.line([*corners, *corners[:2]], fill=ink, width=3, joint="curve")
    return image


def cells(label: int, generator: random.Random) -> Image.Image:
    """Grey cells of one kind under a microscope. Half the size of other pictures."""
    size = SIZE // 2
    image = Image.new("L", (size, size), 176)
    pen = ImageDraw.Draw(image)
    for centre in _scattered(generator, generator.randint(2, 4), size=size, edge=5, distance=10):
        _cell(pen, CELLS[label], centre, generator)
    grain = image.load()
    for _ in range(150):
        x, y = generator.randrange(size), generator.randrange(size)
        grain[x, y] = max(0, min(255, grain[x, y] + generator.choice((-24, 24))))
    return image


def _cell(pen: ImageDraw.ImageDraw, kind: str, centre: Point, generator: random.Random) -> None:
    radius, angle = generator.uniform(3.5, 4.5), generator.uniform(0, 360)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def disc(size: float, shift: float, fill: int) -> None:
        x, y = centre[0] + shift * cos, centre[1] + shift * sin
        pen.ellipse((x - size, y - size, x + size, y + size), fill=fill)

    if kind == "long":
        for shift in (-2.5, -1.25, 0, 1.25, 2.5):
            disc(radius * 0.7, shift, 112)
        disc(1.5, 0, 56)
    elif kind == "ragged":
        pen.polygon(
            [
                (centre[0] + radius * 1.3 * x, centre[1] + radius * 1.3 * y)
                for x, y in figures.corners("star", (0, 0), 1.0, angle)
            ],
            fill=112,
        )
        disc(1.5, 0, 56)
    else:
        disc(radius, 0, 112)
        if kind == "dividing":
            disc(1.3, -2, 56)
            disc(1.3, 2, 56)
        elif kind == "hollow":
            disc(1.8, 0, 208)
        else:
            disc(1.5, 0, 56)


def count(label: int, generator: random.Random) -> Image.Image:
    """One to six things, apart from each other, each in a shape and colour of its own."""
    image = _plain()
    for centre in _scattered(generator, label + 1, size=SIZE, edge=8, distance=16):
        radius = generator.uniform(5.5, 8)
        _paint(image, _shape(generator), _paint_of(generator), centre, radius, _turn(generator))
    return image


def position(label: int, generator: random.Random) -> Image.Image:
    """One thing whose middle is in one of nine fields."""
    image = _plain()
    field = SIZE / GRID
    centre = tuple((part + generator.uniform(0.15, 0.85)) * field for part in (label % GRID, label // GRID))
    radius = generator.uniform(8, 14)
    _paint(image, _shape(generator), _paint_of(generator), centre, radius, _turn(generator))
    return image


def orientation(label: int, generator: random.Random) -> Image.Image:
    """An arrow that points up, right, down or left, more or less."""
    image = _plain()
    radius = generator.uniform(15, 20)
    angle = 90 * label + generator.uniform(-20, 20)
    _paint(image, "arrow", _paint_of(generator), _anywhere(generator, radius), radius, angle)
    return image


def distance(label: int, generator: random.Random) -> Image.Image:
    """A thing that is near or far: the farther, the smaller. All kinds are of one size in the world."""
    image = _plain()
    radius = NEAREST / FARTHER ** (label + generator.uniform(-0.25, 0.25))
    edge = min(radius, SIZE / 3)
    _paint(image, _shape(generator), _paint_of(generator), _anywhere(generator, edge), radius, _turn(generator))
    return image


@dataclass(frozen=True)
class DataSet:
    """One data set: its group, what each label means, and how a picture of a label is drawn."""

    group: str
    classes: tuple[str, ...]
    draw: Callable[[int, random.Random], Image.Image]


DATA_SETS = {
    "kinds": DataSet("natural", NEW_KINDS, kinds),
    "colours": DataSet("natural", tuple(SHADES), colours),
    "outlines": DataSet("specialized", VALUES["shape"], outlines),
    "cells": DataSet("specialized", CELLS, cells),
    "count": DataSet("structured", COUNTS, count),
    "position": DataSet("structured", POSITIONS, position),
    "orientation": DataSet("structured", DIRECTIONS, orientation),
    "distance": DataSet("structured", DISTANCES, distance),
}


def labels(name: str, split: str) -> list[int]:
    """The labels of a split in the order of its pictures."""
    of_all = [number % len(DATA_SETS[name].classes) for number in range(SPLITS[split])]
    random.Random(f"{VTAB_SEED} {name} {split}").shuffle(of_all)
    return of_all


def picture(name: str, split: str, number: int, label: int) -> Image.Image:
    """One picture of a data set."""
    return DATA_SETS[name].draw(label, random.Random(f"{VTAB_SEED} {name} {split} {number}"))


def files() -> Iterator[tuple[str, bytes | Image.Image]]:
    """All data sets, file by file: paths relative to the root, with bytes or a picture."""
    for name in DATA_SETS:
        of_split = {split: labels(name, split) for split in SPLITS}
        for file, splits in LISTS.items():
            lines = [
                f"images/{split}/{number:04d}.png {label}\n"
                for split in splits
                for number, label in enumerate(of_split[split])
            ]
            yield f"{name}/{file}.txt", "".join(lines).encode()
        for split, of_pictures in of_split.items():
            for number, label in enumerate(of_pictures):
                yield f"{name}/images/{split}/{number:04d}.png", picture(name, split, number, label)


# --- what the pictures share --------------------------------------------------------------------------------------


def _place(generator: random.Random) -> Image.Image:
    place = generator.choice(VALUES["place"])
    image = Image.new("RGB", (SIZE, SIZE), GROUNDS[place][0])
    draw_place(ImageDraw.Draw(image), place, generator)
    return image


def _plain() -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), GROUNDS["snow"][0])


def _paint(image: Image.Image, figure: str, colour: Colour, centre: Point, radius: float, angle: float) -> None:
    corners = figures.corners(figure, centre, radius, angle)
    outline = (60, 40, 30) if sum(colour) > 420 else (245, 245, 245)
    ImageDraw.Draw(image).line([*corners, *corners[:2]], fill=outline, width=3, joint="curve")
    image.paste(colour, mask=figures.mask(SIZE, figure, centre, radius, angle))


def _shape(generator: random.Random) -> str:
    return generator.choice(VALUES["shape"])


def _paint_of(generator: random.Random) -> Colour:
    return PAINTS[generator.choice(VALUES["colour"])]


def _turn(generator: random.Random) -> float:
    """Of a thing of the world, degrees: nearly upright."""
    return generator.uniform(-TURN, TURN)


def _anywhere(generator: random.Random, edge: float) -> Point:
    return generator.uniform(edge, SIZE - edge), generator.uniform(edge, SIZE - edge)


def _scattered(generator: random.Random, count: int, *, size: int, edge: float, distance: float) -> list[Point]:
    """Points in a square, no two nearer than a distance."""
    points: list[Point] = []
    tries = 0
    while len(points) < count:
        point = generator.uniform(edge, size - edge), generator.uniform(edge, size - edge)
        if all(math.dist(point, other) >= distance for other in points):
            points.append(point)
        tries += 1
        if tries % 100 == 0:  # there may be no room left
            points = []
    return points
