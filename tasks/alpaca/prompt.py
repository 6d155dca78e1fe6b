"""How a record becomes the text the model is asked with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PLACEHOLDER = re.compile(r"\{(instruction|input)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """Two texts with the placeholders {instruction} and {input}; the answer follows with nothing between.

    Args:
        with_input: for records whose `input` is not empty (one blank is not empty, as in the authors' code).
        without_input: for the others.
    """

    with_input: str
    without_input: str

    def __post_init__(self) -> None:
        for key, needed in (("with_input", {"instruction", "input"}), ("without_input", {"instruction"})):
            found = set(PLACEHOLDER.findall(getattr(self, key)))
            if found != needed:
                raise ValueError(
                    f"task.data.template.{key} must contain {_braced(needed)} and no other placeholder, "
                    f"got {_braced(found) or 'none'}."
                )

    def prompt(self, record: Mapping[str, str]) -> str:
        """The prompt of a record with `instruction` and perhaps `input`; braces in them stay as they are."""
        text = self.with_input if record.get("input") else self.without_input
        return PLACEHOLDER.sub(lambda match: record[match[1]], text)


def _braced(names: set[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names, reverse=True))


TEMPLATES = {
    # Stanford Alpaca's, as the LLaMA-Adapter training code joins it: no line break after "Response:"
    "alpaca": PromptTemplate(
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        ),
        without_input=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:"
        ),
    ),
    # a tenth of the tokens: the prompts learn what the sentence would have said
    "short": PromptTemplate(
        with_input="Instruction: {instruction}\nInput: {input}\nResponse:",
        without_input="Instruction: {instruction}\nResponse:",
    ),
}


def resolve_template(template: str | Mapping[str, str] | PromptTemplate) -> PromptTemplate:
    """A template by its name, or from its two texts.

    Raises:
        ValueError: the name is unknown, or a text lacks its placeholders.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, str):
        if template not in TEMPLATES:
            raise ValueError(
                f"task.data.template is {template!r}. Choose {' or '.join(TEMPLATES)}, "
                "or give the two texts with_input and without_input."
            )
        return TEMPLATES[template]
    if set(template) != {"with_input", "without_input"}:
        raise ValueError(f"task.data.template needs exactly with_input and without_input, got {sorted(template)}.")
    return PromptTemplate(**template)
