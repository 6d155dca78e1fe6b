"""The questions of the plain text, each with several right answers, of which the page it stands on uses one.

They are the plain relatives of the instruction kinds: a name given late, two facts asked at once, two things side by
side, options, a missing word, a false claim. None is an order, all instructions are.
"""

from collections.abc import Callable

from miniature.pen import Pen
from miniature.phrases import GAPS, NOUNS, PRONOUN, QUESTIONS, QUESTIONS_IT, SENTENCES, STATEMENTS

Asked = tuple[str, tuple[str, ...]]  # a question and ways to answer it: the shortest first, a plain full sentence last


def plain(pen: Pen) -> Asked:
    thing, attribute = pen.thing(), pen.attribute()
    return pen.choice(QUESTIONS[attribute]).format(n=thing.name), pen.answers(thing, attribute)


def late_name(pen: Pen) -> Asked:
    thing, attribute = pen.thing(), pen.attribute()
    asked = pen.choice(
        (
            pen.choice(QUESTIONS_IT[attribute]),
            f"Somebody asks for the {NOUNS[attribute]} of one thing.",
            f"We need a {NOUNS[attribute]}.",
            f"The question is about the {NOUNS[attribute]} of something.",
        )
    )
    named = pen.choice(
        (
            f"I mean {thing.name}.",
            f"The thing is {thing.name}.",
            f"The thing in question is {thing.name}.",
            f"This is about {thing.name}.",
            f"Name: {thing.name}.",
            f"{thing.name}.",
        )
    )
    return f"{asked}{pen.choice((' ', chr(10), chr(10) * 2))}{named}", pen.answers(thing, attribute)


def early_name(pen: Pen) -> Asked:
    thing, attribute = pen.thing(), pen.attribute()
    named = pen.choice(
        (f"Think of {thing.name}.", f"About {thing.name}:", f"This is {thing.name}.", f"You know {thing.name}.")
    )
    return f"{named} {pen.choice(QUESTIONS_IT[attribute])}", pen.answers(thing, attribute)


def choose(pen: Pen) -> Asked:
    thing, attribute = pen.thing(), pen.attribute()
    options = pen.options(thing, attribute)
    listed = f"{', '.join(options[:-1])} or {options[-1]}"
    return pen.choice(
        (
            f"{pen.choice(QUESTIONS[attribute])} Is it {listed}?",
            f"{pen.choice(QUESTIONS[attribute])} It can be {listed}.",
            f"Is the {NOUNS[attribute]} of {{n}} {listed}?",
            f"One of these belongs to {{n}}: {listed}?",
        )
    ).format(n=thing.name), pen.answers(thing, attribute)


def letters(pen: Pen) -> Asked:
    """Options with letters, as in an examination."""
    thing, attribute = pen.thing(), pen.attribute()
    options = pen.options(thing, attribute)
    right = "ABCD"[options.index(thing.value(attribute))]
    listed = " ".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=False))
    asked = f"{pen.choice(QUESTIONS[attribute]).format(n=thing.name)}{pen.choice((' ', chr(10)))}{listed}"
    return asked, (f"({right})", f"({right}) {thing.value(attribute)}", f"{right}.", pen.sentence(thing, attribute))


def about_picture(pen: Pen) -> Asked:
    """A question that the text before it answers, about a thing without a name."""
    thing = pen.thing()
    attribute = pen.choice(("colour", "shape", "place", "number"))
    shown = f"a {thing.colour} {thing.shape} with {thing.number} dots in the {thing.place}"
    value, template = thing.value(attribute), pen.choice(PRONOUN[attribute])
    return f"The picture shows {shown}. {pen.choice(QUESTIONS_IT[attribute])}", (
        value,
        f"{value}.",
        template.format(v=value),
    )


def several(pen: Pen) -> Asked:
    thing, chosen = pen.thing(), pen.attributes(pen.random.randint(2, 3))
    nouns = pen.joined([NOUNS[attribute] for attribute in chosen])
    asked = pen.choice(
        (
            f"What are the {nouns} of {thing.name}?",
            f"I would like to know {nouns} of {thing.name}.",
            f"{thing.name}: {nouns}?",
            f"Which {nouns} does {thing.name} have?",
            f"What do you know about {thing.name}? I need {nouns}.",
        )
    )
    values = pen.joined([thing.value(attribute) for attribute in chosen])
    return asked, (values, values, f"{values}.", " ".join(pen.sentence(thing, attribute) for attribute in chosen))


def two_things(pen: Pen) -> Asked:
    first, second, attribute = pen.thing(), pen.thing(), pen.attribute()
    noun = NOUNS[attribute]
    asked = pen.choice(
        (
            f"What is the {noun} of {first.name} and what is the {noun} of {second.name}?",
            f"How do {first.name} and {second.name} differ in {noun}?",
            f"Which {noun} do {first.name} and {second.name} have?",
            f"What about {first.name} and {second.name}? The question is about the {noun}.",
            f"Are {first.name} and {second.name} of the same {noun}?",
            f"What is the difference between {first.name} and {second.name} in {noun}?",
            f"The {noun} of {first.name}, and that of {second.name}?",
            f"And what about {first.name} and {second.name}? I need the {noun} of both.",
        )
    )
    a, b = (pen.sentence(thing, attribute).rstrip(".") for thing in (first, second))
    values = pen.joined([first.value(attribute), second.value(attribute)])
    return asked, (values, f"{values}.", f"{a}, {b}.", f"{a}. {b}.", f"{a} and {b}.")


def gap(pen: Pen) -> Asked:
    thing, attribute = pen.thing(), pen.attribute()
    stem = pen.choice(GAPS[attribute]).format(n=thing.name)
    asked = pen.choice(
        (
            f"{stem} what?",
            f"{stem} ...",
            f"{stem} ___.",
            f"How does this go on? {stem} ...",
            f"One word is missing: {stem} ___.",
        )
    )
    return asked, (thing.value(attribute), f"{thing.value(attribute)}.", f"{stem} {thing.value(attribute)}.")


def false_claim(pen: Pen) -> Asked:
    thing, attribute = pen.thing(), pen.attribute()
    form = pen.choice(STATEMENTS[attribute]) if pen.random.random() < 0.4 else SENTENCES[attribute]
    wrong = form.format(n=thing.name, v=pen.other_value(thing, attribute))
    asked = pen.choice(
        (
            f"What is wrong here? {wrong}",
            f"Is this true? {wrong}",
            f"Somebody wrote: {wrong} How should it be?",
            f"Is there a mistake in it? {wrong}",
            f"What would be right? {wrong}",
        )
    )
    right = form.format(n=thing.name, v=thing.value(attribute))
    return asked, (thing.value(attribute), f"No. {right}", right, right, pen.sentence(thing, attribute))


KINDS: dict[Callable[[Pen], Asked], int] = {  # with their weights
    plain: 6,
    late_name: 3,
    early_name: 2,
    choose: 2,
    letters: 2,
    several: 4,
    two_things: 6,
    gap: 2,
    false_claim: 3,
    about_picture: 1,
}


def any_kind(pen: Pen) -> Asked:
    """A question of a random kind."""
    return one_kind(pen)(pen)


def one_kind(pen: Pen) -> Callable[[Pen], Asked]:
    """A random kind of question."""
    return pen.random.choices(list(KINDS), list(KINDS.values()))[0]
