"""The memory of a plan against what torch allocates in real steps, and its parts by hand."""

import dataclasses
import json
import re
from argparse import Namespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import plan_memory, plan_shards
from benchmarks.plan_cases import MIB, SHAPES, Case, Shape, Training, planned
from benchmarks.plan_memory import live_bytes
from llama_adapter.architecture import Architecture, VisionConfig
from llama_adapter.attach import attach
from llama_adapter.batches import BatchConfig
from llama_adapter.head_loss import CHUNK_BYTES
from llama_adapter.memory import CHUNK_BYTES as PLANNED_CHUNK_BYTES
from llama_adapter.memory import Sharding
from llama_adapter.zero_init import AdapterConfig
from tests.test_plan import LLAMA_7B, plan

# Large enough that what is left out (norms' statistics, rotary tables, masks, ids) is a small part.
SMALL = {
    "decoder": Shape(
        "llama",
        {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 8, "vocab_size": 1000},
        prompt_layers=3, examples=4, tokens=128,
    ),
    "grouped": Shape(
        "llama",
        {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 8000},
        prompt_layers=4, examples=4, tokens=128,
    ),
    "encoder": Shape(
        "roberta",
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
         "vocab_size": 1000, "max_position_embeddings": 130, "type_vocab_size": 1},
        prompt_layers=3, examples=4, tokens=128,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch):
    for name, shape in SMALL.items():
        monkeypatch.setitem(SHAPES, name, shape)


def ratio(case: Case) -> float:
    """Planned by what was live at the peak of the third step."""
    shape = SMALL[case.shape]
    training = Training(shape, case, examples=shape.examples, tokens=shape.tokens)
    for _ in range(plan_memory.STEPS):
        training.step()
    return planned(case) * MIB / live_bytes(training)


@pytest.mark.parametrize("kept", [None, "layer", "attention", "products"])
@pytest.mark.parametrize(("dtype", "batching"), [("float32", "flat"), ("bfloat16", "padded")])
def test_the_peak_of_a_decoder(dtype, batching, kept):
    assert ratio(Case("decoder", dtype, batching, kept)) == pytest.approx(1.0, abs=0.04)


def test_the_peak_with_grouped_heads_in_all_layers():
    assert ratio(Case("grouped", "bfloat16", "flat", None)) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(("dtype", "kept"), [("float32", None), ("bfloat16", "layer")])
def test_the_peak_of_an_encoder(dtype, kept):
    assert ratio(Case("encoder", dtype, "padded", kept)) == pytest.approx(1.0, abs=0.05)


def test_logits_in_chunks(monkeypatch):
    """Several chunks cost no more than one: the last one's logits are gone before the next one's are made."""
    assert PLANNED_CHUNK_BYTES == CHUNK_BYTES
    for name in ("llama_adapter.head_loss.CHUNK_BYTES", "llama_adapter.memory.CHUNK_BYTES"):
        monkeypatch.setattr(name, 2**23)  # 131 of 256 trained tokens
    monkeypatch.setitem(SMALL["grouped"].config, "vocab_size", 16000)
    assert ratio(Case("grouped", "float32", "flat", None)) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [8, 2])
def test_activations_are_what_autograd_keeps(dtype, groups):
    """Against the storages that a padded training step saves, without the head's."""
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=groups,
        vocab_size=64,
    )
    model = attach(LlamaForCausalLM(config).to(dtype), AdapterConfig(prompt_length=10, prompt_layers=3))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(torch.randint(64, (4, 128)), use_cache=False)
    made = plan(
        architecture=Architecture.from_config(config),
        adapter=AdapterConfig(prompt_length=10, prompt_layers=3),
        batches=BatchConfig(4, 4),
        devices=1,
        max_length=128,
        dtype=str(dtype).removeprefix("torch."),
    )
    # The rest is the norms' float32 statistics and the rotary tables.
    assert made.memory.activations == pytest.approx(sum(kept.values()), rel=0.02)


def test_images_bring_prompts_for_every_example():
    """Against what is saved in a step of a model whose prompts differ by example."""
    config = LlamaConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    model = attach(LlamaForCausalLM(config), AdapterConfig(prompt_length=64, prompt_layers=2, gate_init="random"))
    ids = torch.randint(64, (8, 16))
    sizes = []
    for context in (None, torch.randn(8, 128)):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(ids, use_cache=False, prompt_context=context)
        sizes.append(sum(kept.values()))
    vision = VisionConfig(path="tower", channels=8, layers=[1])
    shape = {"architecture": Architecture.from_config(config), "devices": 1, "max_length": 16, "dtype": "float32"}
    shape |= {"adapter": AdapterConfig(prompt_length=64, prompt_layers=2), "batches": BatchConfig(8, 8)}
    more = plan(**shape, vision=vision).memory.activations - plan(**shape).memory.activations
    assert more == pytest.approx(sizes[1] - sizes[0], rel=0.05)


# --- by hand ----------------------------------------------------------------------------------------------------------


def memory(**changed) -> float:
    return plan(**changed).memory.total


def test_weights_of_llama_7b():
    assert plan().memory.weights == LLAMA_7B.parameters * 2 == pytest.approx(13.5e9, rel=0.01)
    assert plan(dtype="float32").memory.weights == LLAMA_7B.parameters * 4


def test_adapter_and_optimizer_are_counted():
    """Value, gradient and two moments in float32; values of trained weights are with the weights already."""
    assert plan().memory.adapter == 1_229_760 * 16
    everything = plan(adapter=AdapterConfig(trained="all"), dtype="float32", batches=BatchConfig(batching="padded"))
    assert everything.memory.adapter == LLAMA_7B.parameters * 12
    assert everything.memory.activations > plan(dtype="float32").memory.activations


@pytest.mark.parametrize(
    "grow",
    [
        lambda n: {"max_length": 128 * n},
        lambda n: {"batches": BatchConfig(64, 2**n)},
        lambda n: {"adapter": AdapterConfig(prompt_length=n, prompt_layers=30)},
        lambda n: {"adapter": AdapterConfig(prompt_length=10, prompt_layers=n)},
        lambda n: {"architecture": dataclasses.replace(LLAMA_7B, layers=30 + n)},
        lambda n: {"architecture": dataclasses.replace(LLAMA_7B, vocabulary_size=32000 * n)},
        lambda n: {"activation_checkpointing": ("layer", "attention", "products", None)[n - 1]},
    ],
    ids=["length", "micro-batch", "K", "L", "layers", "vocabulary", "checkpointing"],
)
def test_memory_grows(grow):
    sizes = [memory(devices=1, **grow(n)) for n in (1, 2, 3, 4)]
    assert sizes == sorted(set(sizes))


def test_a_limit_of_tokens_limits_the_longest_row():
    assert memory(batches=BatchConfig(64, 8, max_tokens=2048)) == memory(batches=BatchConfig(64, 4, max_tokens=2048))
    assert memory(batches=BatchConfig(64, 8, max_tokens=100)) == memory(batches=BatchConfig(64, 8, max_tokens=512))


def test_quantised_weights_are_smaller():
    whole, int8, nf4 = (plan(quantization=kind).memory.weights for kind in (None, "int8", "nf4"))
    packed = LLAMA_7B.layers * LLAMA_7B.layer_weights
    assert whole - int8 == packed * 1.0
    assert whole - nf4 == packed * 1.5
    assert plan(quantization="nf4").memory.passing - plan().memory.passing == 2 * 4096 * 11008  # one is unpacked


def test_shards():
    """A device has its part of all weights, and gathers the layer that goes backward and those ahead of it."""
    of_layer = 2 * LLAMA_7B.layer_parameters
    for devices in (2, 4, 8):
        sharded = plan(sharding=Sharding(devices)).memory
        assert sharded.weights == LLAMA_7B.parameters * 2 / devices
        assert sharded.gathered_forward == 3 * of_layer
        assert sharded.gathered_head == 2 * 32000 * 4096
        assert sharded.gathered_backward == 2 * of_layer
        assert sharded.total < memory()
    ahead = plan(sharding=Sharding(8, prefetch_layers=3)).memory
    assert (ahead.gathered_forward, ahead.gathered_backward) == (5 * of_layer, 4 * of_layer)
    assert plan(sharding=Sharding(8, gloo=True)).memory.gathered_forward == 4 * of_layer
    assert plan(sharding=Sharding(1)).memory == plan().memory


def test_shards_that_are_kept_after_the_forward_pass():
    kept = plan(sharding=Sharding(8, reshard_after_forward=False)).memory
    assert kept.gathered_backward == 2 * (
        LLAMA_7B.parameters - 4096 - 32000 * 4096
    )  # all but the last norm and the head
    assert kept.total > memory()


def test_tied_embeddings_are_not_divided():
    tied = dataclasses.replace(LLAMA_7B, tied_embeddings=True)
    sharded = plan(architecture=tied, sharding=Sharding(8)).memory
    embeddings = 2 * 32000 * 4096
    assert sharded.weights == embeddings + (2 * tied.parameters - embeddings) / 8
    assert sharded.gathered_head == 0


def test_a_tower_is_counted_where_images_pass_it():
    vision = VisionConfig(path="tower", channels=1024, layers=[6, 12, 18, 24])
    # CLIP ViT-L/14 has 303M parameters; patches, positions and norms are the rest.
    assert vision.tower_parameters == pytest.approx(303e6, rel=0.01)
    with_tower, features = (plan(vision=vision, tower=tower).memory for tower in (True, False))
    assert with_tower.weights - features.weights == 4 * vision.tower_parameters


# --- the benchmark ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "llama_3"], r"--shapes names 'llama_3'\. Choose from 4_layers, .*llama_13b"),
        (["--dtypes", "float16"], r"--dtypes names 'float16'\. Choose from float32, bfloat16\."),
        (["--batching", "packed"], r"--batching names 'packed'\. Choose from flat, padded\."),
        (["--activation-checkpointing", "all"], r"--activation-checkpointing names 'all'\. Choose from none, layer, "),
    ],
)
def test_the_benchmark_refuses_what_is_no_choice(arguments, message, capsys):
    with pytest.raises(SystemExit):
        plan_memory.main(arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_needs_a_gpu_for_cuda(capsys):
    with pytest.raises(SystemExit):
        plan_memory.main(["--device", "cuda"])
    assert "--device is cuda, but torch sees no GPU. Leave it out for the CPU." in capsys.readouterr().err


def test_an_encoder_is_measured_once_whatever_the_form_of_batches():
    parser = Namespace(
        device="cpu",
        shapes="encoder,decoder",
        dtypes="float32",
        batching="flat,padded",
        activation_checkpointing="none",
    )
    assert [(case.shape, case.batching) for case in plan_memory.cases_of(parser)] == [
        ("encoder", "padded"), ("decoder", "flat"), ("decoder", "padded"),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_plan_is_within_15_percent_of_resident_memory(capsys):
    """In a fresh process, where what is freed goes back at once; glibc alone keeps more, see docs/performance.md."""
    options = [
        "--shapes",
        "4_layers",
        "--dtypes",
        "float32",
        "--batching",
        "flat",
        "--activation-checkpointing",
        "none",
    ]
    plan_memory.main(options)
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    for measured in ("tensors", "returned"):
        assert line["planned"] == pytest.approx(line[measured], rel=0.15)
    assert line["baseline"] > 100


@pytest.mark.slow
def test_the_plan_is_within_15_percent_of_two_processes_with_fsdp2():
    ratios = plan_shards.main([])
    assert len(ratios) == 3
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values())


@pytest.mark.gpu
def test_the_plan_is_within_15_percent_on_a_gpu(capsys):
    ratios = plan_memory.main(["--device", "cuda", "--shapes", "llama_7b", "--activation-checkpointing", "none"])
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values())
