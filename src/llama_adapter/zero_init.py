"""Zero-initialised attention: the equation and its parameters. Tensors in, tensors out.

LLaMA-Adapter (arXiv 2303.16199), Eq. 1-8. Every adapted layer owns K learnable prompts P_l; its tokens attend to them
through the layer's own frozen key and value projections, in a softmax of their own, scaled per head by tanh(g_l).

Departure from the paper: Eq. 4-7 write one concatenated score matrix that is split again. Two attention outputs that
are added are the same numbers (Eq. 8 is linear in the values), keep the fused kernel for the frozen half and need no
mask; and a gate on the prompts' values is the same number as a gate on their weights.
The first print of the paper (v1) has no tanh; its third version and the training code do, so `tanh` is the default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

GATE_ACTIVATIONS = ("tanh", "identity")
GATE_INITS = ("zero", "random")
TRAINED = ("adapter", "head", "all")


@dataclass
class AdapterConfig:
    """Shape and start of an adapter.

    Args:
        prompt_length: K, prompt tokens per adapted layer (paper: 10).
        prompt_layers: L, adapted layers, counted from the top (paper: 30 of LLaMA-7B's 32).
        gate_activation: `tanh` (Eq. 7), or `identity` as in the first print and the authors' inference code.
        gate_init: `zero` leaves the frozen model untouched at the start; `random`, N(0, 1), is the paper's ablation.
        prompt_init_std: standard deviation of the prompts at the start (authors' code: 1).
        trained: `adapter`: prompts and gates, and the task's head or projection of images where it has one. For
            comparison, `head`: that head alone, a linear probe; `all`: the head and every weight of the frozen model,
            full fine-tuning. In both the gates stay at zero, so the prompts do nothing.
    """

    prompt_length: int = 10
    prompt_layers: int = 30
    gate_activation: str = "tanh"
    gate_init: str = "zero"
    prompt_init_std: float = 1.0
    trained: str = "adapter"

    def __post_init__(self) -> None:
        for key in ("prompt_length", "prompt_layers"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"adapter.{key} must be a whole number, got {value!r}.")
            if value < 1:
                raise ValueError(f"adapter.{key} must be at least 1, got {value}.")
        if self.gate_activation not in GATE_ACTIVATIONS:
            raise ValueError(
                f"adapter.gate_activation is {self.gate_activation!r}. Choose {' or '.join(GATE_ACTIVATIONS)}."
            )
        if self.gate_init not in GATE_INITS:
            raise ValueError(f"adapter.gate_init is {self.gate_init!r}. Choose {' or '.join(GATE_INITS)}.")
        if self.trained not in TRAINED:
            raise ValueError(f"adapter.trained is {self.trained!r}. Choose {', '.join(TRAINED)}.")
        if self.trained != "adapter" and self.gate_init != "zero":
            raise ValueError(
                f"adapter.trained={self.trained} leaves the gates where they start, but adapter.gate_init is "
                f"{self.gate_init}. Set it to zero."
            )
        if not 0 <= self.prompt_init_std < float("inf"):
            raise ValueError(
                f"adapter.prompt_init_std must be a finite number of at least 0, got {self.prompt_init_std}."
            )


class GatedPrompt(nn.Module):
    """The prompts and the gate of one adapted layer: P_l of Eq. 1 and g_l of Eq. 7, both always in float32.

    Args:
        config: shape and start.
        hidden_size: C, the width of the layer's input.
        heads: H, query heads; each has its own gate.
        device: where the parameters are made.

    Attributes:
        prompt: [K, C].
        gate: [H], before its activation.
        enabled: when False the layer computes exactly what the frozen model computes.
        projected: the prompt's key and gated value, [1, H, K, D] each, while generation holds them; else None.
    """

    def __init__(
        self, config: AdapterConfig, *, hidden_size: int, heads: int, device: torch.device | None = None
    ) -> None:
        super().__init__()
        options = {"dtype": torch.float32, "device": device}
        self.prompt = nn.Parameter(torch.empty(config.prompt_length, hidden_size, **options))
        self.gate = nn.Parameter(torch.empty(heads, **options))
        nn.init.normal_(self.prompt, std=config.prompt_init_std)
        if config.gate_init == "random":
            nn.init.normal_(self.gate)
        else:
            nn.init.zeros_(self.gate)
        self.gate_activation = config.gate_activation
        self.enabled = True
        self.projected: tuple[Tensor, Tensor] | None = None

    def gate_factor(self) -> Tensor:
        """What the prompt half is multiplied with: tanh(g) or g, [H], float32."""
        return self.gate.tanh() if self.gate_activation == "tanh" else self.gate

    def extra_repr(self) -> str:
        length, width = self.prompt.shape
        return f"prompt_length={length}, hidden_size={width}, heads={len(self.gate)}, gate={self.gate_activation}"


def repeat_heads(states: Tensor, heads: int) -> Tensor:
    """[B, G, K, D] to [B, heads, K, D]: each group once per query head that shares it."""
    groups = states.shape[1]
    return states if groups == heads else states.repeat_interleave(heads // groups, dim=1)


def gate_value(value: Tensor, gate_factor: Tensor) -> Tensor:
    """The prompts' value times the gate of each query head: Eq. 7's factor, moved past the sum over the prompts.

    Args:
        value: [B or 1, G, K, D].
        gate_factor: [H], after its activation, float32. H is a multiple of G.

    Returns:
        [B or 1, H, K, D], in the value's dtype.
    """
    # float32 until the product is there: a bfloat16 gate would lose steps of the optimizer.
    return (repeat_heads(value, len(gate_factor)) * gate_factor[:, None, None]).to(value.dtype)


def prompt_attention(query: Tensor, key: Tensor, value: Tensor, gate_factor: Tensor | None, scaling: float) -> Tensor:
    """Attention over the prompts alone, scaled by the gate; added to the frozen attention output.

    LLaMA-Adapter (arXiv 2303.16199), Eq. 7: the prompts have their own softmax, so a zero gate removes them exactly and
    the frozen model is untouched at the first step. Eq. 7 scales the weights and we scale the values: the same number,
    for K values instead of T x K weights, and a fused kernel does the rest.

    Args:
        query: [B, H, T, D], after rotary embedding.
        key, value: [B or 1, G, K, D], from the prompt, without rotary embedding. H is a multiple of G.
        gate_factor: [H], after its activation, float32; None if the value comes from `gate_value`.
        scaling: multiplies the scores, usually D ** -0.5.

    Returns:
        [B, T, H, D], the layout attention functions return, in the query's dtype.
    """
    batch, heads = query.shape[:2]
    value = value if gate_factor is None else gate_value(value, gate_factor)  # [B or 1, H, K, D]
    key, value = (repeat_heads(states, heads).expand(batch, -1, -1, -1) for states in (key, value))
    return scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)
