"""A training step of a RoBERTa with prompts: rows padded to the limit, to the longest, and in batches of one length.

    python -m benchmarks.encoders                                  # dim 256, 6 layers, K 10, L 4, batches of 16
    python -m benchmarks.encoders --layers 24 --hidden-size 1024 --device cuda

Every round takes the same windows, of SQuAD's lengths (`lengths_squad.json`), in `--batches` batches. What differs is
how they are put into batches, how far rows are padded, and in the last system whether the frozen layers below the
adapted ones run with autograd, as they do where prompts enter at the embeddings.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, RobertaConfig, RobertaForQuestionAnswering

from benchmarks.interleaved import interleave, report
from llama_adapter.attach import attach
from llama_adapter.examples import Example
from llama_adapter.heads import span_loss
from llama_adapter.length_order import LengthOrder
from llama_adapter.zero_init import AdapterConfig
from tasks.squad.data import SpanCollator

LENGTHS = Path(__file__).with_name("lengths_squad.json")
FIRST_ID = 4  # below are the ids of special tokens
PAD_ID = 1
Batch = dict[str, torch.Tensor]


def windows(vocab: int) -> list[Example]:
    """Random tokens in windows of recorded lengths, each with an answer somewhere."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for length in json.loads(LENGTHS.read_text(encoding="utf-8"))["lengths"]:
        ids = torch.randint(FIRST_ID, vocab, (length,), generator=generator)
        place = torch.randint(length, (), generator=generator)
        examples.append({"input_ids": ids, "start_positions": place, "end_positions": place})
    return examples


def batched(examples: Sequence[Example], order: Sequence[int], size: int) -> list[Batch]:
    """Padded to the longest window of each batch."""
    collate = SpanCollator(PAD_ID)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [collate([examples[index] for index in part]) for part in parts]


def padded(batch: Batch, length: int) -> Batch:
    """With rows of a given length."""
    missing = length - batch["input_ids"].shape[1]
    rows = {"input_ids": PAD_ID, "attention_mask": 0}
    return batch | {key: torch.nn.functional.pad(batch[key], (0, missing), value=fill) for key, fill in rows.items()}


def pass_over(model: PreTrainedModel, batches: Sequence[Batch], device: str, *, everywhere: bool) -> Callable[[], None]:
    """Forward and backward pass of every batch; the optimizer of a million parameters takes no time beside it."""
    batches = [{key: value.to(device) for key, value in batch.items() if key != "counts"} for batch in batches]

    def run() -> None:
        hook = None
        if everywhere:
            embeddings = model.base_model.embeddings
            hook = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
        for batch in batches:
            span_loss(model, batch)[0].backward()
        if hook is not None:
            hook.remove()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return run


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the benchmark; returns each system's speed relative to rows padded to the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompt-layers", type=int, default=4, help="L, adapted layers")
    parser.add_argument("--prompt-length", type=int, default=10, help="K, prompt tokens per adapted layer")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--max-length", type=int, default=384, help="that the first system pads to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=2048)
    options = parser.parse_args(arguments)

    config = RobertaConfig(
        vocab_size=options.vocab, hidden_size=options.hidden_size, intermediate_size=4 * options.hidden_size,
        num_hidden_layers=options.layers, num_attention_heads=max(1, options.hidden_size // 64),
        max_position_embeddings=options.max_length + PAD_ID + 1, type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = RobertaForQuestionAnswering(config).eval().to(options.device)
    attach(model, AdapterConfig(options.prompt_length, options.prompt_layers, gate_init="random"))
    examples = windows(options.vocab)
    order = LengthOrder(
        [len(example["input_ids"]) for example in examples], global_batch_size=options.batch_size, shuffle=True
    )
    # The first batches of an epoch, and the same windows in a random order.
    chosen = list(order)[: options.batch_size * options.batches]
    shuffled = [chosen[index] for index in torch.randperm(len(chosen)).tolist()]
    lengths = [len(examples[index]["input_ids"]) for index in chosen]
    random = batched(examples, shuffled, options.batch_size)
    bucketed = batched(examples, chosen, options.batch_size)
    systems = {
        "padded_to_limit": [padded(batch, options.max_length) for batch in random],
        "padded_to_longest": random,
        "by_length": bucketed,
        "by_length_autograd_everywhere": bucketed,
    }
    seconds = interleave(
        {
            name: pass_over(model, batches, options.device, everywhere=name.endswith("everywhere"))
            for name, batches in systems.items()
        },
        options.rounds,
    )
    shares = {
        name: sum(lengths) / sum(batch["input_ids"].numel() for batch in batches) for name, batches in systems.items()
    }
    return report(seconds, tokens=sum(lengths), baseline="padded_to_limit", useful_share=shares, **vars(options))


if __name__ == "__main__":
    main()
