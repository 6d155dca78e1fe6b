"""Two processes of one Trainer, with the whole model in each or in shards, take the steps of one process."""

import os
import shutil
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from llama_adapter.callbacks import FrozenAudit
from llama_adapter.checkpoint_files import step_checkpoints
from llama_adapter.distributed import ShardedStrategy
from llama_adapter.run_checkpoint import RunCheckpoint
from tests.tiny_training import Run, fit

CLIP = 0.05  # below every step's norm
STRATEGIES = {
    "sharded": lambda: ShardedStrategy(timeout=timedelta(seconds=60)),
    "ddp": lambda: DDPStrategy(timeout=timedelta(seconds=60)),
}


class Norms(Callback):
    """The gradients' norm as the optimizer sees it, after clipping."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        def look(optimizer, *_: object) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            self.seen.append(torch.nn.utils.get_total_norm(gradients).item())

        trainer.optimizers[0].register_step_post_hook(look)  # the closure, in the step, has made them


def train(folder: Path, **options: object) -> tuple[Run, list[float]]:
    norms = Norms()
    checkpoint = RunCheckpoint(folder / "checkpoints", every_n_train_steps=2, keep_last=9)
    callbacks = (norms, FrozenAudit(), checkpoint)
    run = fit(folder, callbacks=callbacks, gradient_clip_val=CLIP, **options)
    return run, norms.seen


def on_each_device(rank: int, ports: list[int], folder: Path) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    results = {}
    for (name, strategy), port in zip(STRATEGIES.items(), ports, strict=False):
        os.environ["MASTER_PORT"] = str(port)
        run, norms = train(folder / name, devices=2, strategy=strategy())
        torch.distributed.destroy_process_group()
        results[name] = (run.adapter, norms, run.column("train/loss") if rank == 0 else None)
        if rank == 0 and name == "sharded":
            shutil.copytree(folder / name, folder / "sharded, longer")
    os.environ["MASTER_PORT"] = str(ports[-1])
    run, _ = train(folder / "sharded, longer", devices=2, strategy=STRATEGIES["sharded"](), resume=True, max_epochs=4)
    torch.distributed.destroy_process_group()
    results["sharded, longer"] = run.adapter
    torch.save(results, folder / f"device_{rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for opened in (one, two, three):
            opened.bind(("127.0.0.1", 0))
        ports = [opened.getsockname()[1] for opened in (one, two, three)]
    mp.spawn(on_each_device, (ports, folder), nprocs=2)
    run, norms = train(folder / "alone")
    devices = [torch.load(folder / f"device_{rank}.pt", weights_only=False) for rank in (0, 1)]
    return folder, devices, (run.adapter, norms, run.column("train/loss"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_run_of_one_process(runs, strategy):
    _, devices, (adapter, _, losses) = runs
    assert devices[0][strategy][2] == pytest.approx(losses, rel=1e-5)
    assert len(losses) == 9
    for device in devices:
        torch.testing.assert_close(device[strategy][0], adapter, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_norm_of_the_whole_gradient_is_clipped(runs, strategy):
    _, devices, (_, norms, _) = runs
    assert norms == pytest.approx([CLIP] * 9, rel=1e-4)
    for device in devices:
        assert device[strategy][1] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_is_one_file_of_one_process(runs, strategy):
    folder, *_ = runs
    files = {name: step_checkpoints(folder / name / "checkpoints") for name in (strategy, "alone")}
    assert [path.name for path in files[strategy]] == [path.name for path in files["alone"]]
    for ours, theirs in zip(*files.values(), strict=True):
        assert ours.stat().st_size < theirs.stat().st_size + 20_000  # the second process's random generators
    one, other = (torch.load(paths[-1], weights_only=False) for paths in files.values())
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=1e-4, atol=1e-4)
    assert {type(value) for value in one["state_dict"].values()} <= {torch.Tensor, torch.nn.Parameter}
    assert one["optimizer_states"][0]["state"].keys() == other["optimizer_states"][0]["state"].keys()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_goes_on_with_it(runs, strategy, tmp_path):
    """From its fifth step, within an epoch."""
    folder, _, (adapter, _, losses) = runs
    (tmp_path / "checkpoints").mkdir()
    for path in step_checkpoints(folder / strategy / "checkpoints"):
        if int(path.stem[-6:]) <= 4:
            (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "metrics.csv").write_bytes((folder / strategy / "metrics.csv").read_bytes())
    run, _ = train(tmp_path, resume=True)
    assert run.column("train/loss") == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(run.adapter, adapter, rtol=1e-4, atol=1e-4)


def test_shards_go_on_with_it(runs, tmp_path):
    """One epoch more than it was to have."""
    folder, devices, _ = runs
    shutil.copytree(folder / "alone", tmp_path / "alone")
    run, _ = train(tmp_path / "alone", resume=True, max_epochs=4)
    for device in devices:
        torch.testing.assert_close(device["sharded, longer"], run.adapter, rtol=1e-4, atol=1e-4)


def test_a_negative_prefetch():
    with pytest.raises(ValueError, match="trainer.strategy.prefetch_layers must be at least 0, got -1."):
        ShardedStrategy(prefetch_layers=-1)
