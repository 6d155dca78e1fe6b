"""The model of a run: its settings, what it is checked against, and the frozen backbone with all that is attached."""

import logging
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llama_adapter.architecture import Architecture, VisionConfig, difference
from llama_adapter.launch.nodes import node
from llama_adapter.launch.schema import ModelConfig, suggestion

log = logging.getLogger(__name__)


def model_config(config: DictConfig) -> ModelConfig:
    """The model's node, its architecture as a plain dataclass."""
    values = OmegaConf.to_container(config.model, resolve=True)
    values.pop("_target_")
    architecture, vision = values["architecture"], values["vision"]
    for name, kind, given in (
        ("model", ModelConfig, values),
        ("model.architecture", Architecture, architecture),
        ("model.vision", VisionConfig, vision),
    ):
        known = {f.name for f in fields(kind)}
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


def head(config: DictConfig):
    """What the task puts out, an entry of `heads.HEADS`.

    Raises:
        ValueError: there is no such entry.
    """
    from llama_adapter.heads import head_of

    return head_of(config.task.get("head", "language"))


def head_outputs(config: DictConfig) -> int:
    """Numbers that the head of an encoder gives at a position: start and end, or one for every class."""
    return {"span": 2, "classification": config.task.data.get("classes", 0)}.get(config.task.get("head"), 0)


def tokenizer(config: DictConfig):
    """The model's tokenizer, of the kind that the task's head needs; None for images.

    Raises:
        FileNotFoundError: it is not there; says what to set.
    """
    from llama_adapter.loading import is_hub_id

    model, load = model_config(config), head(config).load_tokenizer
    if load is None:
        return None
    if model.tokenizer is None:
        raise ValueError(f"task={config.task.name} needs a tokenizer, but model.tokenizer is null. Set it to a folder.")
    path = Path(model.tokenizer)
    if not path.exists() and not is_hub_id(model.tokenizer):
        hint = "" if Path(model.path).is_dir() else f" {missing_weights(model)}"
        raise FileNotFoundError(f"No tokenizer at {path}. Set model.tokenizer=<file or folder>.{hint}")
    return load(model.tokenizer)


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
    return load_backbone(
        model.path,
        dtype=model.dtype,
        quantization=model.quantization,
        device="meta" if reads_shards(config) else None,
        tokenizer=model.tokenizer,
        model_class=head(config).model_class,
        classes=config.task.data.get("classes"),
    )


def shards_weights(config: DictConfig) -> bool:
    """Whether the trainer divides the frozen weights among the devices."""
    strategy = config.trainer.get("strategy")
    return isinstance(strategy, DictConfig) and strategy._target_.endswith("ShardedStrategy")


def reads_shards(config: DictConfig) -> bool:
    """Whether every device reads its part of the weights alone. An encoder is small, and its head is new: it is read
    whole, and divided then."""
    return shards_weights(config) and config.task.get("head", "language") == "language"


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
