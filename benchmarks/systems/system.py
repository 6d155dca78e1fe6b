"""What a training benchmark asks of a system: batches in its own form, and a loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.examples import count_tokens
from benchmarks.shapes import Shape, random_model, same_weights
from llama_adapter.attach import attach
from llama_adapter.data import IGNORED, Example, PaddedCollator

PAD_ID = 0

Batch = dict[str, Tensor]


class SystemUnavailableError(RuntimeError):
    """A system cannot run here; the message is the reason, for the table."""


@dataclass
class Workload:
    """What every system works on.

    Args:
        shape: of the model and its adapter.
        max_length: tokens that the paper's code pads every example to.
        micro_batch: examples in a padded micro-batch; the authors' script has 4.
    """

    shape: Shape
    max_length: int = 512
    micro_batch: int = 4

    @cached_property
    def frozen(self) -> PreTrainedModel:
        return random_model(self.shape)

    @cached_property
    def adapted(self) -> PreTrainedModel:
        """Our model, on the frozen one's weights. All systems that compute the same thing train this one adapter."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return attach(same_weights(self.frozen), self.shape.adapter)

    def pad_to_longest(self, examples: Sequence[Example]) -> list[Batch]:
        collate = PaddedCollator(PAD_ID)
        starts = range(0, len(examples), self.micro_batch)
        return [collate(examples[start : start + self.micro_batch]) for start in starts]

    def pad_to_max(self, examples: Sequence[Example]) -> list[Batch]:
        fills = {"input_ids": PAD_ID, "labels": IGNORED}
        return [
            {
                key: F.pad(batch[key], (0, self.max_length - batch[key].shape[1]), value=fill)
                for key, fill in fills.items()
            }
            for batch in self.pad_to_longest(examples)
        ]


@dataclass
class System:
    """One way to train.

    Args:
        trainable: parameters of the optimizer.
        collate: examples to micro-batches, whose gradients add up to one step's.
        loss: of a micro-batch: cross entropy summed over its trained tokens, in nats.
    """

    trainable: list[torch.nn.Parameter]
    collate: Callable[[Sequence[Example]], list[Batch]]
    loss: Callable[[Batch], Tensor]


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class TrainingSteps:
    """Steps of one system over a cycle of batches: forward and backward of every micro-batch, then AdamW.

    Batches are made beforehand, as a DataLoader's processes would. A call returns when the device is done.

    Args:
        system: what to run.
        batches: each a list of examples, in the order of the calls.
        device: where the micro-batches go.

    Attributes:
        positions: tokens that the system computes for each batch, padding included.
    """

    def __init__(self, system: System, batches: Sequence[Sequence[Example]], device: str) -> None:
        self.system = system
        self.device = device
        self.batches = [self._to_device(system.collate(examples)) for examples in batches]
        self.trained_tokens = [count_tokens(examples)[1] for examples in batches]
        self.positions = [sum(batch["input_ids"].numel() for batch in micro_batches) for micro_batches in self.batches]
        self.optimizer = torch.optim.AdamW(system.trainable, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.02, fused=True)
        self.number = 0

    def __call__(self) -> None:
        self.loss(self.number % len(self.batches))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number += 1
        if not self.device.startswith("cpu"):
            torch.accelerator.synchronize()

    def gradients(self) -> None:
        """The first batch's forward and backward, without a step."""
        self.loss(0)
        self.optimizer.zero_grad()

    def loss(self, number: int) -> Tensor:
        """Loss per trained token of one batch; its gradients are added to the parameters'."""
        parts = []
        for batch in self.batches[number]:
            part = self.system.loss(batch) / self.trained_tokens[number]
            part.backward()
            parts.append(part.detach())
        return torch.stack(parts).sum()

    def _to_device(self, batches: list[Batch]) -> list[Batch]:
        return [
            {key: value.to(self.device) for key, value in batch.items() if isinstance(value, Tensor)}
            for batch in batches
        ]
