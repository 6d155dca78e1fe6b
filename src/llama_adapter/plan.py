"""A run before it starts: its steps, its learning rate, what it computes, what memory and time it needs.

Nothing is loaded: the numbers come from the configuration, so a run on eight devices can be planned on a laptop. The
arithmetic is in flops.py, memory.py and step_time.py, the text in plan_report.py.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

from llama_adapter.activations import ACTIVATION_CHECKPOINTING
from llama_adapter.architecture import Architecture, Hardware, VisionConfig
from llama_adapter.flops import TrainingFlops, training_flops
from llama_adapter.memory import (
    ANSWER_SHARE,
    GIB,
    Sharding,
    TrainingMemory,
    training_memory,
    weight_bytes,
)
from llama_adapter.plan_report import lines_of
from llama_adapter.plan_warnings import far_rate, notes_of, warnings_of
from llama_adapter.step_time import StepTime, step_time

TOWER_TOKENS = 257  # patches and class token of an image: CLIP ViT-L/14 at 224 pixels


@dataclass
class Plan:
    """What a run will do; `str(plan)` is what is printed before it."""

    model: str
    architecture: Architecture
    hardware: Hardware
    prompt_length: int
    prompt_layers: int
    devices: int
    nodes: int
    sharding: Sharding | None
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    batching: str
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
    tower: bool
    trained: str
    head_outputs: int
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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

    @cached_property
    def memory(self) -> TrainingMemory:
        """Of one device, for the longest batch that there can be."""
        tokens = self.micro_batch_size * self.max_length
        if self.max_tokens is not None:
            tokens = min(tokens, max(self.max_tokens, self.max_length))
        return training_memory(
            self.architecture,
            sharding=self.sharding,
            prompt_length=self.prompt_length,
            prompt_layers=self.prompt_layers,
            trained=self.trained,
            trainable=self.trainable_parameters,
            examples=self.micro_batch_size,
            tokens=tokens,
            padded=self.batching == "padded",
            dtype=self.dtype,
            quantization=self.quantization,
            activation_checkpointing=self.activation_checkpointing,
            vision=self.vision,
            tower=self.tower,
        )

    @property
    def tokens_per_step(self) -> float:
        """Of all devices, shared prefixes in each example."""
        return self.global_batch_size * self.tokens_per_example

    @cached_property
    def micro_batch_flops(self) -> TrainingFlops:
        """Of an average micro-batch on one device; shared prefixes and padding are not taken into account."""
        shape, examples = self.architecture, self.global_batch_size / (self.devices * self.accumulation)
        length = self.tokens_per_example
        pairs = length**2 if shape.encoder_parameters else length * (length + 1) / 2
        flops = training_flops(
            shape,
            prompt_length=self.prompt_length,
            prompt_layers=self.prompt_layers,
            tokens=examples * length,
            attended=examples * pairs,
            trained=examples * length * ANSWER_SHARE,
            trains=self.trained,
            prompt_sets=ceil(examples) if self.vision else 1,
            activation_checkpointing=self.activation_checkpointing,
        )
        images = 2.0 * self.vision.tower_parameters * TOWER_TOKENS * examples if self.vision and self.tower else 0.0
        return replace(flops, images=images)

    @property
    def flops_per_step(self) -> float:
        """Of all devices, with what is computed again."""
        return self.micro_batch_flops.computed * self.accumulation * self.devices

    @cached_property
    def time(self) -> StepTime | None:
        """Of a step; None where the speed of the hardware is not known."""
        shape = self.architecture
        layer_bytes, other_bytes = weight_bytes(shape, self.dtype, self.quantization)
        return step_time(
            self.micro_batch_flops,
            hardware=self.hardware,
            dtype=self.dtype,
            devices=self.devices,
            nodes=self.nodes,
            micro_batches=self.accumulation,
            layers=shape.layers,
            layers_backward={"adapter": self.prompt_layers, "head": 0, "all": shape.layers}[self.trained],
            layer_bytes=layer_bytes,
            other_bytes=other_bytes,
            gradient_bytes=4.0 * self.trainable_parameters,
            sharding=self.sharding,
            recomputes=self.activation_checkpointing is not None,
        )

    @property
    def fits(self) -> bool | None:
        """Whether the longest batch fits; None where the device's memory is not known."""
        return self.memory.total <= self.hardware.memory_gib * GIB if self.hardware.memory_gib else None

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of a title and its text."""
        return lines_of(self)

    def __str__(self) -> str:
        return "\n".join(f"{title:<20}  {text}" for title, text in self.lines())

    def warn_if_far(self, recipe_rate: float) -> None:
        """Adds a warning when the learning rate is far from that of the task's recipe."""
        self.warnings += far_rate(self, recipe_rate)


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
    nodes: int = 1,
    sharding: Sharding | None = None,
    activation_checkpointing: str | None = None,
    vision: VisionConfig | None = None,
    tower: bool = False,
    accumulation: int | None = None,
    head_outputs: int = 0,
) -> Plan:
    """Joins what the nodes of a configuration say, and refuses what does not fit together.

    Args:
        model: its name, for messages.
        adapter, batches, optimizer: the `AdapterConfig`, `BatchConfig` and `OptimizerConfig` of the run.
        devices, nodes: devices over all machines, and the machines.
        max_epochs, max_steps: as Lightning takes them; a `max_steps` of -1 sets no limit.
        examples, tokens_per_example: of the training data.
        max_length: tokens of an example at most.
        sharding: of the frozen weights; None where every device holds them all.
        activation_checkpointing: one of `ACTIVATION_CHECKPOINTING`, or None.
        vision: of a model that is trained with images.
        tower: whether images pass its tower in every step; otherwise their features were computed before.
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
    plan = Plan(
        model=model,
        architecture=architecture,
        hardware=hardware,
        prompt_length=adapter.prompt_length,
        prompt_layers=adapter.prompt_layers,
        devices=devices,
        nodes=nodes,
        sharding=sharding,
        global_batch_size=batches.global_batch_size,
        micro_batch_size=micro,
        accumulation=accumulation,
        batching=batches.batching,
        max_tokens=batches.max_tokens,
        base_learning_rate=optimizer.base_learning_rate,
        learning_rate=optimizer.learning_rate(batches.global_batch_size),
        warmup_epochs=optimizer.warmup_epochs,
        epochs=whole_epochs + rest * batches.global_batch_size / examples,
        examples=examples,
        tokens_per_example=tokens_per_example,
        max_length=max_length,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        dtype=dtype,
        quantization=quantization,
        activation_checkpointing=activation_checkpointing,
        vision=vision,
        tower=tower,
        trained=adapter.trained,
        head_outputs=head_outputs,
    )
    plan.warnings += warnings_of(plan, most=batches.micro_batch_size)
    plan.notes += notes_of(plan)
    return plan
