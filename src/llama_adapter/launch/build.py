"""Configuration to objects, and the checks that join two nodes: all of them before any weight is loaded."""

from collections.abc import Mapping
from math import ceil

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from llama_adapter.architecture import Architecture
from llama_adapter.batches import BatchConfig
from llama_adapter.launch.models import architecture_of, head_outputs, model_config, shards_weights, vision_of
from llama_adapter.launch.nodes import node
from llama_adapter.launch.requeue import cluster_plugins
from llama_adapter.launch.schema import check_keys
from llama_adapter.memory import Sharding
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
    _check_cache(config, shape)
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
        nodes=config.trainer.num_nodes,
        sharding=sharding_of(config),
        activation_checkpointing=config.trainer.activation_checkpointing,
        vision=vision_of(config),
        tower=not config.task.get("features"),
        accumulation=accumulation,
        head_outputs=head_outputs(config),
    )


def sharding_of(config: DictConfig) -> Sharding | None:
    """How the trainer's strategy divides the frozen weights; None where every device holds them all."""
    if not shards_weights(config):
        return None
    strategy, devices = config.trainer.strategy, device_count(config)
    keys = ("reshard_after_forward", "prefetch_layers", "across_nodes")
    given = {key: strategy[key] for key in keys if key in strategy}
    shared_by = devices if given.get("across_nodes") else devices // config.trainer.num_nodes
    return Sharding(shared_by, gloo=config.trainer.accelerator == "cpu", **given)


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


def _check_cache(config: DictConfig, shape: Architecture) -> None:
    """What is read from disk must be the same in every epoch, for one device."""
    if not config.data.cache_frozen:
        return
    devices, layers = device_count(config), config.adapter.prompt_layers
    reasons = {
        f"task={config.task.name} trains an encoder, and the cache is for decoders of text": shape.encoder_parameters,
        f"task={config.task.name} has images, and the cache is for text alone": vision_of(config),
        f"trainer.devices asks for {devices} devices in all, and the cache is for one": devices > 1,
        "the trainer's strategy shards the weights, and the cache needs them whole": shards_weights(config),
        "adapter.trained=all trains all layers: what the lower ones put out changes": config.adapter.trained == "all",
        "with model.dropout=true the lower layers put out something else every time": config.model.dropout,
        f"adapter.prompt_layers is {layers} of {shape.layers} layers: none is below": layers == shape.layers,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"data.cache_frozen is true, but {reason}. Set data.cache_frozen=false.")


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
    if tasks := HydraConfig.get().launcher.get("tasks_per_node"):  # a cluster's scheduler starts the devices
        if tasks == config.trainer.devices and HydraConfig.get().launcher.nodes == config.trainer.num_nodes:
            return
        raise ValueError(
            f"hydra.launcher asks the cluster for {tasks} processes on each of {HydraConfig.get().launcher.nodes} "
            f"nodes, but the trainer has {config.trainer.devices} devices on each of {config.trainer.num_nodes}. "
            "hydra.launcher.tasks_per_node must be trainer.devices, and hydra.launcher.nodes trainer.num_nodes."
        )
    raise ValueError(
        f"A sweep in one process cannot use {device_count(config)} devices: every one of them would run its own sweep. "
        "Use hydra/launcher=subprocess, which starts each job as a run of its own, or trainer.devices=1."
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
    options = {"logger": False, "enable_checkpointing": False, "plugins": cluster_plugins()}
    return node(without_own_keys(config), "trainer", **options)


def trainer(
    config: DictConfig, plan: Plan, *, resumed_step: int | None = None, run_ids: Mapping[str, str] | None = None
):
    """The Lightning Trainer with its callbacks and loggers.

    Args:
        config: composed.
        plan: for the accumulation.
        resumed_step: where a resumed run goes on; its CSV rows up to there are kept.
        run_ids: under which the loggers of a resumed run know it.
    """
    from llama_adapter.launch.loggers import loggers_of  # Lightning takes seconds to import

    return node(
        without_own_keys(config),
        "trainer",
        accumulate_grad_batches=plan.accumulation,
        plugins=cluster_plugins(),
        callbacks=[node(config.callbacks, name) for name in config.callbacks],
        logger=loggers_of(config, job_type="train", resumed_step=resumed_step, run_ids=run_ids),
    )


def without_own_keys(config: DictConfig) -> DictConfig:
    """The configuration with a trainer node that holds Lightning's arguments alone."""
    config = config.copy()
    with open_dict(config):
        for key in OWN_TRAINER_KEYS:
            del config.trainer[key]
    return config


def check_devices(config: DictConfig) -> None:
    """Whether this machine has the trainer's GPUs.

    Raises:
        ValueError: there are fewer; or the weights are quantised, whose parts are no weights.
    """
    if config.trainer.get("accelerator") == "gpu":
        import torch

        devices, found = config.trainer.devices, torch.cuda.device_count()
        wanted = devices if isinstance(devices, int) else max(devices, default=-1) + 1
        if found < wanted:
            reason = "" if torch.backends.cuda.is_built() else f" (torch {torch.__version__} is built without CUDA)"
            raise ValueError(
                f"trainer.devices asks for {wanted} GPUs on a machine, and torch sees {found} on this one{reason}. "
                "Run it where they are, choose another trainer (trainer=cpu), or see what it would do with plan=true."
            )
    if shards_weights(config) and config.model.quantization is not None:
        raise ValueError(
            f"model.quantization is {config.model.quantization}, but FSDP2 shards plain weights alone. Set it to null, "
            "or choose a trainer that holds the whole model (trainer=8xa100_ddp)."
        )
