"""Puts the mechanism on a transformers model and freezes everything else.

Importing this module registers one attention function under the name `zero_init`, together with its mask function:
without the second, transformers would drop padding masks and say nothing. No class is subclassed, nothing is patched:
an adapted attention module is a frozen one that owns a submodule `adapter`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llama_adapter.backbones import attention_modules, head_parameters, layers_of, project_prompt, query_heads
from llama_adapter.fingerprint import fingerprint
from llama_adapter.flat_attention import NO_MASK, flat_attention
from llama_adapter.segment_prompts import segment_prompt_attention
from llama_adapter.sharding import gathered
from llama_adapter.zero_init import AdapterConfig, GatedPrompt, gate_value, prompt_attention, repeat_heads

ATTENTION = "zero_init"


def zero_init_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seqlens: Tensor | None = None,
    prefix: Tensor | None = None,
    prompt_context: Tensor | None = None,
    context_of: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function of every layer of an adapted model, in training and in generation alike.

    A flat row's `cu_seqlens` and `prefix` come through the model call's keywords (`flat_batches.flat_model_inputs`).
    The frozen half attends per document; the prompt half is per token as always. So does `prompt_context`, which makes
    the prompts of each example its own; documents with different prompts must not share a prefix.

    Args:
        module: the attention module that calls; it carries a prompt if it has an `adapter`.
        query: [B, H, T, D], after rotary embedding.
        key, value: [B, G, S, D], the words' (from the cache too).
        attention_mask: [B, 1, T, S] boolean, or None for plain causal attention; not read for a flat row.
        scaling: multiplies the scores; the module's own when not given.
        cu_seqlens, prefix: the segments of a flat row, see `flat_attention`; None for a batch of rows.
        prompt_context: [N, C], float32: what is added to all K prompts of an example, its projected image (Eq. 10 of
            the paper); zeros are the plain prompts. In a batch of rows N is B.
        context_of: [S] or longer, int32, on the CPU: which of the N each segment of a flat row has, -1 for none.

    Returns:
        [B, T, H, D] and None in the place of the attention weights.

    Raises:
        ValueError: the mask of a flat row without its `cu_seqlens`, or dropout in a flat row.
    """
    scaling = module.scaling if scaling is None else scaling
    if cu_seqlens is not None:
        if dropout:
            raise ValueError(
                f"A flat row has no attention dropout, but it is {dropout}. Call model.eval() or set it to 0."
            )
        window = kwargs.get("sliding_window")  # the library's mask, which NO_MASK replaces, would have had it
        output = flat_attention(query, key, value, cu_seqlens=cu_seqlens, prefix=prefix, scaling=scaling, window=window)
        weights = None
    else:
        # It would broadcast: every token would see nothing, or everything.
        if attention_mask is not None and attention_mask.shape == NO_MASK.shape and key.shape[2] > 1:
            raise ValueError(
                "The mask of a flat row came without cu_seqlens. Call the model with flat_model_inputs(batch)."
            )
        output, weights = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    adapter = getattr(module, "adapter", None)
    if adapter is None or not adapter.enabled:
        return output, weights
    if adapter.projected:
        return output + prompt_attention(query, *adapter.projected, None, scaling), weights
    prompt = with_context(adapter.prompt, prompt_context, plain_too=cu_seqlens is not None)
    prompt_key, prompt_value = project_prompt(module, prompt.to(query.dtype))
    if prompt_context is not None and cu_seqlens is not None:
        segments = {"cu_seqlens": cu_seqlens, "context_of": context_of}
        half = segment_prompt_attention(query, prompt_key, prompt_value, adapter.gate_factor(), scaling, **segments)
    else:
        half = prompt_attention(query, prompt_key, prompt_value, adapter.gate_factor(), scaling)
    return output + half, weights


def with_context(prompt: Tensor, context: Tensor | None, *, plain_too: bool = False) -> Tensor:
    """P^v = P + I of Eq. 10, for every example.

    Args:
        prompt: [K, C].
        context: [N, C], or None for the prompt as it is.
        plain_too: whether the prompt itself comes after the N, for what has no context.

    Returns:
        [N, K, C], [N + 1, K, C] or [K, C].
    """
    if context is None:
        return prompt
    prompts = prompt + context[:, None]
    return torch.cat((prompts, prompt[None])) if plain_too else prompts


AttentionInterface.register(ATTENTION, zero_init_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attach(model: PreTrainedModel, config: AdapterConfig) -> PreTrainedModel:
    """Gives the top L layers their prompts and gates and freezes all other parameters, in place.

    Prompt keys have no position, so words must have the right ones: with padding on the left, a plain forward needs
    `position_ids` counted from the mask. `generate` gives them; padding on the right needs nothing.

    Args:
        model: a transformers model of a family in `backbones.FAMILIES`, of any dtype, quantised or not.
        config: K, L and how they start.

    Returns:
        The same model. Its only trainable parameters are `...adapter.prompt` [K, C] and `...adapter.gate` [H], and the
        head of an encoder or the projection of images (`config.trained` makes it other ones).

    Raises:
        ValueError: the model has an adapter already, its family is unknown, it has fewer than L layers, or nothing that
            `config.trained` asks for.
    """
    modules = attention_modules(model)
    if adapters(model):
        raise ValueError("The model has an adapter already. Call detach(model) first.")
    if config.prompt_layers > len(modules):
        raise ValueError(
            f"adapter.prompt_layers is {config.prompt_layers}, but the model has {len(modules)} layers. "
            f"Choose 1 to {len(modules)}."
        )
    head = list(head_parameters(model).values())
    if hasattr(model, "image_prompt"):  # `vision.attach_images`: its projection is trained with the prompts
        head += model.image_prompt.parameters()
    if config.trained == "head" and not head:
        raise ValueError("adapter.trained is head, but this model has no head of its own to train. Set it to adapter.")
    if config.trained == "all" and model.dtype != torch.float32:
        raise ValueError(
            f"adapter.trained is all, but the weights are {model.dtype}, in which small steps are lost. Set "
            "model.dtype=float32."
        )
    if config.trained == "all":
        model.backbone_fingerprint = fingerprint(model)  # of what it starts from: the weights themselves will move
    model.requires_grad_(config.trained == "all")
    for parameter in head:
        parameter.requires_grad_(True)
    model.set_attn_implementation(ATTENTION)
    for module in modules[-config.prompt_layers :]:
        module.adapter = GatedPrompt(
            config,
            hidden_size=model.config.hidden_size,
            heads=query_heads(model.config),
            device=device_of_trained(module),
        ).requires_grad_(config.trained == "adapter")
    return model


def device_of_trained(module: nn.Module) -> torch.device:
    """Where what is trained beside a frozen module is made: with it, or on the CPU before it has its weights."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Removes the adapter: the bare frozen model again, ready for another one."""
    for module in attention_modules(model):
        if hasattr(module, "adapter"):
            del module.adapter
    model.set_attn_implementation("sdpa")
    return model


def adapters(model: PreTrainedModel) -> dict[int, GatedPrompt]:
    """Prompts and gates by layer index, from the lowest adapted layer up; empty for a bare model."""
    modules = attention_modules(model)
    return {layer: module.adapter for layer, module in enumerate(modules) if hasattr(module, "adapter")}


def trained_of(model: PreTrainedModel) -> str:
    """What of an attached model is trained, as `AdapterConfig.trained` says it."""
    if next(iter(adapters(model).values())).prompt.requires_grad:
        return "adapter"
    return "all" if next(model.base_model.parameters()).requires_grad else "head"


@contextmanager
def adapter_disabled(model: PreTrainedModel) -> Iterator[None]:
    """The frozen model, for as long as the context lasts."""
    attached = adapters(model).values()
    before = [adapter.enabled for adapter in attached]
    for adapter in attached:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter, enabled in zip(attached, before, strict=True):
            adapter.enabled = enabled


@torch.no_grad()
def projected_prompts(model: PreTrainedModel, context: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Key and gated value of the prompts of each adapted layer, [N or 1, H, K, D] each.

    Args:
        model: from `attach`.
        context: [N, C], see `zero_init_attention`.
    """
    dtype, states = model.get_input_embeddings().weight.dtype, []
    for layer, module in zip(layers_of(model), attention_modules(model), strict=True):
        if hasattr(module, "adapter"):
            with gathered(layer):
                key, value = project_prompt(module, with_context(module.adapter.prompt, context).to(dtype))
            gate_factor = module.adapter.gate_factor()
            states.append((repeat_heads(key, len(gate_factor)), gate_value(value, gate_factor)))
    return states


@contextmanager
def prompts_projected(model: PreTrainedModel, context: Tensor | None = None) -> Iterator[None]:
    """Projects and gates every prompt once, for a generation of many steps. No gradient reaches prompts and gates.

    With a context each row of a batch has prompts of its own. The projections are dropped on leaving: kept across an
    optimizer step they would be stale, and nothing would say so.
    """
    attached = list(adapters(model).values())
    try:
        for adapter, states in zip(attached, projected_prompts(model, context), strict=True):
            adapter.projected = states
        yield
    finally:
        for adapter in attached:
            adapter.projected = None
