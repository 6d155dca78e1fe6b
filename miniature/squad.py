"""Miniature SQuAD in the official layout: train-v1.1.json, dev-v1.1.json and the same with v2.0.

Every passage tells facts of its own about things of its own (`passages.py`): nothing that was learned before tells an
answer, and the things of the dev files are in no training file. v2.0 holds v1.1's questions with the same ids, and
others that their passage does not answer: it tells that attribute of another thing, or other attributes of that thing.
Such a question has the other thing's value as its plausible answer.

A training question has one answer, a dev question three, as from three people: one may leave out the modifier ("red"
for "dark red") or take the article with it ("the old forest").

One passage in eight is longer than a row of the miniature RoBERTa, so it needs several windows.
"""

import hashlib
import json
import random
from collections.abc import Iterator

from miniature.passages import Fact, Passage, passage, passage_names, question, untold

SQUAD_SEED = 160605250
ARTICLES = {"train": 36, "dev": 10}
PARAGRAPHS = 8  # of an article
QUESTIONS = {"train": 5, "dev": 4}  # of a paragraph that it answers
UNANSWERED = {"train": 2, "dev": 2}  # of a paragraph that it does not answer; in v2.0 alone
DEV_ANSWERS = 3
FACTS = (5, 9)  # of a passage, at least and at most
LONG_FACTS = (15, 22)
LONG_EVERY = 8  # one passage in so many is long
VERSIONS = {"v1.1": "1.1", "v2.0": "v2.0"}  # in a file's name, and as the official files themselves write it
TITLES = ("The_collection_of_{}", "{}_and_its_neighbours", "A_walk_to_{}", "{}_(exhibition)", "The_market_of_{}")

Record = dict[str, object]


def articles(split: str) -> list[Record]:
    """The articles of a split in the form of v2.0."""
    generator, names = random.Random(f"{SQUAD_SEED} {split}"), passage_names(split)
    return [_article(split, number, generator, names) for number in range(ARTICLES[split])]


def _article(split: str, number: int, generator: random.Random, names: tuple[str, ...]) -> Record:
    title = TITLES[number % len(TITLES)].format(names[number % len(names)])
    paragraphs = []
    for index in range(PARAGRAPHS):
        facts = LONG_FACTS if index % LONG_EVERY == LONG_EVERY - 1 else FACTS
        read = passage(generator, names, generator.randint(*facts))
        qas = [_answered(split, generator, read, fact) for fact in generator.sample(read.facts, QUESTIONS[split])] + [
            _unanswered(generator, read, names) for _ in range(UNANSWERED[split])
        ]
        generator.shuffle(qas)
        for place, record in enumerate(qas):
            record["id"] = hashlib.sha256(f"{split} {number} {index} {place}".encode()).hexdigest()[:24]
        paragraphs.append({"qas": qas, "context": read.text})
    return {"title": title, "paragraphs": paragraphs}


def _answered(split: str, generator: random.Random, read: Passage, fact: Fact) -> Record:
    wordings = [_answer(fact.value, fact.start)]
    if split == "dev":
        wordings += [generator.choice(_wordings(read, fact)) for _ in range(DEV_ANSWERS - 1)]
    asked = question(generator, fact.name, fact.attribute)
    return {"question": asked, "id": "", "answers": wordings, "is_impossible": False}


def _unanswered(generator: random.Random, read: Passage, names: tuple[str, ...]) -> Record:
    name, other = untold(generator, read, names)
    return {
        "plausible_answers": [_answer(other.value, other.start)],
        "question": question(generator, name, other.attribute),
        "id": "",
        "answers": [],
        "is_impossible": True,
    }


def _wordings(read: Passage, fact: Fact) -> list[Record]:
    """The value as it stands, without its modifier, and with the article before it."""
    wordings = [_answer(fact.value, fact.start)]
    if " " in fact.value:
        modifier, value = fact.value.split(" ")
        wordings.append(_answer(value, fact.start + len(modifier) + 1))
    for article in ("a ", "the "):
        if read.text[: fact.start].endswith(f" {article}"):
            wordings.append(_answer(article + fact.value, fact.start - len(article)))
    return wordings


def _answer(text: str, start: int) -> Record:
    return {"text": text, "answer_start": start}


def files() -> Iterator[tuple[str, bytes]]:
    """The data set, file by file: names with their bytes."""
    for split in ARTICLES:
        made = articles(split)
        for version, written in VERSIONS.items():
            data = made if version == "v2.0" else [_first_version(article) for article in made]
            content = json.dumps({"version": written, "data": data}, ensure_ascii=False)
            yield f"{split}-{version}.json", f"{content}\n".encode()


def _first_version(article: Record) -> Record:
    """The same article in the form of v1.1: questions with an answer alone."""
    paragraphs = [
        {
            "context": paragraph["context"],
            "qas": [
                {key: record[key] for key in ("answers", "question", "id")}
                for record in paragraph["qas"]
                if not record["is_impossible"]
            ],
        }
        for paragraph in article["paragraphs"]
    ]
    return {"title": article["title"], "paragraphs": paragraphs}
