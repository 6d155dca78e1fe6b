"""The texts of a problem by ScienceQA's own format names, byte for byte as its prompt builder writes them.

A format is `<asked>-<trained>`: letters for Question, Context (the hint), Multiple options, Lecture, Explanation (the
solution) in the order they are asked, and Answer, Lecture, Explanation in the order they are trained. `QCM-A`, the
default and what the paper uses, asks with question, context and options, and trains the answer alone.

The official builder swaps two outputs: its AL prints the solution and its AE the lecture. So do we, or the numbers
under these names would not compare.

The paper answers "The answer is (B)." with brackets, the builder without; `answer` says which, or that the option's
words stand there, for a model that knows no letters.
"""

from tasks.scienceqa.problems import LETTERS, Problem

ASKED = {
    "QCM": "Question: {question}\nContext: {context}\nOptions: {options}\n",
    "CQM": "Context: {context}\nQuestion: {question}\nOptions: {options}\n",
    # Upper bounds: the reasons are given away.
    "QCML": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture}\n",
    "QCME": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {solution}\n",
    "QCMLE": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture} {solution}\n",
    "QCLM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture}\nOptions: {options}\n",
    "QCEM": "Question: {question}\nContext: {context}\nBECAUSE: {solution}\nOptions: {options}\n",
    "QCLEM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture} {solution}\nOptions: {options}\n",
}
TRAINED = {
    "A": "The answer is {answer}.",
    "AL": "The answer is {answer}. BECAUSE: {solution}",
    "AE": "The answer is {answer}. BECAUSE: {lecture}",
    "ALE": "The answer is {answer}. BECAUSE: {lecture} {solution}",
    "AEL": "The answer is {answer}. BECAUSE: {solution} {lecture}",
    "LA": "{lecture} The answer is {answer}.",
    "EA": "{solution} The answer is {answer}.",
    "LEA": "{lecture} {solution} The answer is {answer}.",
    "ELA": "{solution} {lecture} The answer is {answer}.",
}
ANSWER = "Answer:"
ANSWERS = ("brackets", "letter", "words")  # The answer is (B). The answer is B. The answer is an apple.
REASON = "BECAUSE:"


def check_format(name: str) -> None:
    """Refuses a format that the official builder does not have.

    Raises:
        ValueError: names the parts there are.
    """
    asked, _, trained = name.partition("-")
    if asked not in ASKED or trained not in TRAINED:
        raise ValueError(
            f"task.data.format is {name!r}. Join one of {', '.join(ASKED)} and one of {', '.join(TRAINED)} with a "
            "hyphen, as in QCM-A."
        )


def prompt(problem: Problem, name: str, *, caption: bool = False) -> str:
    """What the model is asked, up to and with "Answer:".

    Args:
        problem: asked about.
        name: of the format.
        caption: whether the image's caption joins the context.
    """
    return _tidy(ASKED[name.partition("-")[0]].format(**_texts(problem, caption)) + ANSWER)


def response(problem: Problem, name: str, *, answer: str = "letter") -> str:
    """What is trained; joined to the prompt it is the official text.

    Where no reason follows, the official builder removes every "BECAUSE:" of the whole text, the question's part too.
    Here the prompt keeps its own (QCML, QCME, QCMLE and the like), or training would ask otherwise than testing does.
    """
    texts = _texts(problem) | {"answer": named(problem, problem.answer, answer)}
    text = _tidy(ANSWER + " " + TRAINED[name.partition("-")[2]].format(**texts))
    if text.endswith(REASON):
        text = text.replace(REASON, "").strip()
    return text.removeprefix(ANSWER)


def answer_text(problem: Problem, index: int, *, answer: str = "letter") -> str:
    """The response of a format that trains the answer alone, for any of the options."""
    return " " + TRAINED["A"].format(answer=named(problem, index, answer))


def named(problem: Problem, index: int, answer: str) -> str:
    """How an answer names an option, by one of `ANSWERS`."""
    letter = LETTERS[index]
    return {"brackets": f"({letter})", "letter": letter, "words": problem.choices[index]}[answer]


def check_answer(answer: str) -> None:
    """Refuses a way to answer that there is not.

    Raises:
        ValueError: names the ways.
    """
    if answer not in ANSWERS:
        raise ValueError(f"task.data.answer is {answer!r}. Choose {', '.join(ANSWERS)}.")


def _texts(problem: Problem, caption: bool = False) -> dict[str, str]:
    context = " ".join([problem.hint, problem.caption if caption else ""]).strip()
    return {
        "question": problem.question,
        "context": context or "N/A",
        "options": " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)),
        "lecture": problem.lecture.replace("\n", "\\n"),
        "solution": problem.solution.replace("\n", "\\n"),
    }


def _tidy(text: str) -> str:
    return text.replace("  ", " ").strip()
