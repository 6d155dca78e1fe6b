"""Examples of Alpaca's lengths, with random tokens or from a real file.

Only lengths and what two prompts have in common decide how fast a step is. Both are recorded in lengths_alpaca.json:
every prompt begins with one of two templates, 29 tokens without an input and 39 with one (BOS counted), a quarter of
all tokens.
"""

import json
import random
from pathlib import Path

import torch

from llama_adapter.encoding import encode_default
from llama_adapter.examples import IGNORED, Example
from llama_adapter.tokenizer import load_tokenizer
from tasks.alpaca.prompt import TEMPLATES
from tasks.alpaca.records import read_records

LENGTHS = Path(__file__).with_name("lengths_alpaca.json")
FIRST_ID = 3  # 0, 1 and 2 are unknown, BOS and EOS


def random_examples(vocab: int, max_length: int) -> list[Example]:
    """One example of random tokens for each recorded one, with the same lengths and the same shared templates.

    Args:
        vocab: ids are below it.
        max_length: tokens of an example at most; answers are cut, and so is a prompt that leaves no room for one.
    """
    templates = json.loads(LENGTHS.read_text(encoding="utf-8"))["templates"]
    generator = torch.Generator().manual_seed(0)
    examples = []
    for template in templates.values():
        prefix = torch.randint(FIRST_ID, vocab, (template["prefix"],), generator=generator)
        for prompt_tokens, answer_tokens in template["examples"]:
            own = prompt_tokens + answer_tokens - len(prefix)
            ids = torch.cat((prefix, torch.randint(FIRST_ID, vocab, (own,), generator=generator)))[:max_length]
            examples.append(_example(ids, min(prompt_tokens, max_length - 1)))
    return examples


def real_examples(data: str, tokenizer: str, *, vocab: int, max_length: int) -> list[Example]:
    """The examples of a file of Alpaca's layout, encoded as in training.

    Args:
        data, tokenizer: paths, see `read_records` and `load_tokenizer`.
        vocab: the model's.
        max_length: tokens of an example at most.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the vocabulary is smaller than the tokenizer's, or no record has room for an answer.
    """
    encoder = load_tokenizer(tokenizer)
    if encoder.vocabulary_size > vocab:
        raise ValueError(
            f"--vocab is {vocab}, but the tokenizer in {tokenizer} has {encoder.vocabulary_size} ids. "
            f"Add --vocab {encoder.vocabulary_size}."
        )
    template = TEMPLATES["alpaca"]
    encodings = [
        encode_default(encoder, template.prompt(record), record["output"], max_length) for record in read_records(data)
    ]
    examples = [encoding.example() for encoding in encodings if encoding.trained_tokens]
    if not examples:
        raise ValueError(f"No record of {data} has room for an answer within --max-length {max_length}. Raise it.")
    return examples


def draw(examples: list[Example], *, batch: int, batches: int, seed: int) -> list[list[Example]]:
    """Batches of different examples, the same ones for the same seed.

    Raises:
        ValueError: there are not enough examples for one batch.
    """
    if batch > len(examples):
        raise ValueError(f"--batch is {batch}, but there are {len(examples)} examples. Choose 1 to {len(examples)}.")
    generator = random.Random(seed)
    return [generator.sample(examples, batch) for _ in range(batches)]


def count_tokens(examples: list[Example]) -> tuple[int, int]:
    """All tokens of the examples, and those of them that are trained."""
    return (
        sum(len(example["input_ids"]) for example in examples),
        sum(int((example["labels"] != IGNORED).sum()) for example in examples),
    )


def _example(ids: torch.Tensor, prompt_tokens: int) -> Example:
    labels = ids.clone()
    labels[:prompt_tokens] = IGNORED
    return {"input_ids": ids, "labels": labels}
