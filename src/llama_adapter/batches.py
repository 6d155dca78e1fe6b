"""Sizes of batches: what the user declares, what follows for some devices. Imports nothing, so plans are quick."""

from dataclasses import dataclass

BATCHINGS = ("flat", "padded")


@dataclass
class BatchConfig:
    """How examples become batches.

    Args:
        global_batch_size: examples per optimizer step, over all devices; the learning rate is scaled by it.
        micro_batch_size: at most this many examples on a device at once; the rest is accumulated.
        num_workers: processes that prepare batches, per device; 0 prepares them in the training process.
        batching: `padded`, rows padded to the longest; or `flat`, all examples end to end in one row with shared
            beginnings held once: the same loss and gradients for fewer tokens.
    """

    global_batch_size: int = 64
    micro_batch_size: int = 4
    num_workers: int = 0
    batching: str = "padded"

    def __post_init__(self) -> None:
        for key, least in (("global_batch_size", 1), ("micro_batch_size", 1), ("num_workers", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"data.{key} must be at least {least}, got {getattr(self, key)}.")

        if self.batching not in BATCHINGS:
            raise ValueError(f"data.batching is {self.batching!r}. Choose {' or '.join(BATCHINGS)}.")

    def split(self, devices: int) -> tuple[int, int]:
        """Micro-batch size and accumulation that give the global batch on this many devices.

        Raises:
            ValueError: the global batch is not a multiple of the devices.
        """
        share, rest = divmod(self.global_batch_size, devices)
        if rest or not share:
            raise ValueError(
                f"data.global_batch_size is {self.global_batch_size}, which {devices} devices cannot share evenly. "
                f"Choose a multiple of {devices}."
            )
        micro = max(size for size in range(1, min(self.micro_batch_size, share) + 1) if share % size == 0)
        return micro, share // micro
