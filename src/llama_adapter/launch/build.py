"""Configuration to objects, and the checks that join two nodes: all of them before any weight is loaded."""

import importlib.util
import logging
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from llama_adapter.launch.schema import ModelConfig, check_keys, suggestion
from llama_adapter.plan import Architecture, Plan, VisionConfig, difference, make_plan

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

log = logging.getLogger(__name__)


def node(config: DictConfig, name: str, **values: object) -> object:
    """Builds one node from plain values.

    Args:
        config: the parent.
        name: of the node.
        values: further arguments, handed over as they are (Hydra would turn a dataclass into a config).

    Raises:
        ValueError: an argument that the constructor does not have; or the constructor's own error.
    """
    try:
        factory = instantiate(config[name], _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        return factory(**values)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"{name}: {error}.{_nearest_key(error, config[name])}") from error


def _nearest_key(error: TypeError, known: Iterable[str]) -> str:
    surplus = re.search(r"unexpected keyword argument '([^']+)'", str(error))
    return suggestion(surplus[1], {*known} - {surplus[1]}) if surplus else ""


def model_config(config: DictConfig) -> ModelConfig:
    """The model's node, its architecture as a plain dataclass."""
    values = OmegaConf.to_container(config.model, resolve=True)
    values.pop("_target_")
    architecture, vision = values["architecture"], values["vision"]
    for name, node, given in (
        ("model", ModelConfig, values),
        ("model.architecture", Architecture, architecture),
        ("model.vision", VisionConfig, vision),
    ):
        known = {f.name for f in fields(node)}
        if surplus := sorted(given.keys() - known):
            raise ValueError(f"Unknown key '{name}.{surplus[0]}'.{suggestion(surplus[0], known)}")
    nodes = {"architecture": Architecture(**architecture), "vision": VisionConfig(**vision)}
    return ModelConfig(**{**values, **nodes})


def vision_of(config: DictConfig) -> VisionConfig | None:
    """The tower of a run with images, None for one with text alone.

    Raises:
        ValueError: the task has images, but the model has no tower.
    """
    if not config.task.data.get("images", False):
        return None
    vision = model_config(config).vision
    if not vision.path:
        raise ValueError(
            f"task={config.task.name} has images, but model={config.model.name} has no vision tower. Choose a model "
            "with one (model=llama_7b_clip), set model.vision.path, or task.data.images=false for text alone."
        )
    return vision


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


def architecture_of(model: ModelConfig) -> Architecture:
    """From the weights' folder where it is there, else from the config file.

    Raises:
        FileNotFoundError: neither says it.
    """
    if not Path(model.path).is_dir():
        if model.architecture.layers:
            return model.architecture
        raise FileNotFoundError(missing_weights(model))
    from llama_adapter.loading import backbone_config  # transformers takes seconds to import

    found = Architecture.from_config(backbone_config(model.path))
    differing = difference(found, vars(model.architecture)) if model.architecture.layers else ""
    if differing:
        log.warning(
            "The weights in %s have another shape than model=%s: %s. Theirs is used.", model.path, model.name, differing
        )
    return found


def missing_weights(model: ModelConfig) -> str:
    """What to do when the weights of a model are not there."""
    return (
        f"No weights of {model.name} at {model.path}. Set model.path=<folder> (Hugging Face layout, or Meta's with "
        "params.json), or LLAMA_ADAPTER_WEIGHTS to the folder that holds it."
    )


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
    examples, tokens_per_example = config.task.examples, config.task.tokens_per_example
    if data is not None:
        examples, tokens_per_example = len(data.train_dataset), data.train_dataset.tokens / len(data.train_dataset)
        accumulation = data.accumulation(devices, data.epochs(config.trainer.max_epochs, config.trainer.max_steps))
    return make_plan(
        model=model.name,
        architecture=architecture_of(model),
        hardware=node(config, "hardware"),
        adapter=node(config, "adapter"),
        batches=node(config, "data"),
        optimizer=node(config, "optimizer"),
        devices=devices,
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        examples=examples,
        tokens_per_example=tokens_per_example,
        max_length=config.task.data.max_length,
        dtype=model.dtype,
        quantization=model.quantization,
        activation_checkpointing=config.trainer.activation_checkpointing,
        vision=vision_of(config),
        accumulation=accumulation,
    )


def _check_whole_numbers(config: DictConfig) -> None:
    for key, least in WHOLE_NUMBERS.items():
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


def tokenizer(config: DictConfig):
    """The model's tokenizer.

    Raises:
        FileNotFoundError: it is not there; says what to set.
    """
    from llama_adapter.loading import is_hub_id
    from llama_adapter.tokenizer import load_tokenizer

    model = model_config(config)
    path = Path(model.tokenizer)
    if not path.exists() and not is_hub_id(model.tokenizer):
        hint = "" if Path(model.path).is_dir() else f" {missing_weights(model)}"
        raise FileNotFoundError(f"No tokenizer at {path}. Set model.tokenizer=<file or folder>.{hint}")
    return load_tokenizer(model.tokenizer)


def data_module(config: DictConfig, tokenizer):
    """The task's DataModule, set up: the data is read and encoded."""
    options = {"tokenizer": tokenizer, "batches": node(config, "data"), "seed": config.seed}
    if vision := vision_of(config):
        from llama_adapter.images import ImageFeatures, feature_settings

        stored = config.task.get("features")
        settings = feature_settings(vision.path, vision.layers, vision.patch_mean) if stored else None
        root = config.task.data.root
        options["image_reader"] = ImageFeatures(vision.path, features=stored, root=root, settings=settings)
    data = node(config.task, "data", **options)
    data.setup()
    return data


def backbone(config: DictConfig):
    """The frozen model.

    Raises:
        FileNotFoundError: the weights are not there.
        ValueError: the tokenizer has ids that the model has no embedding for.
    """
    from llama_adapter.loading import is_hub_id, load_backbone

    model = model_config(config)
    if not Path(model.path).is_dir() and not is_hub_id(model.path):
        raise FileNotFoundError(missing_weights(model))
    return load_backbone(model.path, dtype=model.dtype, quantization=model.quantization, tokenizer=model.tokenizer)


def image_backbone(config: DictConfig):
    """The frozen model, with the tower and its projection where the run has images."""
    vision = vision_of(config)
    if vision is None:
        return backbone(config)
    from llama_adapter.vision import ImagePrompt, attach_images, load_tower, tower_config

    tower = None if config.task.get("features") else load_tower(vision.path)
    model = backbone(config)
    image_prompt = ImagePrompt(
        tower_config(vision.path),
        tower,
        hidden_size=model.config.hidden_size,
        layers=vision.layers,
        patch_mean=vision.patch_mean,
        projection_width=vision.projection_width,
    )
    return attach_images(model, image_prompt)


def adapted_backbone(config: DictConfig):
    """The model with the adapter at `adapter_path`, checked before any weight is loaded; bare when that is null.

    Raises:
        ValueError: the adapter is of another backbone, or not whole.
    """
    from llama_adapter.adapter_file import check_compatible, read_adapter
    from llama_adapter.checkpoint import load_adapter
    from llama_adapter.fingerprint import fingerprint_of_path
    from llama_adapter.loading import backbone_config

    if not config.adapter_path:
        return image_backbone(config)
    if Path(config.adapter_path).suffix == ".pth":  # the authors' files do not say what they belong to
        adapter = node(config, "adapter")
        return load_adapter(
            backbone(config),
            config.adapter_path,
            prompt_layers=adapter.prompt_layers,
            gate_activation=adapter.gate_activation,
        )
    adapter, path = read_adapter(config.adapter_path), model_config(config).path
    if Path(path).is_dir():
        check_compatible(adapter, backbone_config(path), fingerprint_of_path(path))
    return load_adapter(image_backbone(config), config.adapter_path)


def prepare_layers(config: DictConfig, model) -> None:
    """Compiles the layers of an adapted model and limits what they keep, as `trainer` says."""
    from llama_adapter.layer_modes import checkpoint_layers, compile_layers

    if config.trainer.activation_checkpointing is not None:
        checkpoint_layers(model, config.trainer.activation_checkpointing)
    if config.trainer.compile:
        compile_layers(model)


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
