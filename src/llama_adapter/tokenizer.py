"""One small face for the two kinds of tokenizers: SentencePiece models (LLaMA 1 and 2) and transformers' own.

The frozen models were trained on ids that these tokenizers gave to plain text, so text is only ever text here: a user
who types `</s>` gets its characters' pieces, never the end of the document. Ids that mean something are added by name.
"""

import json
import logging
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # `org/name`, as on huggingface.co
logger = logging.getLogger(__name__)


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: a SentencePiece processor, or a tokenizer of transformers.
        eos_ids: ids that end an answer besides the backend's own end of text. Chat models have several (Llama 3: end of
            text, end of message, end of turn).

    Attributes:
        bos_id: put before a text; None where the family has none (Qwen2), and then `bos=True` adds nothing.
        eos_id: the end of text, put after it.
        pad_id: fills batches and is never read. LLaMA has no padding piece and takes its unknown piece, 0.
        vocabulary_size: ids are 0 to this minus 1. The model's embeddings may have more rows.

    Raises:
        ValueError: the backend does not say which id ends a text.
    """

    def __init__(self, backend: SentencePieceProcessor | PreTrainedTokenizerBase, eos_ids: Iterable[int] = ()) -> None:
        self.backend = backend
        self.is_sentencepiece = isinstance(backend, SentencePieceProcessor)
        if self.is_sentencepiece:
            # SentencePiece says -1 for a piece that it does not have.
            bos, eos, pad, unknown = (
                None if id < 0 else id
                for id in (backend.bos_id(), backend.eos_id(), backend.pad_id(), backend.unk_id())
            )
            self.vocabulary_size: int = backend.get_piece_size()
        else:
            bos, eos, pad = backend.bos_token_id, backend.eos_token_id, backend.pad_token_id
            unknown = backend.unk_token_id
            self.vocabulary_size = len(backend)
        if eos is None:
            raise ValueError(
                "The tokenizer does not say which id ends a text. With a tokenizer.json, put the "
                "tokenizer_config.json of the same model beside it."
            )
        self.bos_id: int | None = bos
        self.eos_id: int = eos
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((eos, *eos_ids)))
        self.pad_id: int = next(id for id in (pad, unknown, eos) if id is not None)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text, with `bos_id` before and `eos_id` after it only where asked."""
        if self.is_sentencepiece:
            ids = self.backend.encode(text)
        else:
            # transformers would add specials by itself and read `</s>` in the text as one.
            ids = self.backend.encode(text, add_special_tokens=False, split_special_tokens=True)
        start = [self.bos_id] if bos and self.bos_id is not None else []
        return [*start, *ids, *([self.eos_id] if eos else [])]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids give nothing, everything else is kept as it is.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        ids = [int(id) for id in ids]
        outside = [id for id in ids if not 0 <= id < self.vocabulary_size]
        if outside:
            raise ValueError(
                f"Id {outside[0]} is not in the vocabulary: ids are 0 to {self.vocabulary_size - 1}. "
                "Is this the tokenizer of the model that wrote it?"
            )
        kept = [id for id in ids if id not in self.special_ids]
        if self.is_sentencepiece:
            return self.backend.decode(kept)
        return self.backend.decode(kept, clean_up_tokenization_spaces=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of every id as the vocabulary spells it, for looking at."""
        ids = [int(id) for id in ids]
        return self.backend.id_to_piece(ids) if self.is_sentencepiece else self.backend.convert_ids_to_tokens(ids)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: start, end, padding, unknown and other control pieces."""
        if not self.is_sentencepiece:
            return frozenset(self.backend.all_special_ids)
        control = (self.backend.is_control, self.backend.is_unknown)
        return frozenset(id for id in range(self.vocabulary_size) if any(kind(id) for kind in control))


def as_tokenizer(tokenizer: Tokenizer | SentencePieceProcessor | PreTrainedTokenizerBase) -> Tokenizer:
    """Wraps what a notebook has at hand.

    Raises:
        ValueError: it is none of the three kinds.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, SentencePieceProcessor | PreTrainedTokenizerBase):
        return Tokenizer(tokenizer)
    raise ValueError(
        f"A tokenizer is a SentencePieceProcessor or a tokenizer of transformers, got {type(tokenizer).__name__}. "
        "To read one from a path, use load_tokenizer(path)."
    )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a tokenizer from a folder, a file or the Hugging Face hub.

    A `tokenizer.model` is used where there is one: it is what the weights were trained with, and the other formats are
    conversions of it. Meta's downloads keep one for all sizes, above the folder of each size; that is looked at too.

    Args:
        path: a folder with `tokenizer.model` or `tokenizer.json`, one of these files, or a hub id `org/name`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is not what its name says.
    """
    place = Path(path)
    if place.is_file():
        return _transformers(place.parent) if place.name == "tokenizer.json" else _sentencepiece(place)
    if place.is_dir():
        # resolve(): the folder above `7B/.` or of a link is only known then.
        above = [place.resolve().parent] if (place / "params.json").is_file() else []
        for folder in (place, *above):
            if (folder / "tokenizer.model").is_file():
                return _sentencepiece(folder / "tokenizer.model")
        if any((place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return _transformers(place)
        raise FileNotFoundError(
            f"No tokenizer in {place}. Expected tokenizer.model (SentencePiece) or tokenizer.json with "
            "tokenizer_config.json (Hugging Face). Set model.tokenizer to the folder or file."
        )
    if is_hub_id(path):
        return _transformers(str(path))
    raise FileNotFoundError(
        f"No file or folder {place}. A tokenizer is a folder with tokenizer.model or tokenizer.json, or one of these "
        "files. Set model.tokenizer to it."
    )


def load_fast_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an encoder, which tells where in the text each piece stands.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it cannot tell places.
    """
    backend = load_tokenizer(path).backend
    if not getattr(backend, "is_fast", False):
        raise ValueError(
            f"The tokenizer in {path} does not tell where its pieces stand in a text. Use the one of the encoder, a "
            "folder with tokenizer.json."
        )
    return backend


def is_hub_id(path: str | Path) -> bool:
    """Whether a path that is not on this machine can be a name on the Hugging Face hub."""
    return isinstance(path, str) and HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def _sentencepiece(path: Path) -> Tokenizer:
    # A missing or empty file would give a processor that dies in C++ at its first use.
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a SentencePiece model. Llama 3 has a tokenizer of another kind under the same name: use "
            "the Hugging Face folder of the model, which has tokenizer.json, and set model.tokenizer to it."
        ) from error
    return Tokenizer(processor)


def _transformers(path: str | Path) -> Tokenizer:
    try:
        backend = AutoTokenizer.from_pretrained(path, local_files_only=isinstance(path, Path))
    except (OSError, ValueError) as error:
        if isinstance(path, Path):
            raise ValueError(f"transformers cannot read the tokenizer in {path}: {error}") from error
        raise FileNotFoundError(
            f"No folder {path}, and no tokenizer of that name could be fetched from the Hugging Face hub "
            f"({type(error).__name__}). Without a network, set model.tokenizer to a folder that holds it."
        ) from error
    return Tokenizer(backend, eos_ids=_generation_eos(path))


def _generation_eos(path: str | Path) -> list[int]:
    """The ids that end an answer according to generation_config.json beside a tokenizer, if there is one."""
    file = Path(path) / "generation_config.json"
    if not isinstance(path, Path) or not file.is_file():
        return []
    eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return []
    return eos if isinstance(eos, list) else [eos]
