"""litgpt's adapter: its own LLaMA with random weights of the same shape; no tanh on the gates.

Trained with its own chunked head and loss, padded to the longest example of a micro-batch.
"""

from importlib import import_module

import torch
from torch import Tensor

from benchmarks.shapes import MAX_POSITIONS
from benchmarks.systems.system import Batch, System, SystemUnavailableError, Workload, trainable_parameters
from llama_adapter.examples import IGNORED

HEAD_CHUNK = 128  # positions, as in litgpt's finetuning script


def system(workload: Workload) -> System:
    try:
        adapter = import_module("litgpt.adapter")
        chunked_cross_entropy = import_module("litgpt.utils").chunked_cross_entropy
    except ImportError as error:
        raise SystemUnavailableError(f"{error}. Install the extra: pip install 'llama-adapter[benchmarks]'") from error
    shape = workload.shape
    config = adapter.Config(
        block_size=MAX_POSITIONS,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.dim,
        intermediate_size=shape.feed_forward,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        adapter_prompt_length=shape.prompt_length,
        adapter_start_layer=shape.layers - shape.prompt_layers,
    )
    with torch.device(shape.device):
        model = adapter.GPT(config).to(getattr(torch, shape.dtype))
    adapter.mark_only_adapter_as_trainable(model)
    adapted = [block.attn for block in model.transformer.h if hasattr(block.attn, "adapter_wte")]

    def summed_loss(batch: Batch) -> Tensor:
        # The keys and values of the prompts are cached at the first call and never again: left in, the second step
        # trains against the first one's.
        for attention in adapted:
            attention.adapter_kv_cache = None
        logits = model(batch["input_ids"], lm_head_chunk_size=HEAD_CHUNK)
        logits[-1] = logits[-1][:, :-1]
        targets = batch["labels"][:, 1:]
        return chunked_cross_entropy(logits, targets) * (targets != IGNORED).sum()

    return System(trainable_parameters(model), workload.pad_to_longest, summed_loss)
