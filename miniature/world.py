"""The facts of the miniature world: 120 invented things with five attributes each.

Everything else in `miniature/` is made from these facts: the plain text tells them about all things, the instructions
ask for them. Colour, shape, place and number (of dots) can be drawn; material cannot, so a picture never tells
everything. The values are balanced and independent: guessing one value is right one time in eight.
"""

import random
from dataclasses import dataclass
from functools import cache

VALUES = {
    "colour": ("red", "blue", "green", "yellow", "black", "white", "purple", "orange"),
    "shape": ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon"),
    "place": ("forest", "desert", "garden", "cave", "city", "lake", "snow", "field"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "material": ("wood", "glass", "paper", "stone", "wool", "iron", "clay", "silk"),
}
ATTRIBUTES = tuple(VALUES)
SPLIT_SIZES = {"train": 84, "validation": 18, "test": 18}  # things; the last two appear in no training instruction
WORLD_SEED = 2303

ONSETS = ("B", "D", "F", "G", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z")
VOWELS = ("a", "e", "i", "o", "u")
ENDINGS = ("bo", "dax", "fen", "gul", "kem", "lor", "mip", "nuv", "pid", "rok", "sil", "tuz", "vek", "zan")


@dataclass(frozen=True)
class Thing:
    """One invented thing. `split` says in which instruction file it may appear: train, validation or test."""

    name: str
    split: str
    colour: str
    shape: str
    place: str
    number: str
    material: str

    def value(self, attribute: str) -> str:
        """The value of one attribute, such as `red` for `colour`."""
        return getattr(self, attribute)


@cache
def things() -> tuple[Thing, ...]:
    """All things, in a fixed order: train, then validation, then test."""
    generator = random.Random(WORLD_SEED)
    count = sum(SPLIT_SIZES.values())
    names = generator.sample(
        [onset + vowel + ending for onset in ONSETS for vowel in VOWELS for ending in ENDINGS], count
    )
    columns = {}
    for attribute, values in VALUES.items():
        columns[attribute] = [values[index % len(values)] for index in range(count)]
        generator.shuffle(columns[attribute])
    splits = [split for split, size in SPLIT_SIZES.items() for _ in range(size)]
    return tuple(
        Thing(name=name, split=split, **{attribute: columns[attribute][index] for attribute in ATTRIBUTES})
        for index, (name, split) in enumerate(zip(names, splits, strict=True))
    )


def things_of(split: str) -> tuple[Thing, ...]:
    """The things of one split."""
    if split not in SPLIT_SIZES:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLIT_SIZES)}.")
    return tuple(thing for thing in things() if thing.split == split)
