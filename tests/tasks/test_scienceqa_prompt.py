"""The texts of problems against what the official prompt builder printed."""

import json
from functools import cache
from pathlib import Path

import pytest

from tasks.scienceqa.problems import read_problems
from tasks.scienceqa.prompt import ASKED, TRAINED, answer_text, check_answer, check_format, prompt, response
from tests.tiny_scienceqa import REAL, record, write_scienceqa


@cache
def real_problems(root: Path) -> dict:
    read = (
        read_problems(root, split, problems_file=REAL, captions_file="captions.json") for split in ("trainval", "test")
    )
    return {problem.pid: problem for problems in read for problem in problems}


def made(folder, **changed):
    (problem,) = read_problems(write_scienceqa(folder, {"1": record(**changed)}), "test")
    return problem


@pytest.mark.parametrize("caption", [False, True])
@pytest.mark.parametrize("name", ["QCM-A", "QCM-AE", "QCM-ALE", "QCM-LEA", "CQM-A"])
def test_official_prompts(shared, name, caption):
    """Byte for byte, in the form that is trained and in the one that is asked."""
    root = shared / "data/scienceqa"
    golden = json.loads((root / "golden/official_prompts.json").read_text(encoding="utf-8"))["prompts"]
    assert len(golden) == 60
    cases = [case for case in golden if (case["format"], case["use_caption"]) == (name, caption)]
    assert len(cases) == 6
    for case in cases:
        problem = real_problems(root)[case["pid"]]
        asked = prompt(problem, name, caption=caption)
        assert asked == case["test"]
        assert asked + response(problem, name) == case["train"]


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("asked", ASKED)
def test_every_format_has_the_parts_of_its_name_in_its_order(tmp_path, asked, trained):
    problem = made(tmp_path, hint="hint", lecture="lecture", solution="solution")
    name = f"{asked}-{trained}"
    check_format(name)
    words = {"Q": "Question: ", "C": "Context: hint", "M": "Options: (A) apple (B) bus"}
    words |= {"L": "lecture", "E": "solution", "A": "The answer is A."}
    text = prompt(problem, name)
    assert sorted(asked, key=lambda letter: text.index(words[letter])) == list(asked)
    assert {letter for letter, word in words.items() if word in text} == set(asked)
    assert text.endswith("\nAnswer:")
    text = response(problem, name)
    parts = {"AL": "AE", "AE": "AL"}.get(trained, trained)  # swapped in the official builder
    assert sorted(parts, key=lambda letter: text.index(words[letter])) == list(parts)
    assert {letter for letter, word in words.items() if word in text} == set(parts)


def test_ways_to_answer(tmp_path):
    problem = made(tmp_path, answer=1)
    assert response(problem, "QCM-A") == answer_text(problem, 1) == " The answer is B."
    texts = {"brackets": " The answer is (B).", "words": f" The answer is {problem.choices[1]}."}
    for answer, text in texts.items():
        assert response(problem, "QCM-A", answer=answer) == answer_text(problem, 1, answer=answer) == text
    with pytest.raises(ValueError, match=r"task\.data\.answer is 'number'\. Choose brackets, letter, words\."):
        check_answer("number")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("trained", ["AL", "AE", "ALE", "AEL"])
def test_nothing_is_promised_where_no_reason_follows(tmp_path, asked, trained):
    assert response(made(tmp_path), f"{asked}-{trained}") == " The answer is A."


def test_what_the_builder_tidies(tmp_path):
    problem = made(tmp_path, lecture="one\ntwo  three ", hint="")
    assert response(problem, "QCM-LA") == " one\\ntwo three The answer is A."
    assert "\nContext: N/A\n" in prompt(problem, "QCM-A")


@pytest.mark.parametrize("name", ["QCM-B", "MCQ-A", "QCM", "QCM-A-E", "qcm-a", ""])
def test_a_format_that_there_is_not(name):
    with pytest.raises(ValueError) as error:
        check_format(name)
    assert str(error.value) == (
        f"task.data.format is {name!r}. Join one of QCM, CQM, QCML, QCME, QCMLE, QCLM, QCEM, QCLEM and one of A, AL, AE, "
        "ALE, AEL, LA, EA, LEA, ELA with a hyphen, as in QCM-A."
    )
