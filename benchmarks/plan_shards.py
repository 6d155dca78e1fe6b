"""Peak memory of FSDP2 beside what a plan says: two processes on the CPU that share the frozen weights over gloo.

    python -m benchmarks.plan_shards

The bytes of all tensors of the first process that torch's profiler saw live at once in a step, see plan_memory.py; what
the plan says is for gloo, which gathers a layer into a buffer of its own first. NCCL needs no such buffer.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.plan_cases import MIB, Case, Shape, Training, planned
from benchmarks.plan_memory import STEPS, live_bytes
from llama_adapter.memory import Sharding
from llama_adapter.sharding import shard

DEVICES = 2
SHAPE = Shape(
    "llama",
    {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
     "num_key_value_heads": 8, "vocab_size": 8000},
    prompt_layers=6, examples=4, tokens=64,
)  # fmt: skip


@dataclass(frozen=True)
class ShardCase:
    """One measurement: what a layer keeps, and the two choices of FSDP2."""

    activation_checkpointing: str | None
    reshard_after_forward: bool
    prefetch_layers: int
    dtype: str = "float32"

    @property
    def sharding(self) -> Sharding:
        return Sharding(DEVICES, self.reshard_after_forward, self.prefetch_layers, gloo=True)

    @property
    def case(self) -> Case:
        return Case("shards", self.dtype, "flat", self.activation_checkpointing)


CASES = (ShardCase(None, True, 1), ShardCase("layer", True, 2), ShardCase(None, False, 1))


def compare(case: ShardCase) -> dict[str, float]:
    """MiB: `planned` and `tensors`."""
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_measure, args=(case, folder), nprocs=DEVICES)
        tensors = float((Path(folder) / "bytes").read_text())
    return {"planned": planned(case.case, shape=SHAPE, sharding=case.sharding), "tensors": tensors / MIB}


def _measure(rank: int, case: ShardCase, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=DEVICES)
    training = Training(SHAPE, case.case, examples=SHAPE.examples, tokens=SHAPE.tokens)
    mesh, chosen = init_device_mesh("cpu", (DEVICES,)), case.sharding
    options = {"reshard_after_forward": chosen.reshard_after_forward, "prefetch_layers": chosen.prefetch_layers}
    shard(training.model, mesh, **options)
    for _ in range(STEPS):
        training.step()
    most = live_bytes(training)
    if rank == 0:
        (Path(folder) / "bytes").write_text(str(most))
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> dict[ShardCase, float]:
    """Runs the benchmark; returns by case what was planned divided by what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=len(CASES), help=f"the first so many of {len(CASES)}")
    cases = CASES[: parser.parse_args(arguments).cases]
    sys.stderr.write(f"{'keeps':<8}{'reshards':<10}{'prefetches':<12}{'planned':>9}{'tensors':>9}{'ratio':>7}\n")
    ratios = {}
    for case in cases:
        figures = compare(case)
        ratios[case] = figures["planned"] / figures["tensors"]
        sys.stdout.write(json.dumps({"benchmark": "plan_shards", **asdict(case), **figures}) + "\n")
        sys.stderr.write(
            f"{case.activation_checkpointing or 'all':<8}{case.reshard_after_forward!s:<10}{case.prefetch_layers:<12}"
            f"{figures['planned']:>9.1f}{figures['tensors']:>9.1f}{ratios[case]:>7.2f}\n"
        )
    return ratios


if __name__ == "__main__":
    main()
