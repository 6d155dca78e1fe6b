"""Configuration to objects, and the checks that join two nodes: all of them before any weight is loaded."""

import importlib.util
from math import ceil

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from llama_adapter.architecture import Architecture
from llama_adapter.batches import BatchConfig
from llama_adapter.launch.models import architecture_of, head_outputs, model_config, vision_of
from llama_adapter.launch.nodes import node
from llama_adapter.launch.schema import check_keys
from llama_adapter.plan import Plan, make_plan

# The numbers of nodes without a schema that a plan needs, and the smallest value of each.
WHOLE_NUMBERS = {
    "seed": 0,
    "trainer.max_epochs": -1,
    "trainer.max_steps": -1,
    "trainer.num_nodes": 1,
    "task.examples": 1,
    "task.data.max_length": 4,
}

OWN_TRAINER_KEYS = ("compile", "activation_checkpointing")  # `prepare_layers` reads them, Lightning does not know them


def device_count(config: DictConfig) -> int:
    """Devices over all nodes, from the trainer's node.

    Raises:
        ValueError: `devices` is neither a number nor a list.
    """
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    if isinstance(devices, ListConfig):
        return len(devices) * nodes
    if isinstance(devices, int) and devices > 0:
        return devices * nodes
    raise ValueError(f"trainer.devices is {devices!r}. Give their number, or a list of their indices.")


def plan_run(config: DictConfig, data=None) -> Plan:
    """The plan of a run.

    Args:
        config: composed.
        data: the DataModule, set up, to count in; without it what the task's file says of it is taken.

    Raises:
        ValueError, FileNotFoundError: something in the configuration does not fit together.
    """
    check_keys(config)
    _check_whole_numbers(config)
    _check_in_process_sweep(config)
    model, devices, accumulation = model_config(config), device_count(config), None
    shape = architecture_of(model)
    _check_head(config, shape)
    # Images are all of one length, which the model says.
    examples, tokens_per_example = config.task.examples, config.task.tokens_per_example or shape.image_tokens
    if data is not None:
        examples, tokens_per_example = len(data.train_dataset), data.train_dataset.tokens / len(data.train_dataset)
        accumulation = data.accumulation(devices, data.epochs(config.trainer.max_epochs, config.trainer.max_steps))
    return make_plan(
        model=model.name,
        architecture=shape,
        hardware=node(config, "hardware"),
        adapter=node(config, "adapter"),
        batches=batches_of(config),
        optimizer=node(config, "optimizer"),
        devices=devices,
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        examples=examples,
        tokens_per_example=tokens_per_example,
        max_length=config.task.data.get("max_length") or ceil(tokens_per_example),
        dtype=model.dtype,
        quantization=model.quantization,
        activation_checkpointing=config.trainer.activation_checkpointing,
        vision=vision_of(config),
        accumulation=accumulation,
        head_outputs=head_outputs(config),
    )


# What each kind of output needs.
MODEL_OF_HEAD = {"language": "a decoder", "span": "an encoder of text", "classification": "an encoder of images"}


def _check_head(config: DictConfig, shape: Architecture) -> None:
    head = config.task.get("head", "language")
    if head not in MODEL_OF_HEAD:
        raise ValueError(f"task.head is {head!r}. Choose {', '.join(MODEL_OF_HEAD)}.")
    needed = MODEL_OF_HEAD[head]
    given = f"an encoder of {'images' if shape.image_size else 'text'}" if shape.encoder_parameters else "a decoder"
    if needed != given:
        raise ValueError(
            f"task={config.task.name} needs {needed}, but model={config.model.name} is {given}. Choose another model, "
            "or leave model out."
        )


def _check_whole_numbers(config: DictConfig) -> None:
    for key, least in WHOLE_NUMBERS.items():
        parent, _, name = key.rpartition(".")
        if parent and name not in OmegaConf.select(config, parent):
            continue  # a task of images has no max_length
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key} must be a whole number of at least {least}, got {value!r}.")


def _check_in_process_sweep(config: DictConfig) -> None:
    """Lightning starts the other devices by repeating the command line: each would run a sweep of its own."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN or device_count(config) == 1:
        return
    raise ValueError(
        f"A sweep in one process cannot use {device_count(config)} devices: every one of them would run its own sweep. "
        "Use trainer.devices=1, or start one run per setting."
    )


def batches_of(config: DictConfig) -> BatchConfig:
    """Sizes of batches; rows for an encoder, whatever the trainer's file says of flat ones."""
    batches = node(config, "data")
    return batches if config.task.get("head", "language") == "language" else batches.rows()


def data_module(config: DictConfig, tokenizer):
    """The task's DataModule, set up: the data is read and encoded."""
    options = {"tokenizer": tokenizer, "batches": batches_of(config), "seed": config.seed}
    if config.task.get("head") == "classification":
        shape = architecture_of(model_config(config))
        options |= {"model_image_size": shape.image_size, "model_patch_size": shape.patch_size}
    if vision := vision_of(config):
        from llama_adapter.images import ImageFeatures, feature_settings

        stored = config.task.get("features")
        settings = feature_settings(vision.path, vision.layers, vision.patch_mean) if stored else None
        root = config.task.data.root
        options["image_reader"] = ImageFeatures(vision.path, features=stored, root=root, settings=settings)
    data = node(config.task, "data", **options)
    data.setup()
    return data


def evaluation_trainer(config: DictConfig):
    """A Lightning Trainer that only tests: nothing is logged or saved."""
    _check_strategy(config)
    return node(without_own_keys(config), "trainer", logger=False, enable_checkpointing=False)


def trainer(config: DictConfig, plan: Plan, *, resumed_step: int | None = None):
    """The Lightning Trainer with its callbacks and loggers.

    Args:
        config: composed.
        plan: for the accumulation.
        resumed_step: where a resumed run goes on; its CSV rows up to there are kept.

    Raises:
        ValueError: the strategy or the logger is not available.
    """
    _check_strategy(config)
    if "wandb" in config.logger and importlib.util.find_spec("wandb") is None:
        raise ValueError("logger=wandb needs the package wandb: pip install wandb, or use logger=csv.")
    loggers = [node(config.logger, name) for name in config.logger]
    if resumed_step is not None:
        for logger in loggers:
            if hasattr(logger, "keep_until"):
                logger.keep_until(resumed_step)
    return node(
        without_own_keys(config),
        "trainer",
        accumulate_grad_batches=plan.accumulation,
        callbacks=[node(config.callbacks, name) for name in config.callbacks],
        logger=loggers,
    )


def without_own_keys(config: DictConfig) -> DictConfig:
    """The configuration with a trainer node that holds Lightning's arguments alone."""
    config = config.copy()
    with open_dict(config):
        for key in OWN_TRAINER_KEYS:
            del config.trainer[key]
    return config


def _check_strategy(config: DictConfig) -> None:
    strategy = config.trainer.get("strategy")
    if isinstance(strategy, DictConfig) and strategy._target_.endswith("ModelParallelStrategy"):
        raise ValueError(
            "trainer.strategy is FSDP2 (ModelParallelStrategy), which can be planned (plan=true) but not run yet. "
            "trainer=8xa100_ddp trains the same on the same devices: every one of them holds the whole frozen model."
        )
