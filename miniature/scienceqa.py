"""Miniature ScienceQA in the official layout: problems.json, pid_splits.json, captions.json and images/.

Problems with an image ask about its scene, which has no name: nothing but the picture tells the answer. The right
value, its place among the choices and the wrong values are drawn independently, the hint tells another attribute, and
the scenes of a split are in no other: without the picture, the best is chance. Every image is needed, none decorates.
Problems without an image ask about a thing that the language model has read about (training things in the training
split, and so on), or about what their hint tells.

Most training problems have an image, since each asks for one attribute and eight values of each have to be learned.

The choices number two to five; the grade rises with them. Chance is the mean of one in two to one in five, 32 %.
"""

import json
import random
from collections.abc import Iterator
from itertools import cycle

from PIL import Image

from miniature.captions import WORDINGS, caption
from miniature.phrases import NOUNS, QUESTIONS, QUESTIONS_IT, SENTENCES
from miniature.scenes import DRAWN, Scene, draw, scenes_of
from miniature.world import ATTRIBUTES, VALUES, things_of

SCIENCEQA_SEED = 21208
WITH_IMAGE = {"train": 2400, "val": 80, "test": 160}
WITHOUT_IMAGE = {"train": 240, "val": 80, "test": 160}
MINI = 10  # one in so many problems of a split is in its small version, as officially
THINGS_OF = {"train": "train", "val": "validation", "test": "test"}

Record = dict[str, object]

FIELDS = {  # subject, topic, category; the topics are official ones
    "colour": ("natural science", "physics", "Colours"),
    "shape": ("natural science", "science-and-engineering-practices", "Shapes"),
    "place": ("social science", "geography", "Places"),
    "number": ("natural science", "units-and-measurement", "Counting"),
    "material": ("natural science", "chemistry", "Materials"),
}
MISSING_WORD = ("language science", "vocabulary", "Missing words")
MISSING_WORD_SHARE = 0.25
HINT_SHARE = 1 / 3  # of the problems with an image
SHOWN_THING = "the thing in the picture"


def problems(split: str) -> list[tuple[Record, Scene | None]]:
    """The problems of a split with the scene that the image of each shows, shuffled."""
    generator = random.Random(f"{SCIENCEQA_SEED} {split}")
    made = [*_about_pictures(split, generator), *_about_things(split, generator), *_about_hints(split, generator)]
    generator.shuffle(made)
    return made


def _about_pictures(split: str, generator: random.Random) -> Iterator[tuple[Record, Scene]]:
    for number, scene in enumerate(scenes_of(split)[: WITH_IMAGE[split]]):
        attribute = DRAWN[number % len(DRAWN)]
        other = generator.choice([drawn for drawn in DRAWN if drawn != attribute])
        hint = SENTENCES[other].format(n="It", v=scene.value(other)) if generator.random() < HINT_SHARE else ""
        record = _problem(split, generator, attribute, scene.value(attribute), SHOWN_THING, hint=hint)
        yield record | {"image": "image.png", "solution": caption(scene, WORDINGS[1])}, scene


def _about_things(split: str, generator: random.Random) -> Iterator[tuple[Record, None]]:
    things = cycle(things_of(THINGS_OF[split]))
    for number in range(WITHOUT_IMAGE[split] * 3 // 4):
        attribute, thing = ATTRIBUTES[number % len(ATTRIBUTES)], next(things)
        yield _problem(split, generator, attribute, thing.value(attribute), thing.name), None


def _about_hints(split: str, generator: random.Random) -> Iterator[tuple[Record, None]]:
    """The hint describes a thing without a name, in a sentence of the plain text."""
    for number in range(WITHOUT_IMAGE[split] // 4):
        attribute = DRAWN[number % len(DRAWN)]
        scene = Scene(*(generator.choice(VALUES[drawn]) for drawn in DRAWN))
        hint = caption(scene, WORDINGS[0])
        yield _problem(split, generator, attribute, scene.value(attribute), "it", hint=hint), None


def _problem(split: str, generator: random.Random, attribute: str, right: str, name: str, *, hint: str = "") -> Record:
    """One record without an image.

    Args:
        split: train, val or test.
        generator: of wording, choices and grade.
        attribute: that is asked for.
        right: its value.
        name: of what is asked about, or `it`, which the hint describes.
        hint: may be empty.
    """
    count = generator.randint(2, 5)
    choices = generator.sample([value for value in VALUES[attribute] if value != right], count - 1)
    answer = generator.randrange(count)
    choices.insert(answer, right)
    subject, topic, category = FIELDS[attribute]
    question = generator.choice(QUESTIONS_IT[attribute] if name == "it" else QUESTIONS[attribute]).format(n=name)
    sentence = SENTENCES[attribute].format(n=name[0].upper() + name[1:], v="{v}")
    if generator.random() < MISSING_WORD_SHARE:
        subject, topic, category = MISSING_WORD
        question = f"Which word is missing? {sentence.format(v='___')}"
    return {
        "question": question,
        "choices": choices,
        "answer": answer,
        "hint": hint,
        "image": None,
        "task": "closed choice",
        # two choices in grades 1 to 3, and so on up to five in grades 10 to 12
        "grade": f"grade{3 * (count - 2) + generator.randint(1, 3)}",
        "subject": subject,
        "topic": topic,
        "category": category,
        "skill": f"Tell the {NOUNS[attribute]}",
        "lecture": f"A {NOUNS[attribute]} is one of these: {', '.join(VALUES[attribute])}.",
        "solution": sentence.format(v=right),
        "split": split,
    }


def files() -> Iterator[tuple[str, bytes | Image.Image]]:
    """The data set, file by file: paths relative to its root, with bytes or a picture."""
    records: dict[str, Record] = {}
    scenes: dict[str, Scene] = {}
    for split in WITH_IMAGE:
        for record, scene in problems(split):
            pid = str(len(records) + 1)
            records[pid] = record
            if scene is not None:
                scenes[pid] = scene
    splits = {split: [pid for pid, record in records.items() if record["split"] == split] for split in WITH_IMAGE}
    splits["trainval"] = splits["train"] + splits["val"]
    splits |= {f"mini{split}": splits[split][::MINI] for split in WITH_IMAGE}
    yield "problems.json", _json(records)
    yield "pid_splits.json", _json(splits)
    yield "captions.json", _json({"captions": {pid: caption(scene, WORDINGS[0]) for pid, scene in scenes.items()}})
    for pid, scene in scenes.items():
        yield f"images/{records[pid]['split']}/{pid}/image.png", draw(scene, seed=int(pid))


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
