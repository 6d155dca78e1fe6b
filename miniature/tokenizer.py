"""The tokenizer of the miniature LLaMA: SentencePiece BPE with byte fallback and LLaMA's ids (unk 0, bos 1, eos 2)."""

import io

import sentencepiece

from miniature.phrases import INTRODUCTIONS
from miniature.text import documents

VOCABULARY_SIZE = 1152  # large enough that nearly every name is one piece
TOKENIZER_WORDS = 150_000
INTRODUCTION_REPEATS = 300  # so that the words of the template become pieces too


def tokenizer_model() -> bytes:
    """A SentencePiece BPE model with LLaMA's settings, trained on the plain text, as the bytes of its file."""
    lines = [line for document in documents(TOKENIZER_WORDS) for line in document.split("\n") if line]
    lines += INTRODUCTIONS * INTRODUCTION_REPEATS
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
