"""SQuAD's files: the official forms, and what is refused with which words."""

import gzip
import json

import pytest

from llama_adapter.data_files import first
from tasks.squad.records import Answer, questions_of, read_articles, squad_file
from tests.tiny_squad import CONTEXT, FILES, answer, article, question, write_squad


@pytest.mark.parametrize(
    ("name", "articles", "paragraphs", "questions", "impossible"),
    [
        ("dev-v1.1.rebuilt", 48, 2067, 10570, 0),
        ("dev-v2.0.rebuilt", 35, 1204, 11873, 5945),
        ("dev-v2.0-slice", 5, 173, 1407, 702),
    ],
)
def test_the_real_files(shared, name, articles, paragraphs, questions, impossible):
    """The counts that SQuAD's authors published, and those of the slice's records."""
    read = read_articles(shared / f"data/squad/{name}.json.gz", FILES[name])
    asked = list(questions_of(read))
    assert (len(read), sum(len(a.paragraphs) for a in read), len(asked)) == (articles, paragraphs, questions)
    assert sum(not q.answers for q in asked) == impossible
    assert sum(article.questions for article in read) == questions
    for article_ in read:
        for paragraph in article_.paragraphs:
            assert all(a.fits(paragraph.context) for q in paragraph.questions for a in q.answers)


def test_both_versions(tmp_path):
    old = question("a", answer("red ball"), answer("ball"))
    del old["is_impossible"]
    plausible = question("b", plausible_answers=[answer("box")])
    path = write_squad(tmp_path, article(old, plausible))
    (read,) = read_articles(path, "v2.0")
    assert read.title == "Things"
    assert read.paragraphs[0].context == CONTEXT
    assert [q.id for q in questions_of([read])] == ["a", "b"]
    assert read.paragraphs[0].questions[0].answers == (Answer("red ball", 4), Answer("ball", 8))
    assert read.paragraphs[0].questions[1].answers == ()
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_articles(packed, "v2.0") == [read]


def test_an_answer_fits_only_at_its_place():
    assert Answer("red ball", 4).fits(CONTEXT)
    assert not Answer("red ball", 5).fits(CONTEXT)
    assert not Answer("red ball", 10**6).fits(CONTEXT)
    assert not Answer("", 4).fits(CONTEXT)


def test_a_file_is_found_gzipped_too(tmp_path):
    path = write_squad(tmp_path, article(question("a")), name="one.json")
    assert squad_file(tmp_path, "one.json", "test_file") == path
    packed = tmp_path / "two.json.gz"
    packed.write_bytes(b"")
    assert squad_file(tmp_path, "two.json", "test_file") == packed
    with pytest.raises(FileNotFoundError) as error:
        squad_file(tmp_path, "none.json", "train_file")
    assert str(error.value) == (
        f"No file {tmp_path}/none.json, nor none.json.gz. Set task.data.root to the folder of SQuAD, or "
        "task.data.train_file to the file's name there."
    )


WHERE = "article 1 (Things), paragraph 1, question 1 (a)"


@pytest.mark.parametrize(
    ("record", "version", "message"),
    [
        (article(), "v2.0", " has no questions."),
        (article(question("a")), "v1.1", f", {WHERE} has no answer, as no question of v1.1 may. task=squad_v2 takes such files."),
        (article(question("a"), question("a"), question("b"), question("b")), "v2.0", " has 2 ids of more than one question: a, b."),
        (article(question("a", is_impossible=False)), "v2.0", f", {WHERE} has is_impossible False and 0 answers."),
        (article(question("a", answer("red"), is_impossible=True)), "v2.0", f", {WHERE} has is_impossible True and 1 answers."),
        (article(question("a", {"text": "red"})), "v2.0", f", {WHERE}, answer 1 has no 'answer_start'."),
        (article(question("a", answer("red", start=-1))), "v2.0", f", {WHERE}, answer 1 has the answer_start -1; it must be at least 0."),
        (article(question("a", answer("red", start=True))), "v2.0", f", {WHERE}, answer 1 has True as its 'answer_start'; it must be a whole number."),
        (article(question("a", "red")), "v2.0", f", {WHERE}, answer 1 is no object."),
        (article(question(7)), "v2.0", ", article 1 (Things), paragraph 1, question 1 has 7 as its 'id'; it must be a text."),
        (article({"id": "a", "answers": []}), "v2.0", f", {WHERE} has no 'question'."),
        (article(question("a", answers={"text": ["x" * 99]})), "v2.0", f", {WHERE} has {{'text': ['{'x' * 66}... as its 'answers'; it must be a list."),
        (article(question("a"), context=" \n"), "v2.0", ", article 1 (Things), paragraph 1 has an empty context."),
        ({"title": "Things"}, "v2.0", ", article 1 (Things) has no 'paragraphs'."),
        ({"paragraphs": []}, "v2.0", ", article 1 has no 'title'."),
        ("text", "v2.0", ", article 1 is no object."),
    ],
)  # fmt: skip
def test_records_that_are_none(tmp_path, record, version, message):
    path = write_squad(tmp_path, record)
    with pytest.raises(ValueError) as error:
        read_articles(path, version)
    assert str(error.value) == f"{path}{message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON: Expecting value (line 1, column 1). Is it cut off?"),
        ('{"version": "v2.0", "data": [{"title":', "is not JSON: Expecting value (line 1, column 39). Is it cut off?"),
        ("[]", "does not hold an object."),
        ('{"version": "v2.0"}', 'has no list "data". SQuAD\'s form is {"version": ..., "data": [articles]}.'),
        ('{"data": [], "data": []}', "has data more than once in one object."),
        ('{"data": []}', "has no questions."),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "dev.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_articles(path, "v2.0")
    assert str(error.value) == f"{path} {message}"


def test_a_gzipped_file_that_is_cut_off(tmp_path):
    path = tmp_path / "dev.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"data": []}).encode())[:-9])
    with pytest.raises(ValueError, match=rf"^{path} cannot be read: .* Is it cut off, or not UTF-8 text\?$"):
        read_articles(path, "v2.0")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^No file {tmp_path}/none.json\.$"):
        read_articles(tmp_path / "none.json", "v2.0")
    with pytest.raises(ValueError, match=r"^task\.data\.version is '2'\. Choose v1\.1 or v2\.0\.$"):
        read_articles(tmp_path / "none.json", "2")


def test_many_names_are_counted():
    assert first(list("abcde")) == "a, b, c, d, e"
    assert first(list("abcdefg")) == "a, b, c, d, e and 2 more"
