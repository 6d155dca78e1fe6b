"""What a tokenizer makes of a pair of texts, apart from the texts: so that texts tokenised once can be put together."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairTemplate:
    """What a tokenizer puts around the two texts of a pair.

    Attributes:
        before, between, after: ids, before the question, between the texts, and after the context.
        types: of a token before, of the question, between, of the context and after; None where the tokenizer tells
            none (RoBERTa).
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int] | None

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "PairTemplate":
        """Read from a pair that the tokenizer made.

        Raises:
            ValueError: nothing stands before the first text, so no position is left to mean "no answer".
        """
        encoded = tokenizer("a", "a")
        ids, owners = encoded["input_ids"], encoded.sequence_ids()
        question, context = owners.index(0), owners.index(1)
        question_end = context_end = 0
        for position, owner in enumerate(owners):
            question_end = position + 1 if owner == 0 else question_end
            context_end = position + 1 if owner == 1 else context_end
        if not question:
            raise ValueError(
                "The tokenizer puts no token before a pair of texts, but its position means that a window holds no "
                "answer. Choose an encoder's tokenizer, as RoBERTa's or BERT's."
            )
        types = None
        if "token_type_ids" in tokenizer.model_input_names:
            kinds = tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]
            types = tuple(kinds[place] for place in (0, question, question_end, context, -1))
        return cls(tuple(ids[:question]), tuple(ids[question_end:context]), tuple(ids[context_end:]), types)
