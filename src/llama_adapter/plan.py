"""The arithmetic of a run before it starts: parameters, steps, learning rate and memory, from shapes alone.

Nothing is loaded: the numbers come from the configuration, so a run on eight devices can be planned on a laptop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import ceil

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ACTIVATION_CHECKPOINTING = ("layer", "attention", "products")  # what is kept of a layer, see layer_modes.KEPT
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5}  # per weight of a quantised projection; scales add a few per cent


@dataclass
class Architecture:
    """The shape of a decoder, as far as its parameters and memory depend on it.

    Args:
        hidden_size: C.
        intermediate_size: width of the MLP.
        layers: N.
        heads: H.
        key_value_heads: G; fewer than H where they are grouped.
        head_size: D.
        vocabulary_size: V.
        tied_embeddings: whether the head is the embedding.
        projection_biases: biases on query, key and value (Qwen2).
        max_positions: the longest sequence it was made for.
    """

    hidden_size: int = 0
    intermediate_size: int = 0
    layers: int = 0
    heads: int = 0
    key_value_heads: int = 0
    head_size: int = 0
    vocabulary_size: int = 0
    tied_embeddings: bool = False
    projection_biases: bool = False
    max_positions: int = 0

    @classmethod
    def from_config(cls, config) -> "Architecture":
        """From a transformers config."""
        from llama_adapter.backbones import family_of  # torch and transformers take seconds to import

        return cls(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary_size=config.vocab_size,
            tied_embeddings=config.tie_word_embeddings,
            projection_biases=family_of(config).projection_biases or getattr(config, "attention_bias", False),
            max_positions=config.max_position_embeddings,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's projections: what quantisation packs."""
        attention = self.hidden_size * self.head_size * (2 * self.heads + 2 * self.key_value_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        biases = self.head_size * (self.heads + 2 * self.key_value_heads) if self.projection_biases else 0
        embeddings = self.vocabulary_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        norms = (2 * self.layers + 1) * self.hidden_size
        return self.layers * (self.layer_weights + biases) + embeddings + norms


@dataclass
class VisionConfig:
    """A CLIP tower and the projection of its features to what is added to the prompts (Eq. 9-10 of the paper).

    Args:
        path: folder of a CLIP model, or of its vision tower, in the Hugging Face layout; empty for text alone.
        channels: of the tower's layers; for plans without the weights.
        layers: whose class tokens are read, from 1 to the tower's number of layers.
        patch_mean: whether the mean of the other tokens of each layer is read too.
        projection_width: of the bottleneck; 67 gives LLaMA-7B with ViT-L/14 the paper's 0.56M parameters.
    """

    path: str = ""
    channels: int = 0
    layers: list[int] = field(default_factory=list)
    patch_mean: bool = False
    projection_width: int = 67

    def __post_init__(self) -> None:
        if self.projection_width < 1:
            raise ValueError(f"model.vision.projection_width must be at least 1, got {self.projection_width}.")

    def parameters(self, hidden_size: int) -> int:
        """Of the projection: two linear layers with biases."""
        features = len(self.layers) * self.channels * (2 if self.patch_mean else 1)
        return (features + 1) * self.projection_width + (self.projection_width + 1) * hidden_size


@dataclass
class Hardware:
    """What the devices of a trainer are.

    Args:
        name: for people.
        memory_gib: memory of one device; 0 when it is not known.
        peak_tflops: of one device in the precision of the matrix products, in 10^12 floating point operations per
            second; None for unknown.
        shards_weights: whether the frozen weights are divided among the devices (FSDP2) or whole on each.
        threads: of the CPU that torch computes with; None for as many as it chooses.
    """

    name: str = ""
    memory_gib: float = 0.0
    peak_tflops: float | None = None
    shards_weights: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"hardware.threads must be at least 1, or null for all, got {self.threads}.")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ValueError(f"hardware.peak_tflops must be above 0, or null where unknown, got {self.peak_tflops}.")


@dataclass
class Plan:
    """What a run will do; `str(plan)` is what is printed before it."""

    model: str
    architecture: Architecture
    hardware: Hardware
    prompt_length: int
    prompt_layers: int
    devices: int
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    max_tokens: int | None
    base_learning_rate: float
    learning_rate: float
    warmup_epochs: float
    epochs: float
    examples: int
    tokens_per_example: float
    max_length: int
    steps_per_epoch: int
    steps: int
    dtype: str
    quantization: str | None
    activation_checkpointing: str | None
    vision: VisionConfig | None
    warnings: list[str] = field(default_factory=list)

    @property
    def trainable_parameters(self) -> int:
        """K x L x C prompts and L x H gates, and the projection of images."""
        shape = self.architecture
        adapter = self.prompt_layers * (self.prompt_length * shape.hidden_size + shape.heads)
        return adapter + (self.vision.parameters(shape.hidden_size) if self.vision else 0)

    def memory(self) -> dict[str, float]:
        """Bytes on one device while training, by part; an estimate for the longest batch, without fragmentation.

        Activations count what autograd keeps of each adapted layer of transformers' decoders: frozen projections keep
        nothing (their gradient needs the weight alone), so it is the two norms' float32 inputs, query, key, value and
        output of the attention, output of the prompt half, a log-sum-exp of each, and gate, activation and product of
        the MLP. Layers below the adapted ones keep nothing. Flat rows need less: the longest batch is padded here.
        With activation checkpointing a layer keeps its input and what was chosen, and one layer at a time is whole.
        """
        shape, size = self.architecture, DTYPE_BYTES[self.dtype]
        packed = shape.layers * shape.layer_weights
        weights = (shape.parameters - packed) * size + packed * QUANTIZED_BYTES.get(self.quantization, size)
        if self.hardware.shards_weights:
            weights = weights / self.devices + 2 * shape.layer_weights * size  # two layers are gathered at a time
        attention_width = shape.heads * shape.head_size
        key_width, mlp_width = shape.key_value_heads * shape.head_size, shape.intermediate_size
        of_layer = 2 * 4 * shape.hidden_size + size * (3 * attention_width + 2 * key_width + 3 * mlp_width)
        of_layer += shape.heads * 2 * 4
        kept = {"layer": size * shape.hidden_size}
        kept["attention"] = kept["layer"] + 2 * (size * attention_width + 4 * shape.heads)
        kept["products"] = kept["attention"] + size * (attention_width + 2 * key_width + 2 * mlp_width)
        kept["products"] += size * 2 * shape.hidden_size  # outputs of o_proj and down_proj
        if self.activation_checkpointing is None:
            per_token = self.prompt_layers * of_layer
        else:
            per_token = self.prompt_layers * kept[self.activation_checkpointing] + of_layer
        tokens = self.micro_batch_size * self.max_length
        if self.max_tokens is not None:
            tokens = min(tokens, max(self.max_tokens, self.max_length))
        answer_share = 0.5  # half of an example's tokens are trained, more or less; logits exist for those alone
        return {
            "weights": weights,
            "activations": per_token * tokens,
            "logits": answer_share * tokens * shape.vocabulary_size * (2 * 4 + 2 * size),
            "adapter and optimizer": self.trainable_parameters * 4 * 4,  # value, gradient and AdamW's two moments
        }

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of a title and its text."""
        shape, memory = self.architecture, self.memory()
        total = sum(memory.values())
        parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in memory.items())
        room = f" of {self.hardware.memory_gib:g}" if self.hardware.memory_gib else ""
        frozen = f"{shape.parameters:,} frozen in {self.quantization or self.dtype}"
        warmup = f"warm-up {self.warmup_epochs:g} of {self.epochs:.3g} epochs"
        return [
            ("model", f"{self.model}: {frozen}"),
            (
                "trainable parameters",
                f"{self.trainable_parameters:,} (K={self.prompt_length}, L={self.prompt_layers} of {shape.layers} "
                f"layers{', and the projection of images' if self.vision else ''}), total "
                f"{shape.parameters + self.trainable_parameters:,}",
            ),
            (
                "global batch",
                f"{self.global_batch_size} = {self.devices} devices x {self._micro_batch()} x "
                f"{self.accumulation} accumulated",
            ),
            (
                "learning rate",
                f"{self.learning_rate:.4g} (base {self.base_learning_rate:g} x {self.global_batch_size} / 256), "
                f"{warmup}",
            ),
            ("steps", f"{self.steps:,} ({self.steps_per_epoch:,} per epoch of {self.examples:,} examples)"),
            (
                "tokens per step",
                f"about {self.global_batch_size * self.tokens_per_example:,.0f} "
                f"({self.tokens_per_example:.1f} per example, at most {self.max_length})",
            ),
            ("memory per device", f"about {total / GIB:.2f}{room} GiB ({parts})"),
            *(("warning", warning) for warning in self.warnings),
        ]

    def _micro_batch(self) -> str:
        if self.max_tokens is None:
            return f"{self.micro_batch_size} examples"
        return f"at most {self.micro_batch_size} examples and {self.max_tokens:,} tokens"

    def __str__(self) -> str:
        return "\n".join(f"{title:<20}  {text}" for title, text in self.lines())


def make_plan(
    *,
    model: str,
    architecture: Architecture,
    hardware: Hardware,
    adapter,
    batches,
    optimizer,
    devices: int,
    max_epochs: int,
    max_steps: int,
    examples: int,
    tokens_per_example: float,
    max_length: int,
    dtype: str,
    quantization: str | None,
    activation_checkpointing: str | None = None,
    vision: VisionConfig | None = None,
    accumulation: int | None = None,
) -> Plan:
    """Joins what the nodes of a configuration say, and refuses what does not fit together.

    Args:
        model: its name, for messages.
        adapter, batches, optimizer: the `AdapterConfig`, `BatchConfig` and `OptimizerConfig` of the run.
        devices: over all nodes.
        max_epochs, max_steps: as Lightning takes them; a `max_steps` of -1 sets no limit.
        examples, tokens_per_example: of the training data.
        max_length: tokens of an example at most.
        activation_checkpointing: one of `ACTIVATION_CHECKPOINTING`, or None.
        vision: of a model that is trained with images.
        accumulation: micro-batches of a step on each device, where the data have been counted; None estimates it.

    Raises:
        ValueError: more adapted layers than the model has, a length it was not made for, or a global batch that the
            devices cannot share.
    """
    if adapter.prompt_layers > architecture.layers:
        raise ValueError(
            f"adapter.prompt_layers is {adapter.prompt_layers}, but {model} has {architecture.layers} layers. "
            f"Choose 1 to {architecture.layers}."
        )
    if max_length > architecture.max_positions:
        raise ValueError(
            f"task.data.max_length is {max_length}, but {model} was made for {architecture.max_positions} tokens. "
            f"Choose at most {architecture.max_positions}."
        )
    if activation_checkpointing is not None and activation_checkpointing not in ACTIVATION_CHECKPOINTING:
        raise ValueError(
            f"trainer.activation_checkpointing is {activation_checkpointing!r}. Choose "
            f"{', '.join(ACTIVATION_CHECKPOINTING)}, or null to keep all activations."
        )
    micro, least = batches.split(devices)
    if accumulation is None:
        tokens = batches.global_batch_size / devices * tokens_per_example
        accumulation = max(least, ceil(tokens / (batches.max_tokens or tokens)))
    steps_per_epoch = ceil(examples / batches.global_batch_size)
    steps = steps_per_epoch * max_epochs
    if max_steps >= 0:
        steps = min(steps, max_steps)
    whole_epochs, rest = divmod(steps, steps_per_epoch)
    epochs = whole_epochs + rest * batches.global_batch_size / examples
    warnings = []
    if optimizer.warmup_epochs >= epochs:
        warnings.append(
            f"the run of {epochs:.3g} epochs ends within its warm-up of {optimizer.warmup_epochs:g}: the learning rate "
            "never reaches its peak"
        )
    plan = Plan(
        model=model,
        architecture=architecture,
        hardware=hardware,
        prompt_length=adapter.prompt_length,
        prompt_layers=adapter.prompt_layers,
        devices=devices,
        global_batch_size=batches.global_batch_size,
        micro_batch_size=micro,
        accumulation=accumulation,
        max_tokens=batches.max_tokens,
        base_learning_rate=optimizer.base_learning_rate,
        learning_rate=optimizer.learning_rate(batches.global_batch_size),
        warmup_epochs=optimizer.warmup_epochs,
        epochs=epochs,
        examples=examples,
        tokens_per_example=tokens_per_example,
        max_length=max_length,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        dtype=dtype,
        quantization=quantization,
        activation_checkpointing=activation_checkpointing,
        vision=vision,
        warnings=warnings,
    )
    needed = sum(plan.memory().values()) / GIB
    if hardware.memory_gib and needed > hardware.memory_gib:
        plan.warnings.append(
            f"about {needed:.1f} GiB are needed and {hardware.name} has {hardware.memory_gib:g}: lower "
            "data.micro_batch_size or data.max_tokens, shard the weights, or quantise the model"
        )
    return plan


def difference(architecture: Architecture, declared: Mapping[str, object]) -> str:
    """Where a loaded model's shape differs from the one its config file declares; empty when it does not."""
    pairs = [(f.name, getattr(architecture, f.name), declared.get(f.name)) for f in fields(architecture)]
    return ", ".join(f"{name} is {found}, declared {said}" for name, found, said in pairs if said and said != found)
