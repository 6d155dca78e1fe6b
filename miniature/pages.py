"""Pages and exercises about passages: the text from which an encoder learns to find things in what it reads.

A passage tells facts that differ on every page (`passages.py`), and questions with their answers stand before it or
after it. So a masked word can be found elsewhere on its page, under the same name and attribute, and nowhere else. Some
questions are about what the passage does not tell; then the page says so.

An exercise asks one question before a passage in which the answer is left out, and says so first. The same question and
passage without that introduction have no gap.
"""

import random
from dataclasses import dataclass

from miniature.passages import Passage, passage, passage_names, question, untold

PAGES_SEED, EXERCISES_SEED = 190711692, 195309
FACTS = (2, 9)  # of a passage, at least and at most
UNTOLD_SHARE = 0.15
UNTOLD = ("Unknown.", "Not told.", "It does not say.")
LAYOUTS = (  # short ones: what can be looked up stands close together
    "{q} {a}",
    "{q} {a}",
    "({q}) {a}",
    "Q: {q} A: {a}",
    "{q} - {a}",
    "{q} = {a}",
)
INTRODUCTIONS = ("What is asked for is left out below.", "Exercise: fill the gap.", "One thing is missing:")
GAP = "___"
PLAIN_SHARE = 0.4  # of the exercises have no introduction and no gap
BEFORE_SHARE = 0.5  # of the pages have their questions before the passage

Page = tuple[str, str]


def page(generator: random.Random, names: tuple[str, ...], facts: tuple[int, int] = FACTS) -> Page:
    """One passage and a few questions about it with their answers, in this order or the other."""
    read = passage(generator, names, generator.randint(*facts))
    layout = generator.choice(LAYOUTS)
    lines = [asked(generator, read, layout, names) for _ in range(generator.randint(1, 4))]
    parts = (read.text, " ".join(lines))
    return parts[::-1] if generator.random() < BEFORE_SHARE else parts


def asked(generator: random.Random, read: Passage, layout: str, names: tuple[str, ...]) -> str:
    """A question about a fact with its answer, or at times one that the passage does not answer."""
    if generator.random() >= UNTOLD_SHARE:
        fact = generator.choice(read.facts)
        answer = fact.value + generator.choice(("", "."))
        return layout.format(q=question(generator, fact.name, fact.attribute), a=answer)
    name, other = untold(generator, read, names)
    return layout.format(q=question(generator, name, other.attribute), a=generator.choice(UNTOLD))


@dataclass(frozen=True)
class Exercise:
    """A question and a passage in which what it asks for is left out; or, without an introduction, nothing is.

    `gap` is the place of the value in the passage, (0, 0) where nothing is left out.
    """

    question: str
    passage: str
    gap: tuple[int, int]


def exercise(generator: random.Random, names: tuple[str, ...], facts: tuple[int, int] = FACTS) -> Exercise:
    """An exercise, or its plain question and passage."""
    read = passage(generator, names, generator.randint(*facts))
    fact = generator.choice(read.facts)
    name, attribute, gap = fact.name, fact.attribute, (fact.start, fact.end)
    if generator.random() < UNTOLD_SHARE:
        name, other = untold(generator, read, names)
        attribute, gap = other.attribute, (0, 0)
    asked = question(generator, name, attribute)
    if generator.random() < PLAIN_SHARE:
        return Exercise(asked, read.text, (0, 0))
    return Exercise(f"{generator.choice(INTRODUCTIONS)} {asked}", read.text, gap)


def exercises(count: int, facts: tuple[int, int] = FACTS, seed: int = EXERCISES_SEED) -> list[Exercise]:
    """So many exercises."""
    generator, names = random.Random(seed), passage_names()
    return [exercise(generator, names, facts) for _ in range(count)]


def pages(words: int, facts: tuple[int, int] = FACTS, seed: int = PAGES_SEED) -> list[Page]:
    """At least so many words of pages."""
    generator, names, written, result = random.Random(seed), passage_names(), 0, []
    while written < words:
        result.append(page(generator, names, facts))
        written += sum(len(part.split()) for part in result[-1])
    return result
