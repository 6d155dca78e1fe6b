"""Memory of every device when a frozen model is sharded: held after loading, and at the peak of loading and of a step.

    python -m benchmarks.sharded_memory --preset llama-13b --layers 16 --prompt-layers 14
    python -m benchmarks.sharded_memory --preset llama-13b --device cuda --devices 8

Random weights are written to safetensors files first, one per layer; then each device starts with a model on the meta
device, reads its shards of the files and takes one training step. On a CPU a device is a process (over gloo), and its
memory is what Linux calls resident and anonymous: pages of files that the system can drop at any time are not in it.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from benchmarks.peak_memory import kilobytes
from benchmarks.shapes import Shape, add_shape_arguments, llama_config, shape_of
from llama_adapter.attach import attach
from llama_adapter.examples import IGNORED
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.heads import response_loss
from llama_adapter.loading import load_backbone
from llama_adapter.sharding import shard

GIB = 2**30


def write_weights(shape: Shape, folder: Path) -> int:
    """Random weights in Hugging Face's layout, made and written layer by layer.

    Returns:
        Their bytes.
    """
    config = llama_config(shape)
    config.dtype = getattr(torch, shape.dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(config.dtype)
    config.save_pretrained(folder)
    parts: dict[str, list[str]] = {}
    for name in dict(model.named_parameters()):
        parts.setdefault(".".join(name.split(".")[:3]), []).append(name)
    total, places = 0, {}
    for number, names in enumerate(parts.values()):
        tensors = {name: torch.empty_like(model.get_parameter(name), device="cpu") for name in names}
        for name, tensor in tensors.items():
            torch.nn.init.constant_(tensor, 1.0) if tensor.dim() == 1 else torch.nn.init.normal_(tensor, std=0.02)
            places[name] = f"model-{number:05d}.safetensors"
            total += tensor.nbytes
        save_file(tensors, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


class Peak:
    """The most memory of a device while the context lasts, in GiB; on a CPU it is looked at 100 times a second."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gib = 0.0

    def now(self) -> float:
        """What is held at this moment."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / GIB
        return kilobytes("RssAnon") * 1024 / GIB

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            self.gib = max(self.gib, self.now())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watcher.join()
        self.gib = max(self.gib, self.now())
        if self.device.type == "cuda":
            self.gib = torch.cuda.max_memory_allocated(self.device) / GIB


def on_each_device(rank: int, shape: Shape, devices: int, tokens: int, folder: Path) -> None:
    """Loads, steps, and writes what it measured to a file."""
    torch.set_num_threads(1)
    device = torch.device(shape.device, rank) if shape.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=devices)
    mesh = init_device_mesh(device.type, (devices,))
    measured = {"before": Peak(device).now()}

    with Peak(device) as loading:
        model = attach(load_backbone(folder, dtype=shape.dtype, device="meta"), shape.adapter)
        shard(model, mesh)
        model.to(device)  # prompts and gates
    measured["held"] = loading.now()
    measured["peak of loading"] = loading.gib
    measured["shards"] = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor)) / GIB

    ids = torch.randint(1, shape.vocab, (tokens,), generator=torch.Generator().manual_seed(rank))
    labels = torch.cat((torch.tensor([IGNORED]), ids[1:]))
    batch = FlatCollator(pad_id=0)([{"input_ids": ids, "labels": labels}])
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with Peak(device) as step:
        loss, count = response_loss(model, batch)
        (loss / count).backward()
    measured["peak of a step"] = step.gib
    measured["loss"] = (loss / count).item()
    (folder / f"device_{rank}.json").write_text(json.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--devices", type=int, default=2, help="processes, or GPUs of this machine")
    parser.add_argument("--tokens", type=int, default=128, help="of each device's flat row")
    options = parser.parse_args(arguments)
    try:
        shape = shape_of(options)
    except ValueError as error:
        parser.error(str(error))
    if options.devices < 1:
        parser.error(f"--devices must be at least 1, got {options.devices}.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_weights(shape, folder) / GIB
        mp.spawn(on_each_device, (shape, options.devices, options.tokens, folder), nprocs=options.devices)
        rows = [json.loads((folder / f"device_{rank}.json").read_text()) for rank in range(options.devices)]
    write = sys.stdout.write
    write(f"{shape}\n{size:.2f} GiB of weights, {size / options.devices:.2f} for each of {options.devices} devices\n\n")
    columns = list(rows[0])
    write(" | ".join(["device", *(f"{name:>{max(len(name), 6)}}" for name in columns)]) + "\n")
    for rank, row in enumerate(rows):
        write(" | ".join([f"{rank:>6}", *(f"{row[name]:>{max(len(name), 6)}.2f}" for name in columns)]) + "\n")


if __name__ == "__main__":
    main()
