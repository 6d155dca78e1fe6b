"""What tokenizers put around a pair."""

import pytest

from tasks.squad.pairs import PairTemplate
from tests.tiny_squad import bert_tokenizer, byte_tokenizer


def test_templates():
    template = PairTemplate.of(byte_tokenizer())
    assert (template.before, template.between, template.after, template.types) == ((0,), (2, 2), (2,), None)
    template = PairTemplate.of(bert_tokenizer())
    assert (template.before, template.between, template.after, template.types) == ((2,), (3,), (3,), (0, 0, 0, 1, 1))


def test_a_tokenizer_without_a_first_token():
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(
        ValueError, match=r"^The tokenizer puts no token before a pair of texts, .* as RoBERTa's or BERT's\.$"
    ):
        PairTemplate.of(tokenizer)
