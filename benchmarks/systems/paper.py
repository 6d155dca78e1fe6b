"""LLaMA-Adapter as the paper writes it down: Eq. 1-8 of arXiv 2303.16199, in plain PyTorch, padded to a fixed length.

The reference of the comparison, in speed as in numbers. Prompts and words are one concatenated row of keys, the scores
are one matrix that is split for two softmaxes, logits are computed at every position. It reads the weights, prompts and
gates of an adapted transformers model (rotary embedding in the half-split order of that layout) and calls none of its
code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.systems.system import Batch, System, Workload, trainable_parameters
from llama_adapter.examples import IGNORED

ROPE_BASE = 10000.0

Cache = list[tuple[Tensor, Tensor]]  # key and value of the words so far, [B, H, S, D] each, by layer


def system(workload: Workload) -> System:
    model = workload.adapted
    return System(trainable_parameters(model), workload.pad_to_max, lambda batch: summed_loss(model, batch))


def compiled_system(workload: Workload) -> System:
    """The same, compiled as a whole: every batch has one shape."""
    model = workload.adapted
    loss = torch.compile(lambda batch: summed_loss(model, batch), fullgraph=True)
    return System(trainable_parameters(model), workload.pad_to_max, loss)


def summed_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Cross entropy over the labels that are not -100, with the logits of every position."""
    input_ids, labels = batch["input_ids"], batch["labels"]  # [B, T] each
    length = input_ids.shape[1]
    positions = torch.arange(length, device=input_ids.device)
    mask = torch.full((length, length), -math.inf, device=input_ids.device).triu(1)
    logits, _ = forward(model, input_ids, positions[None], mask)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def forward(
    model: PreTrainedModel, input_ids: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None
) -> tuple[Tensor, Cache]:
    """Logits [B, T, vocabulary], and the cache with these tokens.

    Args:
        model: a LLaMA, adapted.
        input_ids: [B, T].
        positions: [B or 1, T].
        mask: added to the scores of the words, [..., T, S].
        cache: of the tokens before.
    """
    rotation = rotary_tables(positions, model.config.hidden_size // model.config.num_attention_heads)
    hidden = model.model.embed_tokens(input_ids)  # [B, T, C]
    mask = mask.to(hidden.dtype)
    grown: Cache = []
    for index, layer in enumerate(model.model.layers):
        normed = rms_norm(hidden, layer.input_layernorm)
        attended, keys_and_values = attention(layer.self_attn, normed, rotation, mask, cache[index] if cache else None)
        grown.append(keys_and_values)
        hidden = hidden + attended
        normed = rms_norm(hidden, layer.post_attention_layernorm)
        gated = F.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
        hidden = hidden + layer.mlp.down_proj(gated)
    return model.lm_head(rms_norm(hidden, model.model.norm)), grown


def attention(
    module: nn.Module,
    hidden: Tensor,
    rotation: tuple[Tensor, Tensor],
    mask: Tensor,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Eq. 2-8 for one layer: hidden [B, T, C] to [B, T, C], and its keys and values of the words."""
    size = module.head_dim
    query = rotate(split_heads(module.q_proj(hidden), size), rotation)  # [B, H, T, D]
    key = rotate(split_heads(module.k_proj(hidden), size), rotation)
    value = split_heads(module.v_proj(hidden), size)
    if past is not None:
        key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
    words = key, value
    adapter = getattr(module, "adapter", None)
    if adapter is None:
        scores = query @ key.transpose(2, 3) / math.sqrt(size) + mask
        weights = softmax(scores)  # [B, H, T, S]
    else:
        prompt = adapter.prompt.to(hidden.dtype)[None]
        length = prompt.shape[1]
        prompt_key, prompt_value = (
            split_heads(projection(prompt), size).expand(len(hidden), -1, -1, -1)
            for projection in (module.k_proj, module.v_proj)
        )
        key = torch.cat((prompt_key, key), dim=2)  # Eq. 3: W_k [P; T; t]
        value = torch.cat((prompt_value, value), dim=2)  # Eq. 4
        scores = query @ key.transpose(2, 3) / math.sqrt(size)  # Eq. 5, [B, H, T, K + S]
        scores = scores + F.pad(mask, (length, 0))
        of_prompt, of_words = softmax(scores[..., :length]), softmax(scores[..., length:])  # Eq. 6
        gate = adapter.gate.tanh()[:, None, None].to(hidden.dtype)
        weights = torch.cat((of_prompt * gate, of_words), dim=-1)  # Eq. 7
    return module.o_proj((weights @ value).transpose(1, 2).flatten(2)), words  # Eq. 8


def softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


def split_heads(states: Tensor, size: int) -> Tensor:
    """[B, T, C] to [B, H, T, D]."""
    return states.unflatten(-1, (-1, size)).transpose(1, 2)


def rms_norm(hidden: Tensor, norm: nn.Module) -> Tensor:
    wide = hidden.float()
    return norm.weight * (wide * (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()).to(
        hidden.dtype
    )


def rotary_tables(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [B or 1, 1, T, D / 2] each."""
    frequencies = ROPE_BASE ** (-torch.arange(0, size, 2, device=positions.device) / size)
    angles = positions[:, None, :, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (table.to(states.dtype) for table in rotation)
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


@torch.no_grad()
def generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, pad_id: int, max_new_tokens: int) -> list:
    """Greedy new ids for each prompt, without an end: left-padded, with a cache of the words, prompts projected anew
    for every token, as the authors' inference code does."""
    longest = max(map(len, prompts))
    device = model.device
    input_ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    columns = torch.arange(longest + max_new_tokens, device=device)
    padding = columns < (longest - lengths)[:, None]  # [B, S]
    # A row of padding sees itself, or its softmax would divide by nothing.
    hidden_keys = (padding[:, None] & (columns[:, None] != columns)) | (columns > columns[:, None])
    mask = torch.zeros(hidden_keys.shape, device=device).masked_fill_(hidden_keys, -math.inf)[:, None]
    positions = (columns - (longest - lengths)[:, None]).clamp(min=0)  # [B, S]
    cache, start, new_ids = None, 0, []
    for end in range(longest, longest + max_new_tokens):
        logits, cache = forward(model, input_ids, positions[:, start:end], mask[:, :, start:end, :end], cache)
        input_ids = logits[:, -1:].argmax(-1)  # [B, 1]
        new_ids.append(input_ids)
        start = end
    return torch.cat(new_ids, dim=1).tolist()
