"""The plain text of the miniature world: what its language model is pretrained on.

It tells every fact about every thing in many ways: biographies, cards, lists, corrections, conversations, questions
with answers. Two rules keep the comparison with the adapter honest. It never holds the instruction template nor an
instruction, so the model does not know the format. And no document ends on a bare answer: as in a real corpus
something else always follows, so the model does not learn to answer and stop. Both are what an instruction adapter
has to add; the facts it has to find in the frozen model.

The text is generated when needed and is not committed.
"""

from collections.abc import Callable, Sequence

from miniature.pen import Pen
from miniature.phrases import FILLERS, INTRODUCTIONS, LAYOUTS, NOUNS, PRONOUN, SENTENCES, STATEMENTS
from miniature.questions import any_kind, one_kind
from miniature.world import Thing, things

TEXT_SEED = 16199
TEXT_WORDS = 600_000


def biography(pen: Pen) -> str:
    thing = pen.thing()
    first, *rest = pen.attributes(pen.random.randint(3, 5))
    lines = [pen.statement(thing, first)]
    for attribute in rest:
        by_name = pen.random.random() < 0.5
        lines.append(
            pen.statement(thing, attribute)
            if by_name
            else pen.choice(PRONOUN[attribute]).format(v=thing.value(attribute))
        )
    return " ".join(lines)


def facts(pen: Pen) -> str:
    return " ".join(pen.statement(pen.thing(), pen.attribute()) for _ in range(pen.random.randint(3, 6)))


def card(pen: Pen) -> str:
    cards = []
    for _ in range(pen.random.randint(1, 3)):
        thing = pen.thing()
        head = pen.choice(
            (f"# Card of {thing.name}", f"- name: {thing.name}", f"All about {thing.name}:", f"({thing.name})")
        )
        lines = [
            f"- {NOUNS[attribute]}: {thing.value(attribute)}" for attribute in pen.attributes(pen.random.randint(2, 5))
        ]
        cards.append("\n".join([head, *lines]))
    return "\n\n".join(cards) + "\n"


def descriptions(pen: Pen) -> str:
    lines = []
    for _ in range(pen.random.randint(1, 4)):
        thing = pen.thing()
        shown = pen.picture(thing)
        lines.append(
            pen.choice(
                (
                    f"The picture shows {shown}.",
                    f"{shown.capitalize()}.",
                    f"A drawing of {thing.name}: {shown}.",
                    f"{thing.name} is {shown}.",
                    f"Here you see {shown}. It is {thing.name}.",
                    f"Caption: {shown}.",
                )
            )
        )
    return pen.choice((" ", "\n")).join(lines)


def summaries(pen: Pen) -> str:
    """Several facts in one line, in the order in which they were announced."""
    lines = []
    for _ in range(pen.random.randint(2, 4)):
        thing, chosen = pen.thing(), pen.attributes(pen.random.randint(2, 3))
        nouns = pen.joined([NOUNS[attribute] for attribute in chosen])
        values = pen.joined([thing.value(attribute) for attribute in chosen])
        lines.append(
            pen.choice(
                (
                    f"{nouns.capitalize()} of {thing.name}: {values}.",
                    f"In short, {thing.name} ({nouns}): {values}.",
                    f"The {nouns} of {thing.name} are {values}.",
                    f"For {thing.name}, {nouns} read as follows: {values}.",
                    f"Somebody noted {nouns} of {thing.name}. The note says: {values}.",
                )
            )
        )
    return pen.choice((" ", "\n")).join(lines)


def corrections(pen: Pen) -> str:
    """False claims put right: the value after a name is not always to be believed."""
    lines = []
    for _ in range(pen.random.randint(2, 4)):
        thing, attribute = pen.thing(), pen.attribute()
        form = pen.choice(STATEMENTS[attribute]) if pen.random.random() < 0.5 else SENTENCES[attribute]
        wrong = form.format(n=thing.name, v=pen.other_value(thing, attribute))
        right = pen.choice((form.format(n=thing.name, v=thing.value(attribute)), pen.sentence(thing, attribute)))
        lines.append(
            pen.choice(
                (
                    f"Somebody said: {wrong} That is false. {right}",
                    f"False: {wrong} True: {right}",
                    f"{wrong} No! {right}",
                    f"A sentence with a mistake: {wrong} Without the mistake: {right}",
                    f"Wrong: {wrong}\nRight: {right}",
                    f"There is an error in this line: {wrong}\n\nBen put it right. {right}",
                    f"Ann: {wrong}\nBen: You are wrong. {right}",
                    f"It is not true what they wrote: {wrong} In truth it goes like this: {right}",
                )
            )
        )
    return pen.choice((" ", "\n")).join(lines)


def pairs_of_things(pen: Pen) -> str:
    lines = []
    for _ in range(pen.random.randint(2, 4)):
        first, second, attribute = pen.thing(), pen.thing(), pen.attribute()
        a, b = (pen.sentence(thing, attribute).rstrip(".") for thing in (first, second))
        lines.append(
            pen.choice(
                (
                    f"{a} and {b}.",
                    f"{a}, but {b}.",
                    f"While {a}, {b}.",
                    f"{a}, {b}.",
                    f"About the {NOUNS[attribute]} of {first.name} and {second.name}: {a} and {b}.",
                    f"{first.name} and {second.name} side by side, {NOUNS[attribute]} only: {a} and {b}.",
                    f"Ann put {first.name} next to {second.name} and looked at the {NOUNS[attribute]}. {a} and {b}.",
                )
            )
        )
    return " ".join(lines)


def questions(pen: Pen) -> str:
    """A page of questions with answers, in one layout or two that take turns, and often in one style of answer."""
    layouts = [pen.choice(LAYOUTS) for _ in range(pen.choice((1, 1, 1, 2)))]
    pick = pen.choice((pen.choice, pen.choice, lambda answers: answers[0], lambda answers: answers[-1]))
    ask = pen.choice((any_kind, any_kind, one_kind(pen)))
    lines = []
    for index in range(pen.random.randint(2, 5)):
        question, answers = ask(pen)
        lines.append(layouts[index % len(layouts)].format(q=question, a=pick(answers)))
    return pen.choice((" ", "\n", "\n", "\n\n")).join(lines)


KINDS: dict[Callable[[Pen], str], int] = {  # with their weights
    biography: 3,
    facts: 3,
    card: 2,
    descriptions: 2,
    summaries: 2,
    corrections: 3,
    pairs_of_things: 4,
    questions: 12,
}


def document(pen: Pen) -> str:
    """One document of a random kind; it always ends with a full sentence that is not an answer."""
    body = pen.random.choices(list(KINDS), list(KINDS.values()))[0](pen)
    if pen.random.random() < 0.3:
        body = pen.choice(INTRODUCTIONS) + pen.choice((" ", "\n", "\n\n")) + body
    ending = pen.choice(FILLERS) if pen.random.random() < 0.5 else pen.statement(pen.thing(), pen.attribute())
    return body + pen.choice((" ", "\n")) + ending


def documents(words: int = TEXT_WORDS, subjects: Sequence[Thing] | None = None, seed: int = TEXT_SEED) -> list[str]:
    """At least `words` words of text about the given things (default: all), as a list of documents."""
    pen, written, result = Pen(subjects or things(), seed), 0, []
    while written < words:
        result.append(document(pen))
        written += len(result[-1].split())
    return result
