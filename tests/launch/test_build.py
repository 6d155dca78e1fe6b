"""Configuration to objects: the checks that join nodes, all before any weight is read."""

import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from llama_adapter.architecture import Architecture
from llama_adapter.csv_logger import RunCsvLogger
from llama_adapter.distributed import ShardedStrategy
from llama_adapter.launch import build, models, nodes
from llama_adapter.launch.entry import register_resolvers
from llama_adapter.launch.schema import register_schemas
from llama_adapter.run_checkpoint import RunCheckpoint
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import ROOT, tiny_model
from tests.tiny_run import TinyWorld, make_tokenizer, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


def config(*overrides: str) -> DictConfig:
    register_schemas()
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["output_dir=/nowhere", *overrides])


def tiny(world: TinyWorld, *overrides: str) -> DictConfig:
    return config(*world.overrides(None), *overrides)


def test_a_node_becomes_its_dataclass():
    given = nodes.node(config("adapter.prompt_length=4", "adapter.prompt_layers=3"), "adapter")
    assert given == AdapterConfig(prompt_length=4, prompt_layers=3)
    assert isinstance(nodes.node(config(), "optimizer").betas, tuple)


def test_a_node_that_names_nothing():
    with pytest.raises(ValueError, match="^callbacks: Error locating target 'llama_adapter.nothing'"):
        nodes.node(DictConfig({"callbacks": {"_target_": "llama_adapter.nothing"}}), "callbacks")


def test_the_paper_run_is_planned_without_weights(no_weights):
    plan = build.plan_run(config("task=alpaca", "trainer=8xa100"))
    assert plan.trainable_parameters == 1_229_760  # arXiv 2303.16199: 1.2M; K=10, L=30
    assert plan.learning_rate == pytest.approx(0.00225)
    assert (plan.devices, plan.global_batch_size, plan.micro_batch_size, plan.accumulation) == (8, 64, 8, 1)


@pytest.mark.parametrize(
    ("overrides", "devices"),
    [(["trainer.devices=3"], 3), (["trainer.devices=[0,2]"], 2), (["trainer.devices=4", "trainer.num_nodes=2"], 8)],
)
def test_devices(overrides, devices):
    assert build.device_count(config(*overrides)) == devices


@pytest.mark.parametrize("value", ["auto", "-1", "'2'"])
def test_devices_of_no_known_number(value):
    with pytest.raises(ValueError, match=r"^trainer.devices is .*\. Give their number, or a list of their indices\.$"):
        build.device_count(config(f"trainer.devices={value}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=alpaca", "trainer=8xa100", "adapter.prompt_layers=40"],
            "adapter.prompt_layers is 40, but llama_7b has 32 layers. Choose 1 to 32.",
        ),
        (
            ["task=alpaca", "trainer=8xa100", "data.global_batch_size=12"],
            "data.global_batch_size is 12, which 8 devices cannot share evenly. Choose a multiple of 8.",
        ),
        (
            ["task=alpaca", "task.data.max_length=4096"],
            "task.data.max_length is 4096, but llama_7b was made for 2048 tokens. Choose at most 2048.",
        ),
        (["trainer.max_steps=-2"], "trainer.max_steps must be a whole number of at least -1, got -2."),
        (["task.data.max_length=1.5"], "task.data.max_length must be a whole number of at least 4, got 1.5."),
        (["seed=true"], "seed must be a whole number of at least 0, got True."),
    ],
)
def test_a_plan_refuses_what_does_not_fit_together(overrides, message, no_weights):
    with pytest.raises(ValueError) as error:
        build.plan_run(config(*overrides))
    assert str(error.value) == message


def test_the_architecture_comes_from_the_weights_where_they_are(world, tmp_path):
    found = models.architecture_of(models.model_config(tiny(world)))
    assert (found.hidden_size, found.layers, found.heads) == (32, 3, 4)
    declared = models.architecture_of(models.model_config(config("model=llama_7b", f"model.path={tmp_path}/none")))
    assert (declared.hidden_size, declared.layers) == (4096, 32)
    assert isinstance(declared, Architecture)


def test_missing_weights(no_weights, world, tmp_path):
    message = (
        f"No weights of miniature_llama at {tmp_path}/none. Set model.path=<folder> (Hugging Face layout, or Meta's with "
        "params.json), or LLAMA_ADAPTER_WEIGHTS to the folder that holds it."
    )
    nowhere = tiny(world, f"model.path={tmp_path}/none", f"model.tokenizer={world.model}")
    for look in (
        lambda: models.architecture_of(models.model_config(nowhere)),
        lambda: models.backbone(nowhere),
    ):
        with pytest.raises(FileNotFoundError) as error:
            look()
        assert str(error.value) == message
    with pytest.raises(FileNotFoundError) as error:
        models.tokenizer(tiny(world, f"model.path={tmp_path}/none"))
    assert str(error.value) == f"No tokenizer at {tmp_path}/none. Set model.tokenizer=<file or folder>. {message}"


def test_a_missing_tokenizer_beside_weights(world, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        models.tokenizer(tiny(world, f"model.tokenizer={tmp_path}/none"))
    assert str(error.value) == f"No tokenizer at {tmp_path}/none. Set model.tokenizer=<file or folder>."


def test_a_tokenizer_with_more_ids_than_embeddings(world, tmp_path, no_weights):
    tiny_model("llama", vocab_size=100).save_pretrained(tmp_path)
    given = tiny(world, f"model.path={tmp_path}", f"model.tokenizer={world.model}")
    with pytest.raises(ValueError) as error:
        models.backbone(given)
    assert str(error.value) == (
        f"The tokenizer {world.model} has 340 ids, but the model has embeddings for 100. "
        "Set model.tokenizer to the tokenizer that the model was trained with."
    )


def test_the_data_module_takes_batches_and_seed(world):
    data = build.data_module(tiny(world, "seed=3"), make_tokenizer(world.model))
    assert (data.seed, data.batches.global_batch_size, data.batches.micro_batch_size) == (3, 4, 2)
    assert (len(data.train_dataset), len(data.validation_dataset), len(data.test_dataset)) == (24, 4, 4)


def test_a_trainer_with_callbacks_logger_and_accumulation(world, tmp_path):
    given = tiny(world, f"output_dir={tmp_path}")
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.4\n3,0.3\n")
    trainer = build.trainer(given, build.plan_run(given), resumed_step=2)
    assert trainer.accumulate_grad_batches == 2
    assert any(isinstance(callback, RunCheckpoint) for callback in trainer.callbacks)
    (logger,) = trainer.loggers
    assert isinstance(logger, RunCsvLogger)
    assert list(logger.rows) == [1, 2]
    assert not build.evaluation_trainer(given).loggers


def test_a_strategy_by_name(world, tmp_path):
    given = tiny(world, f"output_dir={tmp_path}", "trainer.strategy=ddp", "trainer.devices=2")
    assert isinstance(build.trainer(given, build.plan_run(given)).strategy, DDPStrategy)


def test_gpus_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for devices, found in (("8", "asks for 8 GPUs"), ("[0,5]", "asks for 6 GPUs")):
        given = config("task=alpaca", "trainer=8xa100", f"trainer.devices={devices}", f"output_dir={tmp_path}")
        with pytest.raises(ValueError, match=f"{found} on a machine, and torch sees 3 on this one") as error:
            build.check_devices(given)
        assert "Run it where they are, choose another trainer (trainer=cpu)" in str(error.value)
    build.check_devices(config("task=alpaca", "trainer=8xa100", "trainer.devices=3", f"output_dir={tmp_path}"))
    build.check_devices(config("task=alpaca", "trainer=cpu", f"output_dir={tmp_path}"))


def test_quantised_weights_have_no_shards(world, tmp_path):
    given = tiny(world, "trainer=cpu_2", "model.quantization=nf4", f"output_dir={tmp_path}")
    with pytest.raises(ValueError, match="model.quantization is nf4, but FSDP2 shards plain weights alone.*8xa100_ddp"):
        build.check_devices(given)


@pytest.mark.parametrize(
    ("trainer", "devices", "kind"),
    [("cpu_2", 2, ShardedStrategy), ("cpu_2_ddp", 2, DDPStrategy)],
)
def test_the_strategies_of_the_trainers(world, tmp_path, trainer, devices, kind):
    given = tiny(world, f"trainer={trainer}", f"output_dir={tmp_path}")
    made = build.trainer(given, build.plan_run(given))
    assert made.world_size == devices
    assert isinstance(made.strategy, kind)
    assert made.strategy._timeout.total_seconds() == 300


def test_an_adapter_is_checked_before_weights_are_read(world, tmp_path, no_weights):
    from llama_adapter.attach import attach
    from llama_adapter.checkpoint import save_adapter

    other = attach(tiny_model("llama", hidden_size=16), AdapterConfig(prompt_length=2, prompt_layers=1))
    save_adapter(other, tmp_path)
    given = tiny(world, f"adapter_path={tmp_path}")
    with pytest.raises(ValueError, match="does not fit this backbone: hidden_size 16 in the adapter, 32 in the model"):
        models.adapted_backbone(given)


def test_a_plan_of_the_real_data_counts_it(world):
    given = tiny(world, "data.global_batch_size=4", "data.max_tokens=60")
    data = build.data_module(given, models.tokenizer(given))
    plan = build.plan_run(given, data)
    assert plan.examples == len(data.train_dataset) != build.plan_run(given).examples
    assert plan.steps == 2 * plan.steps_per_epoch
    assert plan.accumulation == data.accumulation(1, 2.0) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task=squad_v1", "model=llama_7b"), "squad_v1 needs an encoder of text, but model=llama_7b is a decoder."),
        (("task=alpaca", "model=roberta_large"), "needs a decoder, but model=roberta_large is an encoder of text."),
        (("task=vtab1k/cifar", "model=roberta_large"), "needs an encoder of images, but model=roberta_large is an"),
        (("task=squad_v2", "model=vit_b16"), "needs an encoder of text, but model=vit_b16 is an encoder of images."),
        (("task=squad_v2", "task.head=token"), "task.head is 'token'. Choose language, span, classification."),
    ],
)
def test_a_model_that_does_not_fit_the_task(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build.plan_run(config(*overrides))
