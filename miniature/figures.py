"""Outlines that can be drawn anywhere, of any size and turned: the world's eight shapes and eight new kinds.

`scenes.py` draws its shapes upright in the middle, as a picture of one thing; here a shape is a list of corners around
the origin, about 1 away from it, y downwards.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]


def _arc(radius: float, start: float, stop: float, *, x: float = 0.0, y: float = 0.0, steps: int = 12) -> list[Point]:
    """Corners along a circle around (x, y), from one angle to another, degrees; 0 is to the right, 90 below."""
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _spikes(count: int, inner: float) -> list[Point]:
    """Corners on two circles in turn, the first one on top."""
    return [
        (length * math.sin(index * math.pi / count), -length * math.cos(index * math.pi / count))
        for index, length in enumerate((1.0, inner) * count)
    ]


def _mirrored(right: Sequence[Point]) -> list[Point]:
    """The right half, from top to bottom, and its mirror image."""
    return [*right, *((-x, y) for x, y in reversed(right))]


WORLD: dict[str, list[Point]] = {
    "circle": _arc(0.85, 0, 360, steps=24),
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "triangle": [(0, -0.95), (0.9, 0.75), (-0.9, 0.75)],
    "star": _spikes(5, 0.45),
    "cross": _mirrored([(0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3), (0.3, 0.95)]),
    # Out along the larger circle, back along the smaller one: one line, without a hole of its own.
    "ring": [*_arc(0.9, 0, 360, steps=24), *_arc(0.45, 360, 0, steps=24)],
    "heart": _mirrored([(0, -0.5), *_arc(0.48, 200, 390, x=0.45, y=-0.4), (0, 0.95)]),
    "moon": [*_arc(0.95, 60, 300, x=0.2), *_arc(0.85, 285, 75, x=0.5)],
}
NEW: dict[str, list[Point]] = {  # the tower never saw these
    "arrow": _mirrored([(0, -1), (0.75, -0.1), (0.25, -0.1), (0.25, 0.95)]),
    "hourglass": [(-0.7, -0.9), (0.7, -0.9), (0.12, 0), (0.7, 0.9), (-0.7, 0.9), (-0.12, 0)],
    "house": _mirrored([(0, -0.95), (0.95, -0.1), (0.65, -0.1), (0.65, 0.85)]),
    "drop": _mirrored([(0, -1), *_arc(0.6, -30, 90, y=0.35)]),
    "leaf": [*_arc(1.25, -143, -37, y=0.75), *_arc(1.25, 37, 143, y=-0.75)],
    "bar": [(-0.95, -0.25), (0.95, -0.25), (0.95, 0.25), (-0.95, 0.25)],
    "bowl": [*_arc(0.95, 0, 180, y=-0.3), (-0.6, -0.3), *_arc(0.6, 180, 0, y=-0.3)],
    "fish": [*_arc(0.6, 20, 340, x=-0.3), (0.95, -0.6), (0.95, 0.6)],
}
FIGURES = WORLD | NEW


def corners(figure: str, centre: Point, radius: float, angle: float = 0.0) -> list[Point]:
    """The outline in pixels.

    Args:
        figure: a name in FIGURES.
        centre: x, y, pixels.
        radius: of the circle around it, pixels.
        angle: of the turn, degrees clockwise.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [
        (centre[0] + radius * (x * cos - y * sin), centre[1] + radius * (x * sin + y * cos)) for x, y in FIGURES[figure]
    ]


def mask(size: int, figure: str, centre: Point, radius: float, angle: float = 0.0) -> Image.Image:
    """The figure in white on black, [size, size], 8 bits; the arguments are those of `corners`."""
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon(corners(figure, centre, radius, angle), fill=255)
    return image
