"""Pretrains the miniature LLaMA on the plain text: `python -m miniature.pretrain [--steps n] [--output folder]`.

Recipe: Muon for the matrices of the layers, AdamW for embeddings, head and norms; warm-up, constant, linear decay.
For the first fifth the text is only about 16 things: the circuits that look up a fact form there in a minute and
carry over to all things; in an earlier world, all things from the start were still being guessed after six minutes.
Ends with a cloze test over every fact of every thing, on the weights as stored (fp16).
"""

import argparse
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from miniature.phrases import STEMS
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


class Pretraining(lightning.LightningModule):
    """Next-token loss with two optimizers, stepped by hand."""

    def __init__(self, model: LlamaForCausalLM, steps: int) -> None:
        super().__init__()
        self.model, self.steps = model, steps
        self.automatic_optimization = False

    def training_step(self, rows: Tensor, step: int) -> None:
        logits = self.model(rows[:, :-1], use_cache=False).logits  # [B, T, V]
        loss = cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        self.log("loss", loss, prog_bar=True)
        if step % LOG_EVERY == 0:  # a progress bar says nothing in a file
            log.info("step %d of %d: loss %.3f", step, self.steps, loss)

    def configure_optimizers(self) -> tuple[list, list]:
        matrices = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        chosen = set(matrices)
        rest = [p for p in self.model.parameters() if p not in chosen]
        optimizers = [
            torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="original"),
            torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate) for optimizer in optimizers]

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay over the last DECAY_SHARE."""
        decay = (self.steps - step) / (self.steps * DECAY_SHARE)
        return min(1.0, (step + 1) / WARMUP_STEPS, max(decay, 0.0))


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


def save(model: LlamaForCausalLM, tokenizer: SentencePieceProcessor, output: Path) -> None:
    """Writes weights, configurations and tokenizer in the Hugging Face layout, each renamed into place."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        model.save_pretrained(temporary)
        GenerationConfig(bos_token_id=1, eos_token_id=2, do_sample=False).save_pretrained(temporary)
        Path(temporary, "tokenizer.model").write_bytes(tokenizer.serialized_model_proto())
        for path in sorted(Path(temporary).iterdir()):
            path.chmod(0o644)
            os.replace(path, output / path.name)


def main(steps: int, output: Path) -> None:
    """Pretrains, saves, and logs the cloze accuracy of what was saved."""
    lightning.seed_everything(SEED)
    tokenizer = SentencePieceProcessor(model_proto=tokenizer_model())
    model = LlamaForCausalLM(configuration(tokenizer.vocab_size()))
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    trainer = lightning.Trainer(
        max_steps=2 * steps,  # Lightning counts the steps of both optimizers
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    batches = DataLoader(CurriculumBatches(tokenizer, steps), batch_size=None)
    trainer.fit(Pretraining(model, steps), batches)
    save(model.half(), tokenizer, output)
    stored = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    for split, accuracies in cloze_accuracy(stored, tokenizer).items():
        log.info("cloze %s: %s", split, ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"optimizer steps (default {STEPS}; fewer for a quick look)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "llama", help="folder to write the weights to")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
