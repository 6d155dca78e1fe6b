"""Reads SQuAD's official JSON, v1.1 and v2.0, gzipped or not: articles of paragraphs of questions."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_adapter.data_files import first, read_object

VERSIONS = ("v1.1", "v2.0")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A text, and where it begins in the context, in characters."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def fits(self, context: str) -> bool:
        """Whether the context holds the text at its place."""
        return bool(self.text) and context[self.start : self.end] == self.text


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: SQuAD's own.
        text: as the file has it.
        answers: given by different people; none for a question that has no answer (v2.0).
    """

    id: str
    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Paragraph:
    """A context and the questions about it."""

    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Article:
    """Paragraphs of one article of Wikipedia."""

    title: str
    paragraphs: tuple[Paragraph, ...]

    @property
    def questions(self) -> int:
        return sum(len(paragraph.questions) for paragraph in self.paragraphs)


def questions_of(articles: Iterable[Article]) -> Iterator[Question]:
    """All questions, in the file's order."""
    for article in articles:
        for paragraph in article.paragraphs:
            yield from paragraph.questions


def squad_file(root: str | Path, name: str, key: str) -> Path:
    """The path of a file, or of its gzipped form.

    Args:
        root: folder of the data set.
        name: of the file in it.
        key: of the configuration, that gives the name.

    Raises:
        FileNotFoundError: neither is there.
    """
    path = Path(root) / name
    found = next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"No file {path}, nor {path.name}.gz. Set task.data.root to the folder of SQuAD, or task.data.{key} to the "
            "file's name there."
        )
    return found


def read_articles(path: str | Path, version: str) -> list[Article]:
    """The articles of a file.

    An answer whose text does not stand at its place is kept: it can be scored with, and whoever trains leaves it out
    (`windows.Windows.unfit`). `plausible_answers` of questions without an answer are not read.

    Args:
        path: of the file, `.json` or `.json.gz`.
        version: one of `VERSIONS`. Every question of v1.1 has an answer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, of another form, without questions, or has an id twice; the article, the paragraph
            (counted from 1) and the question are named.
    """
    check_version(version)
    content = read_object(Path(path))
    data = content.get("data")
    if not isinstance(data, list):
        raise ValueError(f'{path} has no list "data". SQuAD\'s form is {{"version": ..., "data": [articles]}}.')
    articles = [_article(record, f"{path}, article {number}", version) for number, record in enumerate(data, 1)]
    counts = Counter(question.id for question in questions_of(articles))
    if not counts:
        raise ValueError(f"{path} has no questions.")
    if twice := [id for id, count in counts.items() if count > 1]:
        raise ValueError(f"{path} has {len(twice)} ids of more than one question: {first(twice)}.")
    return articles


def check_version(version: str) -> None:
    """Refuses a version that there is none of."""
    if version not in VERSIONS:
        raise ValueError(f"task.data.version is {version!r}. Choose {' or '.join(VERSIONS)}.")


# --- from JSON to records -------------------------------------------------------------------------------------------


def _article(record: object, where: str, version: str) -> Article:
    title = _value(record, "title", str, where)
    where = f"{where} ({title})"
    paragraphs = _value(record, "paragraphs", list, where)
    return Article(title, tuple(_paragraph(p, f"{where}, paragraph {n}", version) for n, p in enumerate(paragraphs, 1)))


def _paragraph(record: object, where: str, version: str) -> Paragraph:
    context = _value(record, "context", str, where)
    if not context.strip():
        raise ValueError(f"{where} has an empty context.")
    questions = enumerate(_value(record, "qas", list, where), 1)
    return Paragraph(context, tuple(_question(q, f"{where}, question {n}", version) for n, q in questions))


def _question(record: object, where: str, version: str) -> Question:
    id = _value(record, "id", str, where)
    where = f"{where} ({id})"
    text = _value(record, "question", str, where)
    answers = _value(record, "answers", list, where)
    if version == "v1.1" and not answers:
        raise ValueError(f"{where} has no answer, as no question of v1.1 may. task=squad_v2 takes such files.")
    if record.get("is_impossible", not answers) is not (not answers):
        raise ValueError(f"{where} has is_impossible {record['is_impossible']!r} and {len(answers)} answers.")
    return Question(id, text, tuple(_answer(a, f"{where}, answer {n}") for n, a in enumerate(answers, 1)))


def _answer(record: object, where: str) -> Answer:
    text, start = _value(record, "text", str, where), _value(record, "answer_start", int, where)
    if start < 0:
        raise ValueError(f"{where} has the answer_start {start}; it must be at least 0.")
    return Answer(text, start)


_KINDS = {str: "a text", list: "a list", int: "a whole number"}


def _value(record: object, key: str, kind: type, where: str):
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no object.")
    if key not in record:
        raise ValueError(f"{where} has no {key!r}.")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} has {shortened(value)} as its {key!r}; it must be {_KINDS[kind]}.")
    return value


def shortened(value: object) -> str:
    """A value as an error shows it: of a long one, the beginning."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
