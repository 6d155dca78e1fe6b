"""The tokenizer of the miniature RoBERTa: byte-level BPE with RoBERTa's special tokens and pair form.

A text begins like a word in its middle (`add_prefix_space`), so that a name has one id wherever it stands.
"""

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer
from transformers import RobertaTokenizerFast

from miniature.pages import GAP, INTRODUCTIONS, pages
from miniature.passages import passage_names

ROW_LENGTH = 128  # tokens, the longest row that the model takes
VOCABULARY_SIZE = 1024  # large enough that every name is one piece
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4; RoBERTa's has <mask> at the end
TOKENIZER_WORDS = 120_000
REPEATS = 300  # so that names, and the words of introductions, become pieces first


def byte_tokenizer() -> RobertaTokenizerFast:
    """Trained on pages about passages."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, lstrip=token == "<mask>", special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    parts = [part for page in pages(TOKENIZER_WORDS) for part in page]
    tokenizer.train_from_iterator([*parts, *[*passage_names(), *INTRODUCTIONS, GAP] * REPEATS], trainer)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
    return RobertaTokenizerFast(tokenizer_object=tokenizer, add_prefix_space=True, model_max_length=ROW_LENGTH)
