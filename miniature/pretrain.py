"""Pretrains the miniature LLaMA on the plain text: `python -m miniature.pretrain [--steps n] [--output folder]`.

Recipe: Muon for the matrices of the layers, AdamW for embeddings, head and norms; warm-up, constant, linear decay.
For the first fifth the text is only about 16 things: the circuits that look up a fact form there in a minute and
carry over to all things; in an earlier world, all things from the start were still being guessed after six minutes.
Ends with a cloze test over every fact of every thing, on the weights as stored (fp16).
"""

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from miniature.phrases import STEMS
from miniature.pretraining import Pretraining, pretrain, run, trapezoid, write_folder
from miniature.text import documents
from miniature.tokenizer import tokenizer_model
from miniature.world import ATTRIBUTES, SPLIT_SIZES, VALUES, things, things_of

HERE = Path(__file__).parent
SEED = 1
STEPS = 1200
ROW_LENGTH = 320  # long enough for a prompt with three worked examples
ROWS = 6  # per step
CURRICULUM_THINGS, CURRICULUM_SHARE, CURRICULUM_WORDS = 16, 0.2, 100_000
WARMUP_STEPS, DECAY_SHARE = 50, 0.6
LOG_EVERY = 100
MUON_RATE, ADAMW_RATE = 0.015, 5e-3

log = logging.getLogger(__name__)


def configuration(vocabulary_size: int) -> LlamaConfig:
    """Shape of the miniature LLaMA: five layers, 2.7M parameters, 5.3 MB in fp16."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def packed_rows(texts: list[str], tokenizer: SentencePieceProcessor, seed: int) -> Tensor:
    """Documents in random order, each with BOS and EOS, end to end, cut into rows: [rows, ROW_LENGTH]."""
    encoded = tokenizer.encode(texts, add_bos=True, add_eos=True)
    random.Random(seed).shuffle(encoded)
    flat = torch.tensor([token for document in encoded for token in document])
    rows = flat.numel() // ROW_LENGTH
    return flat[: rows * ROW_LENGTH].reshape(rows, ROW_LENGTH)


class CurriculumBatches(IterableDataset):
    """Batches of packed rows, [ROWS, ROW_LENGTH] each: first about 16 things, then about all."""

    def __init__(self, tokenizer: SentencePieceProcessor, steps: int) -> None:
        self.tokenizer, self.steps = tokenizer, steps
        self.texts_of_few = documents(CURRICULUM_WORDS, things()[:CURRICULUM_THINGS])
        self.texts = documents()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        few_steps = round(self.steps * CURRICULUM_SHARE)
        few, every = self.batches(self.texts_of_few), self.batches(self.texts)
        for step in range(self.steps):
            yield next(few if step < few_steps else every)

    def batches(self, texts: list[str]) -> Iterator[Tensor]:
        epoch = 0
        while True:
            yield from packed_rows(texts, self.tokenizer, epoch).split(ROWS)
            epoch += 1


def next_token_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Cross entropy of every token but the first of each row, in nats."""
    logits = model(rows[:, :-1], use_cache=False).logits  # [B, T, V]
    return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def cloze_accuracy(model: LlamaForCausalLM, tokenizer: SentencePieceProcessor) -> dict[str, dict[str, float]]:
    """Share of facts whose value is the likeliest of its attribute's eight after a sentence's start; chance is 1/8."""
    result: dict[str, dict[str, float]] = {}
    for split in SPLIT_SIZES:
        for attribute in ATTRIBUTES:
            stem, values = STEMS[attribute], VALUES[attribute]
            pieces = [tokenizer.encode(value)[0] for value in values]
            right = 0
            for thing in things_of(split):
                prompt = torch.tensor([[1, *tokenizer.encode(stem.format(n=thing.name))]])  # [1, T]
                right += values[int(model(prompt).logits[0, -1, pieces].argmax())] == thing.value(attribute)
            result.setdefault(split, {})[attribute] = right / SPLIT_SIZES[split]
    return result


def main(steps: int, output: Path) -> None:
    """Pretrains, saves, and logs the cloze accuracy of what was saved."""
    lightning.seed_everything(SEED)
    tokenizer = SentencePieceProcessor(model_proto=tokenizer_model())
    model = LlamaForCausalLM(configuration(tokenizer.vocab_size()))
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    rate = trapezoid(steps, warmup_steps=WARMUP_STEPS, decay_share=DECAY_SHARE)
    rates = {"muon_rate": MUON_RATE, "adamw_rate": ADAMW_RATE}
    pretraining = Pretraining(model, next_token_loss, rate, steps=steps, log_every=LOG_EVERY, **rates)
    pretrain(pretraining, CurriculumBatches(tokenizer, steps))
    generation = GenerationConfig(bos_token_id=1, eos_token_id=2, do_sample=False)
    pieces = tokenizer.serialized_model_proto()
    write_folder(
        output,
        [
            model.half().save_pretrained,
            generation.save_pretrained,
            lambda folder: (folder / "tokenizer.model").write_bytes(pieces),
        ],
    )
    stored = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    for split, accuracies in cloze_accuracy(stored, tokenizer).items():
        log.info("cloze %s: %s", split, ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))


if __name__ == "__main__":
    run(main, description=__doc__, steps=STEPS, output=HERE / "llama")
