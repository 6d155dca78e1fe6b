"""Text to token ids and labels, in the two ways of `encoding=`.

`default` encodes prompt and answer each for itself, so every piece of the answer is trained, and keeps EOS when an
answer is cut. `paper` is the authors' rule to the id: one encoding of the joined text, cut on the right (EOS is lost
then), with as many positions untrained as the prompt has pieces when it stands alone. Where the template's last ":"
merges with the answer's first character (":-"), the authors do not train that piece.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llama_adapter.examples import IGNORED, Example
from llama_adapter.tokenizer import Tokenizer

LEAST_ANSWER = 2  # a trained token and EOS


@dataclass(frozen=True)
class Encoding:
    """One encoded record.

    Attributes:
        ids: BOS, prompt, answer and, unless cut off, EOS.
        prompt_length: tokens at the front that are not trained.
        full_length: tokens before anything was cut.
    """

    ids: list[int]
    prompt_length: int
    full_length: int

    @property
    def truncated(self) -> bool:
        return len(self.ids) < self.full_length

    @property
    def trained_tokens(self) -> int:
        return max(0, len(self.ids) - self.prompt_length)

    def example(self) -> Example:
        """`input_ids` and `labels`, [T] each."""
        labels = [IGNORED] * min(self.prompt_length, len(self.ids)) + self.ids[self.prompt_length :]
        return {"input_ids": torch.tensor(self.ids), "labels": torch.tensor(labels)}


def encode_default(tokenizer: Tokenizer, prompt: str, answer: str, max_length: int) -> Encoding:
    """Prompt and answer encoded apart; a long answer is cut and EOS kept.

    A prompt that leaves no room for an answer gives an encoding without a trained token.
    """
    prompt_ids = tokenizer.encode(prompt, bos=True)
    answer_ids = tokenizer.encode(answer, eos=True)
    full_length = len(prompt_ids) + len(answer_ids)
    if full_length > max_length:
        room = max_length - len(prompt_ids)
        answer_ids = [*answer_ids[: room - 1], answer_ids[-1]] if room >= LEAST_ANSWER else []
    return Encoding((prompt_ids + answer_ids)[:max_length], min(len(prompt_ids), max_length), full_length)


def encode_paper(tokenizer: Tokenizer, prompt: str, answer: str, max_length: int) -> Encoding:
    """The authors' rule (golden numbers of their code agree to the id)."""
    ids = tokenizer.encode(prompt + answer, bos=True, eos=True)
    return Encoding(ids[:max_length], len(tokenizer.encode(prompt, bos=True)), len(ids))


ENCODINGS: dict[str, Callable[[Tokenizer, str, str, int], Encoding]] = {
    "default": encode_default,
    "paper": encode_paper,
}


class EncodedDataset(Sequence[Example]):
    """Encoded records as examples, and what was lost in encoding them.

    Args:
        encodings: of the records that are kept.
        dropped: how many records had no room for an answer and were left out.
    """

    def __init__(self, encodings: Sequence[Encoding], *, dropped: int = 0) -> None:
        self.encodings = encodings
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.encodings)

    def __getitem__(self, index: int) -> Example:
        return self.encodings[index].example()

    @property
    def truncated(self) -> int:
        """Records whose answer was cut."""
        return sum(encoding.truncated for encoding in self.encodings)

    @property
    def tokens(self) -> int:
        return sum(len(encoding.ids) for encoding in self.encodings)

    @property
    def trained_tokens(self) -> int:
        return sum(encoding.trained_tokens for encoding in self.encodings)
