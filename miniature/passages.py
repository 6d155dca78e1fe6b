"""Passages about invented things, and questions that only their passage answers: for extractive questions.

A passage tells facts about a few things that no other text knows, made up for it alone: nothing but reading tells the
answer. Names are not those of the world's things, whose facts are always the same. Values may be two or three words
("dark red", "twenty-seven"), so that an answer has a start and an end.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from miniature.phrases import PRONOUN, QUESTIONS, STATEMENTS
from miniature.world import ATTRIBUTES, ENDINGS, ONSETS, VALUES, VOWELS, things

NAMES = 120
NAMES_SEED = 1606
PASSAGE_SPLITS = {"train": slice(0, 84), "dev": slice(84, NAMES)}  # of the names
MODIFIER_SHARE = 0.4
PRONOUN_SHARE = 0.4
ASIDE_SHARE = 0.08  # of the sentences are followed by one without a fact
SPOKEN_OF_SHARE = 0.7

MODIFIERS = {
    "colour": ("dark", "pale", "bright", "dull"),
    "shape": ("large", "small", "perfect", "broken"),
    "place": ("old", "quiet", "northern", "great"),
    "number": ("twenty-", "thirty-", "forty-"),
    "material": ("soft", "polished", "cheap", "heavy"),
}

ASIDES = (
    "Nobody was surprised.",
    "It was quiet in the room.",
    "“That is so,” said Zoë.",
    "The café was closed – as always.",
    "Ann's book (page 12) says the same.",
    "Ben paid 3½ € for it; that’s cheap!",
    "On Monday, at 9:30, it rained...",
    "The sign read: 日本 → 10 km.",
)

QUOTED = {  # beside STATEMENTS
    "colour": "“{v}” is the word for the colour of {n}.",
    "shape": "{n} (a {v}, by the way) is well known.",
    "place": "{n}, which lies in the {v}, is well known.",
    "number": "Ann counted: {n} has {v} dots!",
    "material": "{n} – made of {v} – is well known.",
}


@dataclass(frozen=True)
class Fact:
    """What a passage tells: `passage.text[start:end] == value`."""

    name: str
    attribute: str
    value: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.value)


@dataclass(frozen=True)
class Passage:
    """A text with the facts in it, in their order; no two facts have the same name and attribute."""

    text: str
    facts: tuple[Fact, ...]


def passage_names(split: str | None = None) -> tuple[str, ...]:
    """Names that no thing of the world has: of a split (train, dev), or all."""
    taken = {thing.name for thing in things()}
    free = [
        name
        for name in (onset + vowel + ending for onset in ONSETS for vowel in VOWELS for ending in ENDINGS)
        if name not in taken
    ]
    names = random.Random(NAMES_SEED).sample(free, NAMES)
    return tuple(names if split is None else names[PASSAGE_SPLITS[split]])


def passage(generator: random.Random, names: Sequence[str], facts: int) -> Passage:
    """A passage with so many facts about some of these names.

    Each thing is told about in a block of its own or among the others; a pronoun means the thing just named.
    """
    count = min(len(names), max(2, round(facts / generator.uniform(1.8, 3.2))))
    chosen = generator.sample(list(names), count)
    pairs = [(name, attribute) for name in chosen for attribute in ATTRIBUTES]
    told = generator.sample(pairs, min(facts, len(pairs)))
    if generator.random() < 0.7:
        told.sort(key=lambda pair: chosen.index(pair[0]))
    text, made, last = "", [], None
    for name, attribute in told:
        value = phrase(generator, attribute)
        if name == last and generator.random() < PRONOUN_SHARE:
            template = generator.choice(PRONOUN[attribute])
        elif generator.random() < 0.1:
            template = QUOTED[attribute]
        else:
            template = generator.choice(STATEMENTS[attribute])
        text += " " if text else ""
        before, after = template.format(n=name, v="\0").split("\0")
        made.append(Fact(name, attribute, value, len(text) + len(before)))
        text += before + value + after
        last = name
        if generator.random() < ASIDE_SHARE:
            text += " " + generator.choice(ASIDES)
            last = None
    return Passage(text, tuple(made))


def phrase(generator: random.Random, attribute: str) -> str:
    """A random value, with a modifier at times."""
    value = generator.choice(VALUES[attribute])
    if generator.random() >= MODIFIER_SHARE:
        return value
    modifier = generator.choice(MODIFIERS[attribute])
    return modifier + value if modifier.endswith("-") else f"{modifier} {value}"


def question(generator: random.Random, name: str, attribute: str) -> str:
    """A question with a question mark."""
    asked = [template for template in QUESTIONS[attribute] if template.endswith("?")]
    return generator.choice(asked).format(n=name)


def untold(generator: random.Random, read: Passage, names: Sequence[str]) -> tuple[str, Fact]:
    """A name for which the passage does not tell an attribute, and the fact of that attribute that it tells of another.

    The name is mostly one that the passage speaks about.
    """
    told = {(fact.name, fact.attribute) for fact in read.facts}
    spoken_of = sorted({fact.name for fact in read.facts})
    while True:
        name = generator.choice(spoken_of if generator.random() < SPOKEN_OF_SHARE else names)
        other = generator.choice(read.facts)
        if (name, other.attribute) not in told:
            return name, other
