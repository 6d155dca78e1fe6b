"""The memory of a training step on one device, from shapes alone: the most that its tensors need at once.

`python -m benchmarks.plan_memory` compares it with measured peaks. What an allocator wastes between tensors and what
libraries keep for themselves (a CUDA context, hundreds of MB) come on top.
"""

from dataclasses import dataclass

from llama_adapter.activations import LayerMemory, kept_and_passing
from llama_adapter.architecture import DTYPE_BYTES, QUANTIZED_BYTES, Architecture, VisionConfig

GIB = 2**30
CHUNK_BYTES = 32 * 2**20  # of float32 logits in a flat batch, see head_loss.CHUNK_BYTES
ANSWER_SHARE = 0.5  # of an example's tokens that are trained, more or less (Alpaca with its template: 0.46)
OPTIMIZER_BYTES = 16  # a float32 value, its gradient and AdamW's two moments


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 divides the frozen weights, see `sharding.shard`.

    Attributes:
        devices: that share one copy of the weights.
        reshard_after_forward: whether a layer is dropped after its forward pass.
        prefetch_layers: layers that are gathered ahead.
        across_nodes: whether the copy is shared by all machines.
        gloo: whether gloo gathers (on CPUs), which needs a buffer of its own for it.
    """

    devices: int
    reshard_after_forward: bool = True
    prefetch_layers: int = 1
    across_nodes: bool = False
    gloo: bool = False


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    Attributes:
        weights: frozen ones, whole or this device's shard.
        activations: what autograd keeps between the forward and the backward pass.
        adapter: all that is trained, with gradients and the optimizer's moments.
        logits: of the head, when its loss is computed; the backward pass begins after they are gone.
        passing: what one layer needs in the backward pass: the gradients on their way, and with activation
            checkpointing all of its activations.
        gathered_forward, gathered_head, gathered_backward: weights that a device with a shard holds whole when the last
            layer is gathered ahead, when the logits are computed, and when a layer goes backward.
        not_yet_kept: activations of the layers that are still to come in the first of these moments.
    """

    weights: float
    activations: float
    adapter: float
    logits: float
    passing: float
    gathered_forward: float = 0.0
    gathered_head: float = 0.0
    gathered_backward: float = 0.0
    not_yet_kept: float = 0.0

    @property
    def moments(self) -> dict[str, float]:
        """What is there for a moment, beside what lasts."""
        return {
            "forward": self.gathered_forward - self.not_yet_kept,
            "logits": self.gathered_head + self.logits,
            "backward": self.gathered_backward + self.passing,
        }

    @property
    def peak(self) -> str:
        """The moment that needs the most."""
        return max(self.moments, key=self.moments.get)

    @property
    def total(self) -> float:
        return self.weights + self.activations + self.adapter + self.moments[self.peak]


def training_memory(
    shape: Architecture,
    *,
    sharding: Sharding | None = None,
    prompt_length: int,
    prompt_layers: int,
    trained: str,
    trainable: int,
    examples: int,
    tokens: int,
    padded: bool,
    dtype: str,
    quantization: str | None = None,
    activation_checkpointing: str | None = None,
    vision: VisionConfig | None = None,
    tower: bool = False,
) -> TrainingMemory:
    """The peak of a step on the longest batch.

    Args:
        shape: of the frozen model.
        sharding: of the weights; None for a whole copy on every device.
        prompt_length, prompt_layers: K and L.
        trained: see `AdapterConfig.trained`.
        trainable: trained parameters.
        examples, tokens: of the longest micro-batch.
        padded: whether it is rows, or one flat row.
        dtype, quantization: of the frozen weights.
        activation_checkpointing: one of `ACTIVATION_CHECKPOINTING`, or None.
        vision: of a model that is trained with images.
        tower: whether the images pass its tower in every step.
    """
    size = DTYPE_BYTES[dtype]
    layer_bytes, other_bytes = weight_bytes(shape, dtype, quantization)
    layer = LayerMemory.of(shape, size, trained)
    if trained == "head":
        # The frozen model keeps nothing; only its head's input stays.
        activations, passing = tokens * size * shape.hidden_size, tokens * layer.forward
    else:
        activations, passing = kept_and_passing(shape, layer, prompt_layers, trained, activation_checkpointing, size)
        activations, passing = tokens * activations, tokens * passing
        prompts = prompt_length * (examples if vision else 1)  # with images every example has its own
        # their keys, and their values with and without the gate
        activations += prompt_layers * prompts * shape.heads * shape.head_size * 3 * size
        if shape.encoder_parameters and not shape.image_size:  # a mask for every layer whose scores have a gradient
            rows = max(examples, 1)
            of_mask = rows * (tokens / rows) ** 2 * size
            activations += of_mask * (1 if activation_checkpointing else max(prompt_layers - 1, 0))
    if quantization:  # one projection at a time is unpacked
        passing += size * shape.hidden_size * max(shape.intermediate_size, shape.heads * shape.head_size)
    weights = shape.layers * layer_bytes + other_bytes
    gathered = {}
    if sharding is not None and sharding.devices > 1:
        weights, gathered = _sharded(shape, sharding, weights, layer_bytes, size)
        adapted = shape.layers if trained == "all" else prompt_layers
        ahead = min(adapted, 1 + sharding.prefetch_layers)  # the layer that computes when the last one is gathered, too
        gathered["not_yet_kept"] = activations * ahead / adapted
    if tower and vision:
        weights += 4 * vision.tower_parameters  # in float32
    in_weights = shape.parameters if trained == "all" else 0  # whose values are counted as weights already
    return TrainingMemory(
        weights=weights,
        activations=activations,
        adapter=trainable * OPTIMIZER_BYTES - in_weights * size,
        logits=_logits(shape, tokens, padded, size),
        passing=passing,
        **gathered,
    )


def weight_bytes(shape: Architecture, dtype: str, quantization: str | None) -> tuple[float, float]:
    """Bytes of the frozen weights of one layer, and of all that are in none: embeddings, head, last norm."""
    size = DTYPE_BYTES[dtype]
    of_layer = (shape.layer_parameters - shape.layer_weights) * size
    of_layer += shape.layer_weights * QUANTIZED_BYTES.get(quantization, size)
    return of_layer, (shape.parameters - shape.layers * shape.layer_parameters) * size


def _sharded(
    shape: Architecture, sharding: Sharding, weights: float, of_layer: float, size: int
) -> tuple[float, dict[str, float]]:
    """Bytes of a shard, and of what is gathered at the three moments.

    From torch.distributed.fsdp._fully_shard: a layer is gathered into one buffer, from which its parameters are copied.
    In the forward pass the buffer is freed when the next one has been copied, in the backward pass at once; the layers
    ahead have their buffers meanwhile. Embeddings and head are units of their own, and the head's loss has its gradient
    before the backward pass begins.
    """
    of_head = shape.embedding_parameters * size
    whole = of_head if shape.tied_embeddings else 0  # is head and embeddings, and is not divided
    head = 0 if shape.encoder_parameters or shape.tied_embeddings else of_head
    ahead, copy = sharding.prefetch_layers, 1 if sharding.gloo else 0
    kept = 0.0 if sharding.reshard_after_forward else shape.layers * of_layer + of_head - whole
    gathered = {
        "gathered_forward": (2 + ahead + copy) * of_layer,
        "gathered_head": kept + head,
        "gathered_backward": kept or (1 + ahead) * of_layer,
    }
    if kept:
        gathered["gathered_forward"] = kept + (1 + copy) * of_layer
    return (weights - whole) / sharding.devices + whole, gathered


def _logits(shape: Architecture, tokens: int, padded: bool, size: int) -> float:
    """A decoder's logits at trained positions: all of them in float32 thrice (log-softmax and two gradients) in a batch
    of rows; chunk by chunk in a flat row, in float32 and in the weights' dtype, beside the hidden states' gradient."""
    if shape.encoder_parameters:
        return 0.0
    trained = ANSWER_SHARE * tokens
    if padded:
        return trained * 3 * 4 * shape.vocabulary_size
    chunk = min(trained, max(1, CHUNK_BYTES // (4 * shape.vocabulary_size)))
    of_chunk = (4 + (size if size < 4 else 0)) * shape.vocabulary_size + size * shape.hidden_size
    return chunk * of_chunk + trained * 2 * size * shape.hidden_size
