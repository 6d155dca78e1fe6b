"""A model in shards on two processes over gloo computes what one process computes, and each holds its part."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from llama_adapter.attach import adapters, attach, projected_prompts
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.generation import generate_ids
from llama_adapter.heads import class_loss, response_loss
from llama_adapter.layer_modes import checkpoint_layers
from llama_adapter.loading import load_backbone
from llama_adapter.sharding import gathered, is_sharded, shard, taking_turns
from llama_adapter.shares import in_shares
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_encoder, tiny_model
from tests.tiny_training import make_examples

CONFIG = AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random")
PROMPTS = [[1, *range(3, 4 + number)] for number in range(1, 6)]  # five: the devices' shares differ


def adapted(folder: Path, device: str | None = None):
    torch.manual_seed(0)
    return attach(load_backbone(folder, device=device), CONFIG)


def loss_and_gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, count = response_loss(model, batch)
    (loss / count).backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}}


def measure(model) -> dict[str, object]:
    """Everything that a run does with a model; the same on one device and on each of two."""
    flat = FlatCollator(pad_id=0)(make_examples(6))
    rows = torch.tensor([[*range(1, 12)], [*range(20, 31)]])
    padded = {"input_ids": rows, "labels": rows}
    measured = {"flat": loss_and_gradients(model, flat), "padded": loss_and_gradients(model, padded)}
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(len(PROMPTS), 32, generator=generator)

    def answers(share, **options):
        return generate_ids(model, share, max_new_tokens=12, eos_ids=[2], pad_id=0, batch_size=2, **options)

    measured["answers"] = in_shares(model, PROMPTS, answers)
    measured["answers of beams"] = in_shares(model, PROMPTS, lambda share: answers(share, num_beams=2))
    numbered = list(enumerate(PROMPTS))
    measured["answers with context"] = in_shares(
        model, numbered, lambda share: answers([p for _, p in share], context=context[[n for n, _ in share]])
    )
    measured["losses"] = in_shares(
        model, [make_examples(n, seed=n) for n in (1, 2, 3)], lambda share: [likelihood(model, e) for e in share]
    )
    return measured


@torch.no_grad()
def likelihood(model, examples) -> float:
    return response_loss(model, FlatCollator(pad_id=0)(examples))[0].item()


def on_each_device(rank: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    results = {}

    model = adapted(folder / "llama", "meta")
    shard(model, mesh)
    shard(model, mesh)  # Lightning asks before every fit, validation and test
    results["held"] = {
        name: (p.to_local().numel() if isinstance(p, DTensor) else p.numel(), p.numel())
        for name, p in model.named_parameters()
    }
    results["whole"] = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    results["llama"] = measure(model)
    results["in shards again"] = all(
        isinstance(p, DTensor) for p in model.parameters() if not p.requires_grad and p.dim() == 2
    )
    with gathered(model.lm_head):
        results["head"] = model.lm_head.weight.detach().clone()

    with taking_turns(model):  # one device works, the other one only helps; then in other orders
        if rank == 0:
            for _ in range(2):
                projected_prompts(model)
            likelihood(model, make_examples(2))
    with taking_turns(model):
        for _ in range(1 + rank):
            likelihood(model, make_examples(2))
            projected_prompts(model)

    model = adapted(folder / "llama", "meta")
    checkpoint_layers(model, "layer")
    shard(model, mesh, reshard_after_forward=False, prefetch_layers=0)
    results["kept"] = measure(model)

    model = adapted(folder / "llama", "meta")
    model.extra = torch.nn.Linear(1, 1, device="meta")
    with pytest.raises(RuntimeError, match="extra.weight is on the meta device, and no file in .*llama has its values"):
        shard(model, mesh)

    model = adapted(folder / "tied", "meta")
    shard(model, mesh, prefetch_layers=2)
    results["tied"] = measure(model)

    model = adapted(folder / "llama")  # with weights
    shard(model, mesh)
    results["from a whole model"] = measure(model)["flat"]

    model = attach(tiny_encoder("vit"), CONFIG)
    for name, adapter in adapters(model).items():
        torch.nn.init.constant_(adapter.prompt, 0.1 * name)
        torch.nn.init.constant_(adapter.gate, 0.5)
    shard(model, mesh)
    images = {"pixel_values": torch.ones(2, 3, 16, 16) * 0.3, "labels": torch.tensor([1, 3])}
    loss = class_loss(model, images)[0]
    loss.backward()
    results["vit"] = (loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad})

    torch.save(results, folder / f"device_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each of two devices measured, and what one does."""
    folder = tmp_path_factory.mktemp("sharding")
    tiny_model("llama_grouped_scaled_rope").save_pretrained(folder / "llama")
    tiny_model("qwen2", tie_word_embeddings=True).save_pretrained(folder / "tied")
    mp.spawn(on_each_device, (folder,), nprocs=2)
    devices = [torch.load(folder / f"device_{rank}.pt", weights_only=False) for rank in (0, 1)]
    return devices, {name: measure(adapted(folder / name)) for name in ("llama", "tied")}


def assert_same(ours: dict, theirs: dict) -> None:
    for key, value in theirs.items():
        if isinstance(value, dict):
            torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)
        else:
            assert ours[key] == pytest.approx(value) if key == "losses" else ours[key] == value


@pytest.mark.parametrize(("name", "model"), [("llama", "llama"), ("kept", "llama"), ("tied", "tied")])
def test_loss_gradients_and_answers_are_those_of_one_device(measured, name, model):
    devices, alone = measured
    for device in devices:
        assert_same(device[name], alone[model])


def test_a_model_that_had_its_weights_is_sharded_too(measured):
    devices, alone = measured
    for device in devices:
        torch.testing.assert_close(device["from a whole model"], alone["llama"]["flat"], rtol=1e-5, atol=1e-6)


def test_each_device_holds_its_part_of_what_is_frozen_and_all_of_what_is_trained(measured):
    (first, second), _ = measured
    trained = {name for name in first["held"] if ".adapter." in name}
    assert {*first["whole"]} == trained
    for name, (held, whole) in first["held"].items():
        assert held + second["held"][name][0] == whole * (2 if name in trained else 1), name
    held, whole = (sum(n[i] for name, n in first["held"].items() if name not in trained) for i in (0, 1))
    assert held == pytest.approx(whole / 2, rel=0.01)


def test_after_a_backward_pass_all_is_in_shards_again(measured):
    devices, _ = measured
    assert all(device["in shards again"] for device in devices)


def test_a_gathered_unit_has_all_of_its_weights(measured):
    devices, _ = measured
    for device in devices:
        assert torch.equal(device["head"], tiny_model("llama_grouped_scaled_rope").lm_head.weight)


def test_an_encoder_is_sharded_but_for_its_head(measured):
    devices, _ = measured
    model = attach(tiny_encoder("vit"), CONFIG)
    for name, adapter in adapters(model).items():
        torch.nn.init.constant_(adapter.prompt, 0.1 * name)
        torch.nn.init.constant_(adapter.gate, 0.5)
    loss = class_loss(model, {"pixel_values": torch.ones(2, 3, 16, 16) * 0.3, "labels": torch.tensor([1, 3])})[0]
    loss.backward()
    for device in devices:
        assert device["vit"][0] == pytest.approx(loss.item())
        expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        torch.testing.assert_close(device["vit"][1], expected, rtol=1e-5, atol=1e-6)


def test_on_one_device_nothing_is_sharded_and_nobody_waits():
    model = tiny_model()
    with taking_turns(model), gathered(model.lm_head):
        assert not is_sharded(model)


def test_trained_weights_are_not_sharded():
    model = attach(tiny_encoder("vit"), AdapterConfig(prompt_length=3, prompt_layers=2, trained="all"))
    with pytest.raises(ValueError, match=r"adapter.trained is all, but FSDP2 shards frozen weights alone.*8xa100_ddp"):
        shard(model, mesh=None)
