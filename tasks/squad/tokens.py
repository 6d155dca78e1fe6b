"""Questions and contexts as tokens, each text once: in one process or several, and kept in a file between runs.

A window is put together from these (`windows.py`), so the settings of windows do not matter here, and a context that
five questions ask about is tokenised once.
"""

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from llama_adapter.files import whole_file
from tasks.squad.encoder import Chunk, Encoder, encode, start_worker
from tasks.squad.records import Article, questions_of

log = logging.getLogger(__name__)

FORMAT = "1"  # of the cache's files; a change of what is tokenised or stored makes it another one
TOGETHER = 256  # texts that are tokenised at once


@dataclass(frozen=True)
class Pieces:
    """The tokens of many texts, end to end.

    Attributes:
        ids: [N], int32.
        offsets: [N, 2], int32, the characters of its text that a token stands for, first and last + 1. Pieces of one
            character (byte-level BPE has them) all stand for the whole of it; a blank alone may stand for nothing.
        bounds: [texts + 1], int64: text i has the tokens `bounds[i]` to `bounds[i + 1]`.
    """

    ids: Tensor
    offsets: Tensor
    bounds: Tensor

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of(self, text: int) -> slice:
        """Where the tokens of a text are."""
        return slice(int(self.bounds[text]), int(self.bounds[text + 1]))


@dataclass(frozen=True)
class SquadTokens:
    """Tokens without special ones: one text for every paragraph, and one for every question."""

    contexts: Pieces
    questions: Pieces


def squad_tokens(
    path: Path, articles: Sequence[Article], tokenizer: PreTrainedTokenizerBase, *, cache: Path | None, workers: int
) -> SquadTokens:
    """The tokens of a file, from the cache where they are there.

    A cached file is found by what it was made of: the bytes of the data and the tokenizer's own description. One that
    is damaged is made again, with a warning.

    Args:
        path: that the articles were read from.
        articles: in the file's order.
        tokenizer: a fast one of transformers.
        cache: folder of cached files; None keeps none.
        workers: processes that tokenise; 0 does it here, on the tokenizer's own threads.
    """
    if cache is None:
        return _tokenize(articles, tokenizer, workers)
    key = cache_key(path, tokenizer)
    stored = Path(cache) / f"{path.name.split('.json')[0]}-{key[:16]}.safetensors"
    if stored.is_file():
        try:
            tokens = _read(stored, key)
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("The cached tokens in %s are damaged (%s); they are made again.", stored, error)
        else:
            log.info("The tokens of %s are from %s.", path, stored)
            return tokens
    tokens = _tokenize(articles, tokenizer, workers)
    _write(stored, key, tokens)
    return tokens


def cache_key(path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """64 hexadecimal digits of what decides the tokens of a file."""
    digest = hashlib.sha256(FORMAT.encode())
    digest.update(hashlib.sha256(_encoder(tokenizer).description.encode()).digest())
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tokenize_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, workers: int = 0) -> Pieces:
    """Tokens of many texts, with a progress bar.

    Args:
        texts: may be empty.
        tokenizer: a fast one of transformers.
        workers: processes; 0 for none but this.
    """
    chunks = [texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER)]
    ids, offsets, bounds = array("i"), array("i"), array("q", [0])
    shown = {"desc": "tokenising", "unit": " texts", "leave": False, "disable": rank_zero_only.rank != 0}
    with _mapper(_encoder(tokenizer), workers) as mapper, tqdm(total=len(texts), **shown) as bar:
        for chunk_ids, chunk_offsets, lengths in mapper(chunks):
            ids.extend(chunk_ids)
            offsets.extend(chunk_offsets)
            for length in lengths:
                bounds.append(bounds[-1] + length)
            bar.update(len(lengths))
    return Pieces(
        torch.tensor(ids, dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32).view(-1, 2),
        torch.tensor(bounds, dtype=torch.long),
    )


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer.backend_tokenizer.to_str())


@contextmanager
def _mapper(encoder: Encoder, workers: int) -> Iterator[Callable[[Sequence[Sequence[str]]], Iterable[Chunk]]]:
    """Yields a function from chunks of texts to their tokens, in their order."""
    if not workers:
        yield lambda chunks: map(encoder, chunks)
        return
    # New processes: a fork would copy the locks of the tokenizer's threads, and those of CUDA.
    options = {"mp_context": get_context("spawn"), "initializer": start_worker, "initargs": (encoder.description,)}
    with ProcessPoolExecutor(workers, **options) as pool:
        yield lambda chunks: pool.map(encode, chunks)


def _tokenize(articles: Sequence[Article], tokenizer: PreTrainedTokenizerBase, workers: int) -> SquadTokens:
    contexts = [paragraph.context for article in articles for paragraph in article.paragraphs]
    # As transformers' own reader does: blanks around a question say nothing.
    questions = [question.text.strip() for question in questions_of(articles)]
    pieces = tokenize_texts([*contexts, *questions], tokenizer, workers=workers)
    middle = int(pieces.bounds[len(contexts)])
    return SquadTokens(
        Pieces(pieces.ids[:middle], pieces.offsets[:middle], pieces.bounds[: len(contexts) + 1]),
        Pieces(pieces.ids[middle:], pieces.offsets[middle:], pieces.bounds[len(contexts) :] - middle),
    )


# --- the cache ------------------------------------------------------------------------------------------------------


def _tensors(tokens: SquadTokens) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": getattr(getattr(tokens, kind), name).contiguous()
        for kind in ("contexts", "questions")
        for name in ("ids", "offsets", "bounds")
    }


def _made_of(key: str, tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(key.encode())
    for tensor in tensors:
        digest.update(tensor.numpy())
    return digest.hexdigest()


def _write(path: Path, key: str, tokens: SquadTokens) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(tokens)
    # The devices of a run may all write it: each under a name of its own, and the last one stays.
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with whole_file(own) as temporary:
        save_file(tensors, temporary, metadata={"made_of": _made_of(key, tensors.values())})
    os.replace(own, path)


def _read(path: Path, key: str) -> SquadTokens:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    parts = {}
    for kind in ("contexts", "questions"):
        try:
            parts[kind] = Pieces(*(tensors[f"{kind}.{name}"] for name in ("ids", "offsets", "bounds")))
        except KeyError as error:
            raise ValueError(f"it has no {error}") from None
    tokens = SquadTokens(**parts)
    if metadata.get("made_of") != _made_of(key, _tensors(tokens).values()):
        raise ValueError("its contents are not those that were written")
    return tokens
