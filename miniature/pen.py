"""Pen: picks things, facts and wordings from one random generator; what every document and question is written with."""

import random
from collections.abc import Sequence
from typing import TypeVar

from miniature.phrases import PRONOUN, SENTENCES, STATEMENTS
from miniature.world import ATTRIBUTES, VALUES, Thing

Option = TypeVar("Option")


class Pen:
    """Writes small parts of text about the given things."""

    def __init__(self, subjects: Sequence[Thing], seed: int) -> None:
        self.subjects = subjects
        self.random = random.Random(seed)

    def choice(self, options: Sequence[Option]) -> Option:
        return self.random.choice(options)

    def thing(self) -> Thing:
        return self.choice(self.subjects)

    def attributes(self, count: int) -> list[str]:
        return self.random.sample(ATTRIBUTES, count)

    def attribute(self) -> str:
        return self.choice(ATTRIBUTES)

    def statement(self, thing: Thing, attribute: str) -> str:
        return self.choice(STATEMENTS[attribute]).format(n=thing.name, v=thing.value(attribute))

    def sentence(self, thing: Thing, attribute: str) -> str:
        """The plainest statement of a fact."""
        return SENTENCES[attribute].format(n=thing.name, v=thing.value(attribute))

    def other_value(self, thing: Thing, attribute: str) -> str:
        return self.choice([value for value in VALUES[attribute] if value != thing.value(attribute)])

    def options(self, thing: Thing, attribute: str) -> list[str]:
        """The right value among one to three wrong ones, shuffled."""
        others = [value for value in VALUES[attribute] if value != thing.value(attribute)]
        options = [thing.value(attribute), *self.random.sample(others, self.random.randint(1, 3))]
        self.random.shuffle(options)
        return options

    def joined(self, parts: Sequence[str]) -> str:
        """`a, b, c`, `a, b and c` or `a and b and c`."""
        style = self.random.random()
        if style < 0.6:
            return ", ".join(parts)
        if style < 0.8:
            return ", ".join(parts[:-1]) + " and " + parts[-1]
        return " and ".join(parts)

    def answers(self, thing: Thing, attribute: str) -> tuple[str, ...]:
        """Ways to answer a question for one fact: the shortest first, the plain full sentence last."""
        value = thing.value(attribute)
        pronoun = self.choice(PRONOUN[attribute]).format(v=value)
        return (
            value,
            f"{value}.",
            f"{value.capitalize()}.",
            pronoun,
            self.statement(thing, attribute),
            self.sentence(thing, attribute),
        )

    def picture(self, thing: Thing) -> str:
        """What a picture of the thing shows, without its name, as a caption would say it."""
        parts = [f"a {thing.colour} {thing.shape}", f"with {thing.number} dots", f"in the {thing.place}"]
        return " ".join(
            parts[: self.random.randint(2, 3)] if self.random.random() < 0.5 else (parts[0], parts[2], parts[1])
        )
