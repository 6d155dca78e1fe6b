"""Work in shares gives the results of work done alone, in their order."""

import pytest
import torch.distributed as dist

from llama_adapter.shares import in_shares
from tests.conftest import tiny_model

MODEL = tiny_model()


def test_alone():
    assert in_shares(MODEL, [1, 2, 3], lambda share: [n * n for n in share]) == [1, 4, 9]
    assert in_shares(MODEL, [], lambda share: list(share)) == []


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_every_device_gets_all_results(count, monkeypatch):
    """Three devices, played one after the other."""
    items, devices = list(range(count)), 3
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: devices)

    def gathered(into: list, own: list) -> None:
        into[:] = [[n * n for n in items[rank::devices]] for rank in range(devices)]
        assert own in into

    monkeypatch.setattr(dist, "all_gather_object", gathered)
    for rank in range(devices):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        assert in_shares(MODEL, items, lambda share: [n * n for n in share]) == [n * n for n in items]
