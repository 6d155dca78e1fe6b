"""Answers while they are being written: ids row by row, and text in pieces that join up to the answer."""

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are not a whole character (yet)


class IdStreamer(BaseStreamer):
    """Hands each row's new id to `stream` under the index of its prompt, up to the row's EOS."""

    def __init__(self, indices: Sequence[int], eos_ids: Sequence[int], stream: Callable[[int, int], None]) -> None:
        self.indices = indices
        self.eos_ids = eos_ids
        self.stream = stream
        self.finished: set[int] = set()

    def put(self, value: Tensor) -> None:
        if value.dim() == 2:  # the prompts, which transformers hands over first
            return
        for index, token in zip(self.indices, value.tolist(), strict=True):
            if token in self.eos_ids:
                self.finished.add(index)
            if index not in self.finished:
                self.stream(index, token)

    def end(self) -> None:
        """Nothing is held back at this level."""


class TextPieces:
    """Decodes the ids of several answers as they come and passes on what is new and whole."""

    def __init__(self, decode: Callable[[list[int]], str], stream: Callable[[int, str], None], answers: int) -> None:
        self.decode = decode
        self.stream = stream
        self.ids: list[list[int]] = [[] for _ in range(answers)]
        self.sent = [0] * answers  # characters

    def add(self, index: int, token: int) -> None:
        # All of the ids again: a piece's text depends on the pieces before it (the first one loses its blank).
        self.ids[index].append(token)
        self._send(index, self.decode(self.ids[index]).rstrip(REPLACEMENT))

    def finish(self, texts: Sequence[str]) -> None:
        for index, text in enumerate(texts):
            self._send(index, text)

    def _send(self, index: int, text: str) -> None:
        if len(text) > self.sent[index]:
            self.stream(index, text[self.sent[index] :])
            self.sent[index] = len(text)
