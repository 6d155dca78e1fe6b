"""How pictures are described: eight wordings, of which each picture gets five.

As with real captions, no two say the same: some leave the dots out, some the place.
"""

import random

from miniature.scenes import Scene

CAPTIONS_PER_PICTURE = 5

WORDINGS = (
    "{A} {colour} {shape} with {number} dots in the {place}.",
    "The picture shows {a} {colour} {shape} with {number} dots in the {place}.",
    "{A} {colour} {shape} in the {place} with {number} dots.",
    "In the {place} there is {a} {colour} {shape} with {number} dots.",
    "There are {number} dots on the {colour} {shape} in the {place}.",
    "{A} {colour} {shape} that has {number} dots lies in the {place}.",
    "You see {a} {colour} {shape} in the {place}.",
    "{A} {colour} {shape} with {number} dots.",
)
WHOLE = WORDINGS[:6]  # those that tell all four attributes


def caption(scene: Scene, wording: str) -> str:
    """One wording filled in; the article fits the colour."""
    article = "an" if scene.colour[0] in "aeiou" else "a"
    values = {attribute: getattr(scene, attribute) for attribute in ("colour", "shape", "place", "number")}
    return wording.format(a=article, A=article.capitalize(), **values)


def captions(scene: Scene, generator: random.Random) -> list[str]:
    """Five different captions of one picture."""
    return [caption(scene, wording) for wording in generator.sample(WORDINGS, CAPTIONS_PER_PICTURE)]
