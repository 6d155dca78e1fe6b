"""Work that all devices of a run do together, each on its share."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist
from transformers import PreTrainedModel

from llama_adapter.sharding import taking_turns

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_shares(
    model: PreTrainedModel, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """The results of all items in their order, on every device.

    Args:
        model: that does the work. One in shards can be run by all devices together alone: they wait for each other.
        items: the same ones on every device.
        work: from a share of the items to a result for each.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(work(items))
    rank, devices = dist.get_rank(), dist.get_world_size()
    shares: list[list[Result]] = [[] for _ in range(devices)]
    with taking_turns(model):
        share = list(work(items[rank::devices]))
    dist.all_gather_object(shares, share)
    results: list = [None] * len(items)
    for number, share in enumerate(shares):
        results[number::devices] = share
    return results
