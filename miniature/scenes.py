"""The pictures of the miniature world: 64 x 64 pixels, drawn with Pillow from four of the five attributes.

A scene has a colour, a shape, a place and a number of dots, each any of the world's eight values: 4,096 scenes. They
are not the things of `world.py`: no scene has a name, so nothing that was read about a thing helps with a picture.
Material is not drawn.

Every scene belongs to one split. All pictures of a scene, which differ in where and how large things are drawn, stay in
it, and the vision tower is pretrained on the training scenes alone: a test picture shows a combination that nothing
was trained on.
"""

import math
import random
from dataclasses import dataclass
from functools import cache
from itertools import product

from PIL import Image, ImageDraw, ImageFilter

from miniature.world import VALUES

SIZE = 64  # pixels
DRAWN = ("colour", "shape", "place", "number")  # attributes
SCENE_SEED = 1030
SPLIT_SCENES = {"train": 3072, "val": 512, "test": 512}
DOTS = {word: count for count, word in enumerate(VALUES["number"], start=2)}
STRIP, DOT = 9, 5  # pixels: the strip's height, a dot's side
DARK = (60, 40, 30)

Colour = tuple[int, int, int]
Point = tuple[float, float]

PAINTS: dict[str, Colour] = {
    "red": (220, 30, 40),
    "blue": (40, 70, 220),
    "green": (20, 150, 50),
    "yellow": (250, 220, 40),
    "black": (20, 20, 20),
    "white": (255, 255, 255),
    "purple": (140, 50, 170),
    "orange": (250, 140, 20),
}
LIGHT = ("yellow", "white", "orange")  # they have a dark outline
GROUNDS: dict[str, tuple[Colour, Colour]] = {  # the ground, and what is drawn on it
    "forest": ((150, 190, 150), (70, 115, 80)),
    "desert": ((240, 215, 165), (215, 180, 120)),
    "garden": ((195, 228, 170), (235, 130, 170)),
    "cave": ((130, 125, 135), (65, 60, 70)),
    "city": ((200, 205, 215), (140, 145, 160)),
    "lake": ((150, 205, 235), (95, 150, 200)),
    "snow": ((205, 220, 235), (250, 252, 255)),
    "field": ((225, 205, 120), (190, 165, 80)),
}


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture shows: one value of each attribute in DRAWN."""

    colour: str
    shape: str
    place: str
    number: str

    def value(self, attribute: str) -> str:
        return getattr(self, attribute)


@cache
def scenes_of(split: str) -> tuple[Scene, ...]:
    """The scenes of one split, in a fixed random order."""
    if split not in SPLIT_SCENES:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLIT_SCENES)}.")
    scenes = [Scene(*values) for values in product(*(VALUES[attribute] for attribute in DRAWN))]
    random.Random(SCENE_SEED).shuffle(scenes)
    start = 0
    for name, count in SPLIT_SCENES.items():
        if name == split:
            break
        start += count
    return tuple(scenes[start : start + SPLIT_SCENES[split]])


def draw(scene: Scene, seed: int) -> Image.Image:
    """One picture of a scene, RGB.

    Args:
        scene: what is drawn.
        seed: of where and how large it is drawn. The same seed gives the same pixels.
    """
    generator = random.Random(seed)
    image = Image.new("RGB", (SIZE, SIZE), GROUNDS[scene.place][0])
    draw_place(ImageDraw.Draw(image), scene.place, generator)
    radius = generator.randint(19, 21)
    centre = generator.randint(29, 35), generator.randint(25, 29)
    mask = _shape_mask(scene.shape, centre, radius)
    outline = DARK if scene.colour in LIGHT else (245, 245, 245)
    image.paste(outline, mask=mask.filter(ImageFilter.MaxFilter(3)))
    image.paste(PAINTS[scene.colour], mask=mask)
    _draw_dots(ImageDraw.Draw(image), DOTS[scene.number])
    return image


def _draw_dots(pen: ImageDraw.ImageDraw, count: int) -> None:
    """A row of dots on a strip below the thing: on the thing itself a small tower does not learn to count them."""
    pen.rectangle((0, SIZE - STRIP, SIZE, SIZE), fill=(255, 255, 255))
    for number in range(count):
        x, y = 2 + number * (DOT + 2), SIZE - STRIP + 2
        pen.rectangle((x, y, x + DOT - 1, y + DOT - 1), fill=DARK)


def _shape_mask(shape: str, centre: tuple[int, int], radius: int) -> Image.Image:
    """The shape in white on black, 8 bits."""
    mask = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(mask)

    def disc(size: float, dx: float = 0, dy: float = 0, fill: int = 255) -> None:
        x, y, r = centre[0] + round(dx * radius), centre[1] + round(dy * radius), round(size * radius)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def polygon(points: list[Point]) -> None:
        pen.polygon([(centre[0] + round(x * radius), centre[1] + round(y * radius)) for x, y in points], fill=255)

    if shape in ("circle", "ring", "moon"):
        disc(1)
        if shape == "ring":
            disc(0.45, fill=0)
        elif shape == "moon":
            disc(0.8, dx=0.55, fill=0)
    elif shape == "heart":
        disc(0.55, -0.48, -0.35)
        disc(0.55, 0.48, -0.35)
        polygon([(-0.98, -0.1), (0, 1), (0.98, -0.1), (0, -0.5)])
    else:
        polygon(_POLYGONS[shape])
    return mask


def _star() -> list[Point]:
    """Ten corners, on two circles in turn."""
    return [
        (length * math.sin(index * math.pi / 5), -length * math.cos(index * math.pi / 5))
        for index, length in enumerate((1.1, 0.55) * 5)
    ]


_POLYGONS: dict[str, list[Point]] = {  # in units of the radius around the centre, y downwards
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1.1, 0.9), (-1.1, 0.9)],
    "star": _star(),
    "cross": [
        (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35),
        (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35),
    ],
}  # fmt: skip


def draw_place(pen: ImageDraw.ImageDraw, place: str, generator: random.Random) -> None:
    """What stands around in a place."""
    fill, shift = GROUNDS[place][1], generator.randrange(16)
    across = range(shift - 16, SIZE + 16, 16)
    if place == "forest":
        for x in across:  # trees
            pen.polygon([(x, 22), (x + 6, 2), (x + 12, 22)], fill=fill)
            pen.polygon([(x + 8, 64), (x + 14, 46), (x + 20, 64)], fill=fill)
    elif place == "desert":
        for x, y in ((shift - 20, 40), (shift + 24, 46)):  # dunes
            pen.ellipse((x, y, x + 50, y + 40), fill=fill)
        pen.ellipse((50, 3, 60, 13), fill=(255, 245, 200))  # sun
    elif place == "garden":
        for x in across:  # flowers
            for y in (6, 30, 56):
                pen.line((x - 3, y, x + 3, y), fill=fill, width=2)
                pen.line((x, y - 3, x, y + 3), fill=fill, width=2)
    elif place == "cave":
        pen.rectangle((0, 0, SIZE, SIZE), fill=fill)
        pen.ellipse((2, 4, 62, 84), fill=GROUNDS[place][0])  # the way out
    elif place == "city":
        for x in across:  # houses
            top = 4 + generator.randrange(12)
            pen.rectangle((x, top, x + 11, SIZE), fill=fill)
            pen.line((x + 3, top + 3, x + 3, SIZE), fill=GROUNDS[place][0])
            pen.line((x + 8, top + 3, x + 8, SIZE), fill=GROUNDS[place][0])
    elif place == "lake":
        for y in range(shift % 8, SIZE, 8):  # waves
            for x in range(shift - 16, SIZE, 8):
                pen.line((x, y, x + 4, y + 2), fill=fill)
                pen.line((x + 4, y + 2, x + 8, y), fill=fill)
    elif place == "snow":
        for x in across:  # flakes
            for y in range(4, SIZE, 10):
                pen.rectangle((x + y % 3 * 5, y, x + y % 3 * 5 + 1, y + 1), fill=fill)
        pen.ellipse((-10, 54, 40, 90), fill=fill)
    elif place == "field":
        for x in range(shift % 6, SIZE, 6):  # furrows
            pen.line((x, 0, x, SIZE), fill=fill, width=2)
