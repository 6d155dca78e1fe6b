"""One entry per family of frozen models: where its attention modules are and how a prompt becomes key and value.

To add a family, add one entry to `FAMILIES`. It needs a few facts about the transformers class: the path of its list of
layers, the attention module inside a layer, the names of the key and value projections, and two tensors that tell one
set of weights from another. The attention module must call transformers' `AttentionInterface` (every current family
does). The tests of the six promises run over this table, for encoders as for decoders.
"""

from dataclasses import dataclass, replace
from operator import attrgetter

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """How to find and use the attention modules of one `config.model_type`.

    Args:
        layers: path from the base model (`model.base_model`) to its list of layers.
        attention: path from a layer to the module that calls the attention function.
        key_projection, value_projection: the frozen projections inside that module.
        sliding_window: whether every layer sees no further than `config.sliding_window`; where layers differ, their
            attention modules say it themselves.
        projection_biases: query, key and value have biases although the config has no `attention_bias` to say so.
        embeddings, norm: parameters of the base model that the fingerprint reads, a matrix by rows and a vector whole.
        encoder: every token sees all others, and what comes after the base model is a task's head, which is trained.
        head_features: vectors [C] that the head of an encoder reads.
        positions_after_padding: the first word's position is the padding id + 1, so that many positions are unused.
    """

    layers: str = "layers"
    attention: str = "self_attn"
    key_projection: str = "k_proj"
    value_projection: str = "v_proj"
    sliding_window: bool = False
    projection_biases: bool = False
    embeddings: str = "embed_tokens.weight"
    norm: str = "norm.weight"
    encoder: bool = False
    head_features: int = 1
    positions_after_padding: bool = False


TEXT_ENCODER = Family(
    layers="encoder.layer",
    attention="attention.self",
    key_projection="key",
    value_projection="value",
    embeddings="embeddings.word_embeddings.weight",
    norm="embeddings.LayerNorm.weight",
    encoder=True,
)
IMAGE_ENCODER = Family(
    attention="attention",
    embeddings="embeddings.patch_embeddings.projection.weight",
    norm="layernorm.weight",
    encoder=True,
)

FAMILIES: dict[str, Family] = {
    "llama": Family(),  # LLaMA 1, 2, 3 and all of their layout; grouped heads and RoPE scaling are in the config
    "mistral": Family(sliding_window=True),
    "qwen2": Family(projection_biases=True),  # they belong to the projection, so prompts get them too
    "bert": TEXT_ENCODER,
    "roberta": replace(TEXT_ENCODER, positions_after_padding=True),
    "vit": IMAGE_ENCODER,
    "dinov2": replace(IMAGE_ENCODER, layers="encoder.layer", head_features=2),  # class token, and mean of the patches
}


def family_of(config: PretrainedConfig) -> Family:
    """The entry for a model's config.

    Raises:
        ValueError: the family is not in the table.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise ValueError(
            f"No family for model_type {config.model_type!r}. Known: {', '.join(FAMILIES)}. "
            "Add an entry to FAMILIES in llama_adapter/backbones.py."
        ) from None


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """All layers, from the bottom up."""
    return list(attrgetter(family_of(model.config).layers)(model.base_model))


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of every layer, from the bottom up."""
    family = family_of(model.config)
    return [attrgetter(family.attention)(layer) for layer in layers_of(model)]


def attention_windows(model: PreTrainedModel) -> set[int | None]:
    """How many tokens a token sees, itself included, over all layers; None is all of them."""
    of_all = model.config.sliding_window if family_of(model.config).sliding_window else None
    return {getattr(module, "sliding_window", of_all) for module in attention_modules(model)}


def project_prompt(module: nn.Module, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value of a prompt: the frozen projections alone, no norm and no rotary embedding (as the authors do).

    Args:
        module: an attention module of a known family.
        prompt: [K, C], or [B, K, C] for prompts that differ by example, in the dtype the module computes in.

    Returns:
        key, value: [1 or B, G, K, D].
    """
    family = family_of(module.config)
    prompt = prompt if prompt.dim() == 3 else prompt[None]
    size = head_size(module)
    projections = (getattr(module, name) for name in (family.key_projection, family.value_projection))
    key, value = (projection(prompt).unflatten(-1, (-1, size)).transpose(1, 2) for projection in projections)
    return key, value


def head_size(module: nn.Module) -> int:
    """D, under either of the two names transformers gives it."""
    return module.head_dim if hasattr(module, "head_dim") else module.attention_head_size


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What an encoder has after its base model: the task's head, by name; nothing for a decoder."""
    if not family_of(model.config).encoder:
        return {}
    base = {id(parameter) for parameter in model.base_model.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in base}


def query_heads(config: PretrainedConfig) -> int:
    """H; one gate each."""
    return config.num_attention_heads
