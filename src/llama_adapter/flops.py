"""Floating point operations of a training step, from shapes alone: what plans and measured utilisation are computed
from."""

from dataclasses import dataclass

from llama_adapter.architecture import Architecture


@dataclass(frozen=True)
class TrainingFlops:
    """Floating point operations of one forward and backward pass; a multiplication with its addition counts as two.

    Attributes:
        forward: of all layers, the words alone.
        backward: through the adapted layers, to their activations (and weights, where those are trained).
        prompts: their projections and the attention to them, forward and backward.
        head: forward and backward.
        recomputed: what activation checkpointing computes a second time.
        images: of the tower, forward alone.
    """

    forward: float
    backward: float
    prompts: float
    head: float
    recomputed: float = 0.0
    images: float = 0.0

    @property
    def useful(self) -> float:
        """What must be computed, however it is done: nothing counts twice."""
        return self.forward + self.backward + self.prompts + self.head + self.images

    @property
    def computed(self) -> float:
        """What the device computes."""
        return self.useful + self.recomputed


def training_flops(
    shape: Architecture,
    *,
    prompt_length: int,
    prompt_layers: int,
    tokens: float,
    attended: float,
    trained: float,
    trains: str = "adapter",
    prompt_sets: int = 1,
    activation_checkpointing: str | None = None,
) -> TrainingFlops:
    """The operations of one forward and backward pass.

    With W weights in a layer's projections, N layers and L of them adapted, a token costs 2 W N forward and 2 W L
    backward: the gradient goes through a frozen weight to its input, and the weight has none itself (a trained one
    would cost 2 more: the 6 W N of Kaplan et al., arXiv 2001.08361, Section 2.1, of which this is the frozen case).
    Below the adapted layers nothing goes backward. In the lowest adapted layer the gradient ends at the prompts: the
    words' query, key and value projections and their attention are forward only.

    The attention costs 2 D per head for a score and 2 D for its value, for every pair of a query and a key that it
    sees: 4 D H forward, twice that backward (a fused kernel computes the scores again; that counts once here). The
    prompts are K keys more for every token; in the lowest adapted layer the queries need no gradient of theirs, a
    quarter of the backward pass. The prompts also pass the key and value projections themselves, K tokens in every
    adapted layer, forward and backward.

    A language model's head is applied to the trained positions only; an encoder's, thousands of times smaller, is left
    out, as are embeddings, norms, rotations and activations.

    Activation checkpointing computes an adapted layer again, down to the last activation that its backward pass needs:
    all but the MLP's last projection (`layer`), not the attentions either (`attention`), or no product (`products`).

    Args:
        shape: of the frozen model.
        prompt_length, prompt_layers: K and L.
        tokens: that are computed, padding left out, shared prefixes once.
        attended: pairs of a query and a key that it sees, see `TokenCounts`.
        trained: response tokens.
        trains: see `AdapterConfig.trained`; a linear probe has no backward pass, full fine-tuning one through all
            layers, in which a weight costs 4, not 2.
        prompt_sets: one, or as many as examples where each has prompts of its own, with its image.
        activation_checkpointing: what of an adapted layer is kept, see `layer_modes.KEPT`; None keeps all.
    """
    width, query_width = shape.hidden_size, shape.heads * shape.head_size
    key_width = shape.key_value_heads * shape.head_size
    down = width * shape.intermediate_size
    mlp, output = shape.mlp_projections * down, query_width * width
    query_key_value = width * (query_width + 2 * key_width)
    of_pair = 4 * query_width
    of_layer = 2 * (mlp + output + query_key_value) * tokens + of_pair * attended
    forward = shape.layers * of_layer
    head = 0.0 if shape.encoder_parameters else 2.0 * trained * shape.vocabulary_size * width
    if trains == "head":
        return TrainingFlops(forward, 0.0, 0.0, 0.0)
    if trains == "all":
        backward, of_prompts, of_head, adapted = 2 * forward, 0.0, 3 * head, 0
    else:
        backward = 2 * (prompt_layers * (mlp + output) + (prompt_layers - 1) * query_key_value) * tokens
        backward += 2 * of_pair * attended * (prompt_layers - 1)
        projected = prompt_sets * 2 * prompt_length * 2 * width * key_width  # key and value, forward; as much backward
        of_prompts = (3 * prompt_layers - 0.5) * of_pair * tokens * prompt_length + 2 * prompt_layers * projected
        of_head, adapted = 2 * head, prompt_layers
    again = 0.0
    if activation_checkpointing in ("layer", "attention"):
        layers, attention = prompt_layers, of_pair * attended
        again = layers * (of_layer - attention - 2 * down * tokens)
        if adapted:
            again += layers * projected
        if activation_checkpointing == "layer":
            again += layers * (attention + (of_pair * tokens * prompt_length if adapted else 0.0))
    return TrainingFlops(float(forward), float(backward), float(of_prompts), of_head, float(again))
