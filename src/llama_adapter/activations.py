"""What one layer keeps for its backward pass and what passes through it, in bytes per token, from shapes alone."""

from dataclasses import dataclass

from llama_adapter.architecture import Architecture

ACTIVATION_CHECKPOINTING = ("layer", "attention", "products")  # what is kept of a layer, see layer_modes.KEPT


@dataclass(frozen=True)
class LayerMemory:
    """Bytes per token of one adapted layer.

    Derived from transformers' layers and checked with torch's saved tensors and memory profiler. A frozen projection
    keeps nothing, since the gradient to its input needs the weight alone; a trained one keeps its input. A decoder's
    norms compute in float32 and keep their input in it, its MLP keeps gate, activation and up. An encoder's norms keep
    their input as it is, its MLP the input of the activation. The attention keeps query, key, value, both halves'
    outputs and a float32 log-sum-exp of each.
    """

    upper: float  # kept where the input has a gradient
    lowest: float  # kept in the lowest adapted layer, where only the prompts have one
    forward: float  # held for a moment while the layer computes
    backward: float  # held for a moment in its backward pass: the MLP's gradients, and that of the residual stream
    inputs: float  # the layer's own input, which checkpointing keeps
    attention: float  # outputs of both attentions with their log-sum-exps
    products: float  # outputs of all matrix products
    repeated: float  # computed again where the products are kept

    @classmethod
    def of(cls, shape: Architecture, size: int, trained: str) -> "LayerMemory":
        width, mlp = size * shape.hidden_size, size * shape.intermediate_size
        query, key = size * shape.heads * shape.head_size, size * shape.key_value_heads * shape.head_size
        log_sums = 2 * 4 * shape.heads
        if shape.encoder_parameters:
            norm, of_mlp, gradients = width, mlp, 2 * mlp
            repeated, trained_inputs = width, 2 * width + query + mlp
        else:
            norm, of_mlp, gradients = 4 * shape.hidden_size, 3 * mlp, 3 * mlp
            # Activation and norms; the outputs that they were made of are dropped. In float32 a norm's input is the
            # residual stream itself.
            repeated = mlp + 2 * norm - width - (width if size == 4 else 0)
            trained_inputs = 4 * width + query + mlp
        upper = 2 * norm + of_mlp + 3 * query + 2 * key + log_sums
        return cls(
            upper=upper + (trained_inputs if trained == "all" else 0),
            lowest=norm + of_mlp + 2 * query + log_sums / 2 + (norm if shape.encoder_parameters else 0),
            forward=2 * (mlp + width),
            backward=gradients + width,
            inputs=width,
            attention=2 * query + log_sums,
            products=query + 2 * key + 2 * width + mlp * (shape.mlp_projections - 1),
            repeated=repeated,
        )


def kept_and_passing(
    shape: Architecture, layer: LayerMemory, prompt_layers: int, trained: str, checkpointing: str | None, size: int
) -> tuple[float, float]:
    """Bytes per token that are kept, and that pass through one layer at a time.

    The last norm of a decoder keeps its input in float32, an encoder's head or last norm its own; both are gone before
    the first layer goes backward.
    """
    last = (size if shape.encoder_parameters else 4) * shape.hidden_size
    if checkpointing is None:
        layers = layer.lowest + (prompt_layers - 1) * layer.upper
        if trained == "all":
            layers = shape.layers * layer.upper
        return layers + last, layer.backward - last
    kept = {
        "layer": layer.inputs,
        "attention": layer.inputs + layer.attention,
        "products": layer.inputs + layer.attention + layer.products,
    }[checkpointing]
    below = (shape.layers - prompt_layers) * layer.upper if trained == "all" else 0.0
    # A float32 decoder's first norm, and an encoder's in front, keep the very input that is kept already.
    shared = layer.inputs if size == 4 and not shape.encoder_parameters else 0.0
    again = {
        "layer": layer.upper - shared,
        "attention": layer.upper - shared - layer.attention,
        "products": layer.repeated,
    }[checkpointing]
    return prompt_layers * kept + below + last, again + layer.backward - last
