"""Answers that are read of texts: the rule's cases, and real generations with what the official parser made of them."""

import re

import pytest

from tasks.scienceqa.answers import UNREADABLE, read_answer, read_words
from tests.tiny_scienceqa import read_gzipped

READINGS = {
    "The answer is B.": 1,
    "The answer is (B).": 1,
    "The answer is (B)": 1,
    "The answer is B": 1,
    "the answer is C. BECAUSE: The answer is A.": 2,
    "A lecture. The answer is A.\n": 0,
    "The answer is (A), since": 0,
    "The answer is b.": UNREADABLE,
    "THE ANSWER IS B.": UNREADABLE,
    "The answer is Batman.": UNREADABLE,
    "The answer is (B.": UNREADABLE,
    "The answer is B).": UNREADABLE,
    "The answer is D.": UNREADABLE,
    "The answer is E.": UNREADABLE,
    "The answer is F.": UNREADABLE,
    "The answer is": UNREADABLE,
    "(B)": UNREADABLE,
    "": UNREADABLE,
}


@pytest.mark.parametrize("text", READINGS)
def test_the_rule(text):
    assert read_answer(text, choices=3) == READINGS[text]


def test_real_generations(shared):
    """GPT-3's texts. The official parser reads the one "The answer is X." of a text, and guesses where there is none or
    more than one: so its file can only be equalled where there is one."""
    root = shared / "data/scienceqa"
    texts = read_gzipped(root / "gpt3_QCM-ALE_test_outputs.json.gz")["outputs"]
    official = read_gzipped(root / "gpt3_QCM-ALE_test_results.json.gz")["results"]
    found = {pid: re.findall(r"The answer is ([A-Z]).", text) for pid, text in texts.items()}
    ours = {pid: read_answer(text, choices=5) for pid, text in texts.items()}
    once = [pid for pid, letters in found.items() if len(letters) == 1]
    assert (len(texts), len(once)) == (4241, 3992)
    assert all(ours[pid] == official[pid] for pid in once)
    # 243 texts are empty or name no letter, 6 name their answer more than once: we take the first.
    assert sum(index == UNREADABLE for index in ours.values()) == 243
    assert {pid for pid, index in ours.items() if index == UNREADABLE} == {pid for pid in found if not found[pid]}
    several = [pid for pid, letters in found.items() if len(letters) > 1]
    assert (len(several), sum(ours[pid] == official[pid] for pid in several)) == (6, 5)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("The answer is red.", 0),
        ("the answer is red brick", 1),
        ("First. The answer is a (b), then", 2),
        ("The answer is reddish.", UNREADABLE),
        ("The answer is blue.", UNREADABLE),
        ("red", UNREADABLE),
    ],
)
def test_answers_in_the_options_own_words(text, index):
    assert read_words(text, ["red", "red brick", "a (b)"]) == index
