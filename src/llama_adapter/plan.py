"""The arithmetic of a run before it starts: parameters, steps, learning rate and memory, from shapes alone.

Nothing is loaded: the numbers come from the configuration, so a run on eight devices can be planned on a laptop.
"""

from dataclasses import dataclass, field
from math import ceil

from llama_adapter.architecture import DTYPE_BYTES, QUANTIZED_BYTES, Architecture, Hardware, VisionConfig

GIB = 2**30
ACTIVATION_CHECKPOINTING = ("layer", "attention", "products")  # what is kept of a layer, see layer_modes.KEPT


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
    trained: str
    head_outputs: int
    warnings: list[str] = field(default_factory=list)

    @property
    def trainable_parameters(self) -> int:
        """K x L x C prompts and L x H gates, the projection of images and the head of an encoder."""
        shape = self.architecture
        of_task = self.vision.parameters(shape.hidden_size) if self.vision else 0
        of_task += shape.head_parameters(self.head_outputs) if self.head_outputs else 0
        if self.trained == "head":
            return of_task
        if self.trained == "all":
            return of_task + shape.parameters
        return of_task + self.prompt_layers * (self.prompt_length * shape.hidden_size + shape.heads)

    def memory(self) -> dict[str, float]:
        """Bytes on one device while training, by part; an estimate for the longest batch, without fragmentation.

        Activations count what autograd keeps of each adapted layer of transformers' decoders: frozen projections keep
        nothing (their gradient needs the weight alone), so it is the two norms' float32 inputs, query, key, value and
        output of the attention, output of the prompt half, a log-sum-exp of each, and gate, activation and product of
        the MLP. Layers below the adapted ones keep nothing. Flat rows need less: the longest batch is padded here.
        An encoder's layer keeps its norms' inputs in the weights' dtype, and the one input of its activation. A linear
        probe keeps nothing; full fine-tuning keeps in all layers, the inputs of all projections too.
        With activation checkpointing a layer keeps its input and what was chosen, and one layer at a time is whole.
        """
        shape, size = self.architecture, DTYPE_BYTES[self.dtype]
        packed = shape.layers * shape.layer_weights
        weights = (shape.parameters - packed) * size + packed * QUANTIZED_BYTES.get(self.quantization, size)
        if self.hardware.shards_weights:
            weights = weights / self.devices + 2 * shape.layer_weights * size  # two layers are gathered at a time
        attention_width = shape.heads * shape.head_size
        key_width, mlp_width = shape.key_value_heads * shape.head_size, shape.intermediate_size
        of_attention = size * (3 * attention_width + 2 * key_width) + shape.heads * 2 * 4
        if shape.encoder_parameters:
            of_layer = size * (2 * shape.hidden_size + mlp_width) + of_attention
        else:
            of_layer = size * 3 * mlp_width + 2 * 4 * shape.hidden_size + of_attention
        layers = {"adapter": self.prompt_layers, "head": 0, "all": shape.layers}[self.trained]
        if self.trained == "all":
            of_layer += size * (2 * shape.hidden_size + attention_width + mlp_width)
        kept = {"layer": size * shape.hidden_size}
        kept["attention"] = kept["layer"] + 2 * (size * attention_width + 4 * shape.heads)
        kept["products"] = kept["attention"] + size * (attention_width + 2 * key_width + 2 * mlp_width)
        kept["products"] += size * 2 * shape.hidden_size  # outputs of o_proj and down_proj
        if self.activation_checkpointing is None:
            per_token = layers * of_layer
        else:
            per_token = layers * kept[self.activation_checkpointing] + of_layer
        tokens = self.micro_batch_size * self.max_length
        if self.max_tokens is not None:
            tokens = min(tokens, max(self.max_tokens, self.max_length))
        answer_share = 0.5  # half of an example's tokens are trained, more or less; logits exist for those alone
        logits = 0.0 if shape.encoder_parameters else answer_share * tokens * shape.vocabulary_size * (2 * 4 + 2 * size)
        return {
            "weights": weights,
            "activations": per_token * tokens,
            "logits": logits,
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
                f"{self.trainable_parameters:,} ({self._trained()}), total {self._total():,}",
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

    def _trained(self) -> str:
        if self.trained == "head":
            return "the head alone"
        if self.trained == "all":
            return "all weights"
        parts = [f"K={self.prompt_length}, L={self.prompt_layers} of {self.architecture.layers} layers"]
        parts += ["and the projection of images"] if self.vision else []
        parts += ["and the head"] if self.head_outputs else []
        return ", ".join(parts)

    def _total(self) -> int:
        return self.trainable_parameters + (0 if self.trained == "all" else self.architecture.parameters)

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
    head_outputs: int = 0,
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
        head_outputs: of an encoder's head: 2 for spans, or the number of classes.

    Raises:
        ValueError: more adapted layers than the model has, a length it was not made for, or a global batch that the
            devices cannot share.
    """
    if adapter.prompt_layers > architecture.layers:
        raise ValueError(
            f"adapter.prompt_layers is {adapter.prompt_layers}, but {model} has {architecture.layers} layers. "
            f"Choose 1 to {architecture.layers}."
        )
    if architecture.max_positions and max_length > architecture.max_positions:
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
        trained=adapter.trained,
        head_outputs=head_outputs,
        warnings=warnings,
    )
    needed = sum(plan.memory().values()) / GIB
    if hardware.memory_gib and needed > hardware.memory_gib:
        plan.warnings.append(
            f"about {needed:.1f} GiB are needed and {hardware.name} has {hardware.memory_gib:g}: lower "
            "data.micro_batch_size or data.max_tokens, shard the weights, or quantise the model"
        )
    return plan
