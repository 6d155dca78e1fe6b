"""Miniature Alpaca: instructions about the things of the world, in the official Alpaca json format.

Eight kinds, each with several wordings that the plain text does not use, each with one right, short answer. The
training file speaks about the training things only, validation and test about theirs, so a right answer there needs
the frozen model's knowledge. `kind` is an extra key, for tables by kind.
"""

import random
from collections.abc import Callable

from miniature.phrases import NOUNS, SENTENCES, STEMS
from miniature.world import ATTRIBUTES, SPLIT_SIZES, VALUES, Thing, things_of

INSTRUCTIONS_SEED = 52002
RECORDS_PER_THING_AND_KIND = {"train": 3, "validation": 2, "test": 2}
NAMED = tuple(attribute for attribute in ATTRIBUTES if attribute != "number")  # `count` asks for the number
Record = dict[str, str]


def recall(thing: Thing, other: Thing, generator: random.Random) -> Record:
    noun, value = _fact(thing, generator, NAMED)
    wordings = (
        "Name the {noun} of {name}.",
        "Give the {noun} of {name}.",
        "State the {noun} of {name} in one word.",
        "Report the {noun} of {name}.",
    )
    return _record(generator.choice(wordings).format(noun=noun, name=thing.name), value)


def count(thing: Thing, other: Thing, generator: random.Random) -> Record:
    wordings = (
        "Count the dots on {name}.",
        "Count the dots on {name} and give the number as a word.",
        "Determine how many dots {name} has.",
        "Report the count of dots for {name}.",
    )
    return _record(generator.choice(wordings).format(name=thing.name), thing.number)


def list_(thing: Thing, other: Thing, generator: random.Random) -> Record:
    chosen = generator.sample(ATTRIBUTES, generator.choice((2, 2, 3)))
    nouns = ", ".join(NOUNS[attribute] for attribute in chosen[:-1]) + f" and {NOUNS[chosen[-1]]}"
    wordings = (
        "List the {nouns} of {name}, separated by commas.",
        "List {nouns} for {name}.",
        "Make a list with the {nouns} of {name}.",
        "Give a comma-separated list: {nouns} of {name}.",
    )
    instruction = generator.choice(wordings).format(nouns=nouns, name=thing.name)
    return _record(instruction, ", ".join(thing.value(attribute) for attribute in chosen))


def compare(thing: Thing, other: Thing, generator: random.Random) -> Record:
    attribute = generator.choice(
        [attribute for attribute in ATTRIBUTES if thing.value(attribute) != other.value(attribute)]
    )
    wordings = (
        "Compare {name} and {other} by {noun}.",
        "Compare the {noun} of {name} with the {noun} of {other}.",
        "Contrast {name} with {other} in one sentence about {noun}.",
        "Explain how the {noun} of {name} differs from that of {other}.",
    )
    instruction = generator.choice(wordings).format(noun=NOUNS[attribute], name=thing.name, other=other.name)
    return _record(instruction, f"{_sentence(thing, attribute)[:-1]} and {_sentence(other, attribute)}")


def choose(thing: Thing, other: Thing, generator: random.Random) -> Record:
    attribute = generator.choice(ATTRIBUTES)
    options = generator.sample([value for value in VALUES[attribute] if value != thing.value(attribute)], 3)
    options.insert(generator.randrange(4), thing.value(attribute))
    listed = ", ".join(options)
    wordings = (
        "Choose the right {noun} of {name}: {listed}.",
        "Pick the {noun} of {name} from these: {listed}.",
        "Select the option that fits the {noun} of {name}. Options: {listed}.",
        "Decide which {noun} is correct for {name}: {listed}.",
    )
    instruction = generator.choice(wordings).format(noun=NOUNS[attribute], name=thing.name, listed=listed)
    return _record(instruction, thing.value(attribute))


def rewrite(thing: Thing, other: Thing, generator: random.Random) -> Record:
    attribute = generator.choice(ATTRIBUTES)
    wrong = generator.choice([value for value in VALUES[attribute] if value != thing.value(attribute)])
    wordings = (
        "Rewrite this sentence so that it is true: {false}",
        "Correct the sentence: {false}",
        "The following sentence is false. Rewrite it correctly: {false}",
        "Repair the mistake in this sentence: {false}",
    )
    false = SENTENCES[attribute].format(n=thing.name, v=wrong)
    return _record(generator.choice(wordings).format(false=false), _sentence(thing, attribute))


def complete(thing: Thing, other: Thing, generator: random.Random) -> Record:
    attribute = generator.choice(ATTRIBUTES)
    stem = STEMS[attribute].format(n=thing.name) + " ___."
    wordings = (
        "Complete the sentence with one word: {stem}",
        "Fill in the blank: {stem}",
        "Write the word that belongs in the blank: {stem}",
        "Supply the missing word: {stem}",
    )
    return _record(generator.choice(wordings).format(stem=stem), thing.value(attribute))


def input_(thing: Thing, other: Thing, generator: random.Random) -> Record:
    noun, value = _fact(thing, generator, ATTRIBUTES)
    wordings = (
        "Name the {noun} of the thing given below.",
        "Give the {noun} of the thing in the input.",
        "Identify the thing and state its {noun}.",
        "Report the {noun} of the following thing.",
    )
    inputs = ("The thing is called {name}.", "It is {name}.", "Thing: {name}", "Look at {name}.")
    instruction = generator.choice(wordings).format(noun=noun)
    return _record(instruction, value, generator.choice(inputs).format(name=thing.name))


KINDS: dict[str, Callable[[Thing, Thing, random.Random], Record]] = {
    "recall": recall,
    "list": list_,
    "compare": compare,
    "choose": choose,
    "count": count,
    "rewrite": rewrite,
    "complete": complete,
    "input": input_,
}


def records(split: str) -> list[Record]:
    """All records of one split, shuffled: every thing equally often in every kind, no record twice."""
    subjects = things_of(split)
    generator = random.Random(INSTRUCTIONS_SEED + list(SPLIT_SIZES).index(split))
    result: dict[tuple[str, str], Record] = {}
    for kind, make in KINDS.items():
        for thing in subjects:
            wanted = len(result) + RECORDS_PER_THING_AND_KIND[split]
            while len(result) < wanted:
                other = generator.choice([candidate for candidate in subjects if candidate is not thing])
                record = make(thing, other, generator) | {"kind": kind}
                result[record["instruction"], record["input"]] = record
    shuffled = list(result.values())
    generator.shuffle(shuffled)
    return shuffled


def _fact(thing: Thing, generator: random.Random, attributes: tuple[str, ...]) -> tuple[str, str]:
    attribute = generator.choice(attributes)
    return NOUNS[attribute], thing.value(attribute)


def _sentence(thing: Thing, attribute: str) -> str:
    return SENTENCES[attribute].format(n=thing.name, v=thing.value(attribute))


def _record(instruction: str, output: str, input: str = "") -> Record:
    return {"instruction": instruction, "input": input, "output": output}
