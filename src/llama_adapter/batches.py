"""Sizes of batches: what the user declares, what follows for some devices. Imports nothing, so plans are quick."""

from dataclasses import dataclass, replace
from math import ceil

BATCHINGS = ("flat", "padded")


@dataclass
class BatchConfig:
    """How examples become batches.

    Args:
        global_batch_size: examples per optimizer step, over all devices; the learning rate is scaled by it.
        micro_batch_size: at most this many examples on a device at once; the rest is accumulated.
        max_tokens: at most this many tokens in a flat row, shared beginnings counted once; a longer example is a row of
            its own. None sets no limit.
        num_workers: processes that prepare batches, per device; 0 prepares them in the training process.
        batching: `flat`, all examples end to end in one row; or `padded`, rows padded to the longest: the same loss and
            gradients for more tokens.
        share_prefixes: whether a flat row holds equal beginnings once.
        row_multiple: a flat row is padded to a multiple of so many tokens.
        cache_frozen: whether the outputs of the layers below the adapted ones are read from disk (`frozen_cache`).
        cache_folder: where they are.
    """

    global_batch_size: int = 64
    micro_batch_size: int = 4
    max_tokens: int | None = None
    num_workers: int = 0
    batching: str = "flat"
    share_prefixes: bool = True
    row_multiple: int = 1
    cache_frozen: bool = False
    cache_folder: str = "outputs/frozen"

    def __post_init__(self) -> None:
        least = {"global_batch_size": 1, "micro_batch_size": 1, "max_tokens": 1, "num_workers": 0, "row_multiple": 1}
        for key, minimum in least.items():
            value = getattr(self, key)
            if value is not None and value < minimum:
                raise ValueError(f"data.{key} must be at least {minimum}, got {value}.")
        if self.batching not in BATCHINGS:
            raise ValueError(f"data.batching is {self.batching!r}. Choose {' or '.join(BATCHINGS)}.")
        if self.batching == "padded" and self.max_tokens is not None:
            raise ValueError(
                f"data.max_tokens is {self.max_tokens}, which limits flat rows, but data.batching is padded. Set "
                "data.batching=flat, or data.max_tokens=null and data.micro_batch_size."
            )

    def rows(self) -> "BatchConfig":
        """The same sizes for an encoder, whose batches are rows: a flat row is for tokens that see the past alone."""
        return replace(self, batching="padded", max_tokens=None)

    def split(self, devices: int) -> tuple[int, int]:
        """Micro-batch size and accumulation that give the global batch on this many devices.

        Padded micro-batches have equal sizes; flat ones have at most the size given. `max_tokens` may ask for more
        micro-batches than this, which depends on the examples (`dealing.accumulation_for`).

        Raises:
            ValueError: the global batch is not a multiple of the devices.
        """
        share, rest = divmod(self.global_batch_size, devices)
        if rest or not share:
            raise ValueError(
                f"data.global_batch_size is {self.global_batch_size}, which {devices} devices cannot share evenly. "
                f"Choose a multiple of {devices}."
            )
        if self.batching == "flat":
            accumulation = ceil(share / self.micro_batch_size)
            return ceil(share / accumulation), accumulation
        micro = max(size for size in range(1, min(self.micro_batch_size, share) + 1) if share % size == 0)
        return micro, share // micro
