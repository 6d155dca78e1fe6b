"""Pretrains the miniature RoBERTa by masked words.

`python -m miniature.pretrain_roberta [--steps n] [--output folder]`

It learns to read, not what there is to know: every page (`pages.py`) tells facts of its own. A masked word stands
elsewhere on its page, under the same name and attribute. In an exercise the introduction says that what the question
asks for is left out; the row shows every word, and the model says where the gap should be, as it does for the wrong
words of RoBERTa's masking. Without the introduction there is no gap: so it is up to what comes before the passage
whether the model marks the answer.

Recipe: 80/10/10 masking as RoBERTa's, but names and values are masked more often than other words, for they are what
can be found (as the salient spans of REALM, arXiv 2002.08909). Muon for the matrices of the layers, AdamW for the rest;
warm-up, constant, linear decay. Short pages first.

Two things of the start are not RoBERTa's, and without them nothing was learned in the first minutes but how often each
word occurs: position embeddings start as sines, and the heads of the first layer start with a look at the neighbours.
Both are free to change in training. Ends with accuracies, on the weights as stored (fp16).
"""

import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from miniature.byte_tokenizer import ROW_LENGTH, SPECIAL_TOKENS, byte_tokenizer
from miniature.pages import FACTS, exercises
from miniature.passages import MODIFIERS, passage, passage_names, question
from miniature.pretraining import Pretraining, pretrain, run, trapezoid, write_folder
from miniature.roberta_rows import MASK, PAD, Batches, exercise_rows, padded, piece
from miniature.world import VALUES

HERE = Path(__file__).parent
SEED = 1
STEPS = 4500
MASKED, MASKED_SALIENT = 0.2, 0.4  # shares of the words, and of names and values
WARMUP_STEPS, DECAY_SHARE = 50, 0.6
MUON_RATE, ADAMW_RATE = 0.01, 2e-3
WAVES, SHORTEST_WAVE, LONGEST_WAVE = 16, 4, 256  # in tokens
POSITION_SIZE, WORD_STD = 0.16, 0.08  # of the embeddings at the start
LOOKED_UP = 400  # questions
LOG_EVERY = 100

log = logging.getLogger(__name__)


def configuration(vocabulary_size: int) -> RobertaConfig:
    """Shape of the miniature RoBERTa: four layers, 0.8M parameters, 1.7 MB in fp16."""
    return RobertaConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=PAD + 1 + ROW_LENGTH,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.06,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        pad_token_id=PAD,
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
    )


@torch.no_grad()
def start_with_neighbours(model: RobertaForMaskedLM) -> None:
    """Position embeddings become sines and cosines; each head of the first layer looks some tokens back or ahead.

    With waves at both, turning the query by an offset makes it fit the key so many tokens away best.
    """
    embeddings = model.roberta.embeddings
    embeddings.word_embeddings.weight.normal_(std=WORD_STD)
    embeddings.token_type_embeddings.weight.zero_()
    rates = 2 * math.pi / torch.logspace(math.log10(SHORTEST_WAVE), math.log10(LONGEST_WAVE), WAVES)
    positions = embeddings.position_embeddings.weight  # [positions, C]
    angles = torch.arange(len(positions))[:, None] * rates  # [positions, WAVES]
    positions.zero_()
    positions[:, : 2 * WAVES : 2] = POSITION_SIZE * angles.sin()
    positions[:, 1 : 2 * WAVES : 2] = POSITION_SIZE * angles.cos()
    attention = model.roberta.encoder.layer[0].attention.self
    size = attention.attention_head_size
    for head, offset in zip(range(attention.num_attention_heads), (-1, 1, -2, 2), strict=True):
        rows = slice(head * size, head * size + 2 * WAVES)
        turned = torch.block_diag(*(_turn(float(rate) * offset) for rate in rates))
        attention.query.weight[rows, : 2 * WAVES] += turned
        attention.key.weight[rows, : 2 * WAVES] += torch.eye(2 * WAVES)


def _turn(angle: float) -> Tensor:
    """Takes (sin x, cos x) to (sin(x + angle), cos(x + angle)), [2, 2]."""
    return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


# --- training -------------------------------------------------------------------------------------------------------


class MaskedWords:
    """Cross entropy of masked words, and of the gaps of exercises, in nats.

    Args:
        salient: which ids are names or values, [V].
    """

    def __init__(self, salient: Tensor) -> None:
        self.salient = salient

    def __call__(self, model: RobertaForMaskedLM, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        shown, right, is_exercise = batch
        words, masked = self.mask(shown)
        trained = torch.where(is_exercise[:, None], self.salient[shown] | (shown != right), masked)  # [B, T]
        words = torch.where(is_exercise[:, None], shown, words)
        hidden = model.roberta(words, attention_mask=(shown != PAD).long()).last_hidden_state  # [B, T, C]
        return cross_entropy(model.lm_head(hidden[trained]), right[trained])

    def mask(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the model reads, and where it is asked, [B, T] each: 80 % <mask>, 10 % another word, 10 % as it was."""
        share = torch.where(self.salient[rows], MASKED_SALIENT, MASKED)
        masked = (torch.rand(rows.shape) < share) & (rows >= len(SPECIAL_TOKENS))
        fate = torch.rand(rows.shape)
        words = rows.masked_fill(masked & (fate < 0.8), MASK)
        others = torch.randint(len(SPECIAL_TOKENS), len(self.salient), rows.shape)
        return torch.where(masked & (fate >= 0.9), others, words), masked


def salient_pieces(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Which ids are names, values or their modifiers, [V]."""
    words = [word for words in (*VALUES.values(), *MODIFIERS.values()) for word in words]
    words = [*passage_names(), *(word.rstrip("-") for word in words)]
    salient = torch.zeros(len(tokenizer), dtype=torch.bool)
    salient[[piece(tokenizer, word) for word in words]] = True
    return salient


# --- accuracies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """A value of one word in a text or a pair of texts: the word that ends at `end` in the text number `part`."""

    texts: tuple[str, ...]
    part: int
    end: int
    attribute: str
    value: str

    def row(self, tokenizer: PreTrainedTokenizerFast) -> list[int]:
        """The ids with <mask> for the value. (In a text, a <mask> would have another space after it.)"""
        encoded = tokenizer(*self.texts, return_offsets_mapping=True)
        places = zip(encoded.sequence_ids(), encoded.offset_mapping, strict=True)
        ends = [end if part == self.part else 0 for part, (_, end) in places]
        ids = list(encoded.input_ids)
        ids[ends.index(self.end)] = MASK
        return ids


@torch.no_grad()
def accuracy(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, gaps: list[Gap]) -> float:
    """Share of gaps whose value is the likeliest of its attribute's eight; chance is 1/8."""
    made = [(gap, gap.row(tokenizer)) for gap in gaps]
    made = [(gap, row) for gap, row in made if len(row) <= ROW_LENGTH]
    rows = padded([row for _, row in made])
    logits = model(rows, attention_mask=(rows != PAD).long()).logits[rows == MASK]  # [gaps, V]
    right = 0
    for (gap, _), scores in zip(made, logits, strict=True):
        values = VALUES[gap.attribute]
        right += values[int(scores[[piece(tokenizer, value) for value in values]].argmax())] == gap.value
    return right / len(made)


def look_up_gaps(masked: str) -> list[Gap]:
    """A question, its answer and a passage; `masked` says where the value is: in the `answer` or in the `passage`."""
    generator, gaps = random.Random(SEED), []
    while len(gaps) < LOOKED_UP:
        read = passage(generator, passage_names(), generator.randint(*FACTS))
        fact = generator.choice(read.facts)
        asked = f"{question(generator, fact.name, fact.attribute)} {fact.value}"
        if fact.value in VALUES[fact.attribute]:
            part, end = (0, len(asked)) if masked == "answer" else (1, fact.end)
            gaps.append(Gap((f"{asked}.", read.text), part, end, fact.attribute, fact.value))
    return gaps


@torch.no_grad()
def exercise_accuracy(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of the words to leave out, in new exercises, where a gap is likelier than the word that is shown."""
    made = exercise_rows(tokenizer, [e for e in exercises(2 * LOOKED_UP, seed=SEED) if e.gap != (0, 0)])
    shown, right = padded([row[0] for row in made]), padded([row[1] for row in made])
    logits = model(shown, attention_mask=(shown != PAD).long()).logits[shown != right]  # [left out, V]
    words, gaps = shown[shown != right], right[shown != right]
    return (logits.gather(1, gaps[:, None]) > logits.gather(1, words[:, None])).float().mean().item()


def report(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Logs what the model finds in passages."""
    log.info("exercises done: %.3f", exercise_accuracy(model, tokenizer))
    for masked in ("answer", "passage"):
        log.info("looked up, masked in the %s: %.3f", masked, accuracy(model, tokenizer, look_up_gaps(masked)))


def main(steps: int, output: Path) -> None:
    """Pretrains, saves, and logs the accuracies of what was saved."""
    lightning.seed_everything(SEED)
    tokenizer = byte_tokenizer()
    model = RobertaForMaskedLM(configuration(len(tokenizer)))
    start_with_neighbours(model)
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    pretraining = Pretraining(
        model,
        MaskedWords(salient_pieces(tokenizer)),
        trapezoid(steps, warmup_steps=WARMUP_STEPS, decay_share=DECAY_SHARE),
        steps=steps,
        muon_rate=MUON_RATE,
        adamw_rate=ADAMW_RATE,
        log_every=LOG_EVERY,
    )
    pretrain(pretraining, Batches(tokenizer, steps))
    write_folder(output, [model.half().save_pretrained, tokenizer.save_pretrained])
    stored = RobertaForMaskedLM.from_pretrained(output, dtype=torch.float32).eval()
    report(stored, tokenizer)


if __name__ == "__main__":
    run(main, description=__doc__, steps=STEPS, output=HERE / "roberta")
