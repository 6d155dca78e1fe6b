"""Texts to tokens with their places. Worker processes start with this file alone, so it imports nothing heavy."""

import os
from array import array
from collections.abc import Sequence

from tokenizers import Tokenizer

Chunk = tuple[array, array, array]


class Encoder:
    """A tokenizer's tokens, nothing added to them or cut off.

    Text is only ever text: "</s>" in it is no special token.

    Args:
        description: of the tokenizer, in its own JSON (`tokenizer.json`).
    """

    def __init__(self, description: str) -> None:
        self.tokenizer = Tokenizer.from_str(description)
        self.tokenizer.no_truncation()  # both may be left there by whoever used the tokenizer last
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True

    @property
    def description(self) -> str:
        """The same for tokenizers that give the same tokens, however they were used before."""
        return self.tokenizer.to_str()

    def __call__(self, texts: Sequence[str]) -> Chunk:
        """Ids of all texts, end to end; two offsets for each, first character and last + 1; tokens of each text."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = array("i", (id for encoding in encodings for id in encoding.ids))
        offsets = array("i", (place for encoding in encodings for pair in encoding.offsets for place in pair))
        return ids, offsets, array("i", map(len, encodings))


# --- in a worker ----------------------------------------------------------------------------------------------------

_encoder: Encoder


def start_worker(description: str) -> None:
    """Makes the worker's encoder."""
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _encoder = Encoder(description)


def encode(texts: Sequence[str]) -> Chunk:
    """The worker's encoder, called."""
    return _encoder(texts)
