"""The arithmetic of a run against counted parameters, the paper's numbers and the authors' table."""

import dataclasses
import json

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from llama_adapter.architecture import Architecture, Hardware, difference
from llama_adapter.attach import attach
from llama_adapter.backbones import FAMILIES, layers_of
from llama_adapter.batches import BatchConfig
from llama_adapter.memory import Sharding
from llama_adapter.optim import OptimizerConfig
from llama_adapter.plan import Plan, make_plan
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import FAMILY_SHAPES, ROOT, tiny_encoder, tiny_model

LLAMA_7B = Architecture(
    hidden_size=4096, intermediate_size=11008, layers=32, heads=32, key_value_heads=32, head_size=128,
    vocabulary_size=32000, max_positions=2048,
)  # fmt: skip


def plan(**changed) -> Plan:
    """The paper's Alpaca run: LLaMA-7B, K = 10, L = 30, 52,002 examples, 5 epochs, a global batch of 64."""
    return make_plan(**{
        "model": "llama_7b",
        "architecture": LLAMA_7B,
        "hardware": Hardware(name="8xa100", memory_gib=80.0),
        "adapter": AdapterConfig(prompt_length=10, prompt_layers=30),
        "batches": BatchConfig(global_batch_size=64, micro_batch_size=4),
        "optimizer": OptimizerConfig(),
        "devices": 8,
        "max_epochs": 5,
        "max_steps": -1,
        "examples": 52_002,
        "tokens_per_example": 123.0,
        "max_length": 512,
        "dtype": "bfloat16",
        "quantization": None,
    } | changed)  # fmt: skip


def text(made: Plan, title: str) -> str:
    return dict(made.lines())[title]


# --- parameters -----------------------------------------------------------------------------------------------------


def test_the_papers_number():
    """LLaMA-Adapter (arXiv 2303.16199), Table 1: 1.2M."""
    assert plan().trainable_parameters == 1_229_760
    assert "1,229,760 (K=10, L=30 of 32 layers)" in text(plan(), "trainable parameters")


def test_the_authors_table(shared):
    for count in json.loads((shared / "golden/parameter_counts.json").read_text())["counts"]:
        shape = dataclasses.replace(
            LLAMA_7B, hidden_size=count["dim"], heads=count["n_heads"], layers=count["n_layers"]
        )
        adapter = AdapterConfig(prompt_length=count["adapter_len"], prompt_layers=count["adapter_layer"])
        assert plan(architecture=shape, adapter=adapter).trainable_parameters == count["total"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILY_SHAPES)
def test_parameters_are_those_of_the_model(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    shape = Architecture.from_config(model.config)
    assert shape.tied_embeddings is tied
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    projections = sum(p.numel() for name, p in model.named_parameters() if "_proj.weight" in name)
    assert shape.layers * shape.layer_weights == projections
    adapter = AdapterConfig(prompt_length=3, prompt_layers=2)
    attach(model, adapter)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan(architecture=shape, adapter=adapter, max_length=64).trainable_parameters == expected


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases(biases):
    """LLaMA's `attention_bias` gives the output projection one too."""
    model = tiny_model("llama", **biases)
    assert Architecture.from_config(model.config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_parameters_of_a_layer(shape):
    model = tiny_model(shape)
    layer = sum(parameter.numel() for parameter in layers_of(model)[0].parameters())
    assert Architecture.from_config(model.config).layer_parameters == layer


@pytest.mark.parametrize("shape", ["roberta", "bert", "vit"])
def test_parameters_of_an_encoders_layer(shape):
    model = tiny_encoder(shape)
    layer = sum(parameter.numel() for parameter in layers_of(model)[0].parameters())
    assert Architecture.from_config(model.config).layer_parameters == layer


def test_a_head_size_of_its_own():
    model = tiny_model("mistral", head_dim=16)
    shape = Architecture.from_config(model.config)
    assert shape.head_size == 16 != shape.hidden_size // shape.heads
    assert shape.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("path", sorted((ROOT / "conf/model").glob("*_*b.yaml")), ids=lambda path: path.stem)
def test_architectures_of_the_config_files_are_models(path):
    """Counted on transformers' own classes, made without memory for their weights."""
    shape = Architecture(**yaml.safe_load(path.read_text())["architecture"])
    config = AutoConfig.for_model(
        next(family for family in FAMILIES if path.stem.startswith(family)),
        vocab_size=shape.vocabulary_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=shape.tied_embeddings,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_published_sizes():
    """LLaMA (arXiv 2302.13971), Table 2, which cuts off after one digit."""
    for name, billions in (("llama_7b", 6.7), ("llama_13b", 13.0), ("llama_30b", 32.5), ("llama_65b", 65.2)):
        values = yaml.safe_load((ROOT / f"conf/model/{name}.yaml").read_text())["architecture"]
        assert Architecture(**values).parameters // 10**8 / 10 == billions


# --- steps and learning rate ----------------------------------------------------------------------------------------


def test_the_papers_run():
    made = plan()
    assert made.learning_rate == pytest.approx(2.25e-3, rel=1e-12)
    assert (made.micro_batch_size, made.accumulation) == (4, 2)
    assert made.steps_per_epoch == 813  # 52,002 / 64 = 812.5
    assert made.steps == 4065
    assert made.warnings == []
    assert text(made, "learning rate") == "0.00225 (base 0.009 x 64 / 256), warm-up 2 of 5 epochs"
    assert text(made, "global batch") == "64 = 8 devices x 4 examples x 2 accumulated"
    assert text(made, "steps") == "4,065 (813 per epoch of 52,002 examples)"
    assert text(made, "tokens per step") == "about 7,872 (123.0 per example, at most 512)"


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "steps", "epochs"),
    [(5, -1, 15, 5.0), (5, 100, 15, 5.0), (5, 15, 15, 5.0), (5, 6, 6, 2.0), (5, 7, 7, 2 + 8 / 22), (5, 0, 0, 0.0)],
)
def test_steps(max_epochs, max_steps, steps, epochs):
    """The same as the run itself: see `ExampleDataModule.epochs`."""
    made = plan(examples=22, batches=BatchConfig(8, 2), devices=1, max_epochs=max_epochs, max_steps=max_steps)
    assert (made.steps_per_epoch, made.steps) == (3, steps)
    assert made.epochs == pytest.approx(epochs)


def test_a_run_within_its_warmup_is_warned_of():
    assert plan(max_epochs=2).warnings == [
        "the run of 2 epochs ends within its warm-up of 2: the learning rate never reaches its peak"
    ]
    assert plan(max_steps=813).warnings and not plan(max_epochs=3).warnings


# --- what is printed -------------------------------------------------------------------------------------------------


def test_too_little_memory_is_warned_of():
    (warning,) = plan(hardware=Hardware(name="laptop", memory_gib=8.0)).warnings
    assert warning.endswith(
        "GiB are needed and laptop has 8: lower data.micro_batch_size or data.max_tokens, set "
        "trainer.activation_checkpointing=layer, shard the weights, or quantise the model"
    )
    lean = {"activation_checkpointing": "layer", "quantization": "int8", "sharding": Sharding(8, prefetch_layers=30)}
    (warning,) = plan(hardware=Hardware(name="watch", memory_gib=0.5), **lean).warnings
    assert warning.endswith("GiB are needed and watch has 0.5: lower data.micro_batch_size or data.max_tokens")
    needed = plan().memory.total / 2**30
    (warning,) = plan(hardware=Hardware(name="laptop", memory_gib=8.0)).warnings
    assert warning.startswith(f"about {needed:.1f} GiB")
    assert not plan(hardware=Hardware(name="unknown")).warnings
    assert f"at most about {needed:.2f} of 80 GiB (weights " in text(plan(), "memory per device")


def test_text():
    made = plan(max_epochs=1)
    lines = str(made).splitlines()
    assert lines[0] == "model                 llama_7b: 6,738,415,616 frozen in bfloat16"
    assert [line.split("  ")[0] for line in lines] == [
        "model", "trainable parameters", "global batch", "learning rate", "steps", "tokens per step",
        "FLOPs per step", "memory per device", "expected time", "warning",
    ]  # fmt: skip


# --- what does not fit together -------------------------------------------------------------------------------------


def test_too_many_layers():
    with pytest.raises(ValueError) as caught:
        plan(adapter=AdapterConfig(prompt_layers=40))
    assert str(caught.value) == ("adapter.prompt_layers is 40, but llama_7b has 32 layers. Choose 1 to 32.")


def test_too_long():
    with pytest.raises(ValueError) as caught:
        plan(max_length=4096)
    assert str(caught.value) == (
        "task.data.max_length is 4096, but llama_7b was made for 2048 tokens. Choose at most 2048."
    )


def test_devices_that_cannot_share_the_batch():
    with pytest.raises(ValueError, match=r"^data\.global_batch_size is 64, which 7 devices cannot share evenly\."):
        plan(devices=7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peak_tflops": 0.0}, "hardware.peak_tflops must be above 0, or null where unknown, got 0.0."),
        ({"link_bandwidth": -1.0}, "hardware.link_bandwidth must be above 0, or null where unknown, got -1.0."),
        ({"utilization": 1.5}, "hardware.utilization must be above 0 and at most 1, got 1.5."),
        ({"memory_gib": -8.0}, "hardware.memory_gib must be at least 0, which is unknown, got -8.0."),
        ({"threads": 0}, "hardware.threads must be at least 1, or null for all, got 0."),
    ],
)
def test_hardware_that_there_cannot_be(given, message):
    with pytest.raises(ValueError) as caught:
        Hardware(**given)
    assert str(caught.value) == message


def test_difference():
    declared = vars(LLAMA_7B)
    assert difference(LLAMA_7B, declared) == ""
    other = dataclasses.replace(LLAMA_7B, layers=40, hidden_size=5120)
    assert difference(other, declared) == "hidden_size is 5120, declared 4096, layers is 40, declared 32"
    assert difference(other, {"vocabulary_size": 32000, "layers": 0}) == "", "what is not declared is not compared"
