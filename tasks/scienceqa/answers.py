"""Reads the chosen option from a generated text, by one fixed rule.

The text must say "The answer is B" or "The answer is (B)", or the option's own words where a run answers with those,
followed by a punctuation mark, a blank or the end of the text; the first such place counts, so reasons may stand before
or after it. A letter beyond the problem's options, or words of none of them, are no answer.
"""

import re
from collections.abc import Sequence

from tasks.scienceqa.problems import LETTERS

UNREADABLE = -1  # the prediction of a text without an answer: it counts as wrong

_ANSWER = re.compile(rf"[Tt]he answer is (?:\(([{LETTERS}])\)|([{LETTERS}]))(?=[.,;:\s]|$)")


def read_answer(text: str, choices: int) -> int:
    """Index of the option that a text chooses, or `UNREADABLE`.

    Args:
        text: generated.
        choices: options of the problem.
    """
    match = _ANSWER.search(text)
    if match is None:
        return UNREADABLE
    index = LETTERS.index(match[1] or match[2])
    return index if index < choices else UNREADABLE


def read_words(text: str, choices: Sequence[str]) -> int:
    """Index of the option whose words a text gives as its answer, or `UNREADABLE`.

    Args:
        text: generated.
        choices: options of the problem.
    """
    # The longest first: one option may begin with the words of another.
    options = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    match = re.search(rf"[Tt]he answer is ({options})(?=[.,;:\s]|$)", text)
    return UNREADABLE if match is None else list(choices).index(match[1])
