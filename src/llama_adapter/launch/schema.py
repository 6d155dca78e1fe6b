"""Typed schemas of our own config nodes, and the check for keys that nothing reads.

A schema is derived from the dataclass that the node becomes, so that names, types and defaults live in one place;
values are checked by the dataclass itself. A node of another library has no schema: its constructor's signature
checks it.
"""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from difflib import get_close_matches

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from llama_adapter.architecture import DTYPE_BYTES, QUANTIZED_BYTES, Architecture, Hardware, VisionConfig
from llama_adapter.batches import BatchConfig
from llama_adapter.optim import OptimizerConfig
from llama_adapter.zero_init import AdapterConfig


@dataclass
class ModelConfig:
    """The frozen model of a run.

    Args:
        name: for people and for the adapter's file.
        path: folder in Hugging Face's or Meta's layout, or a hub id.
        tokenizer: folder or file of its tokenizer; null for a model of images.
        dtype: of the frozen weights: float32, bfloat16 or float16.
        quantization: int8, nf4 or null.
        dropout: whether the frozen model's own dropout is on in training.
        vision: the tower of a language model that sees images.
        architecture: its shape, for plans without weights; checked against the weights. Empty: read from `path`.
    """

    name: str
    path: str
    tokenizer: str | None
    dtype: str = "bfloat16"
    quantization: str | None = None
    dropout: bool = False
    vision: VisionConfig = field(default_factory=VisionConfig)
    architecture: Architecture = field(default_factory=Architecture)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"model.dtype is {self.dtype!r}. Choose {', '.join(DTYPE_BYTES)}.")
        if self.quantization is not None and self.quantization not in QUANTIZED_BYTES:
            raise ValueError(
                f"model.quantization is {self.quantization!r}. Choose {', '.join(QUANTIZED_BYTES)} or null."
            )


REDO = ("failed", "all")


@dataclass
class SweepConfig:
    """How the jobs of a sweep are gone through; a single run takes no notice.

    Args:
        redo: jobs that begin again from nothing: failed ones, or all. None: finished jobs are not run again, and what
            has failed or was stopped goes on from its last checkpoint.
        fail_fast: whether the first job that fails ends the sweep.
    """

    redo: str | None = None
    fail_fast: bool = False

    def __post_init__(self) -> None:
        if self.redo is not None and self.redo not in REDO:
            raise ValueError(f"sweep.redo is {self.redo!r}. Choose {', '.join(REDO)} or null.")


# Which dataclass stands behind which node of the configuration.
NODES = {
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "optimizer": OptimizerConfig,
    "data": BatchConfig,
    "hardware": Hardware,
    "sweep": SweepConfig,
}

# Every key that train.py or evaluate.py reads; `evaluate.py` alone reads the last four.
TOP_LEVEL = (
    *NODES, "task", "trainer", "callbacks", "logger", "seed", "output_dir", "resume", "plan", "objective", "local",
    "adapter_path", "instructions", "predictions", "na_probs",
)  # fmt: skip


def schema_of(node: type) -> type:
    """The dataclass with `_target_` in front, all of whose fields have a value or must be given."""
    target = ("_target_", str, f"{node.__module__}.{node.__name__}")
    parts = [(f.name, f.type, _default(f)) for f in fields(node)]
    return make_dataclass(f"{node.__name__}Schema", [target, *parts])


def _default(spec) -> object:
    if spec.default_factory is not MISSING:
        return field(default_factory=spec.default_factory)
    return "???" if spec.default is MISSING else field(default_factory=lambda: spec.default)


def register_schemas() -> None:
    """Makes `/schema/<node>` known to Hydra."""
    store = ConfigStore.instance()
    for name, node in NODES.items():
        store.store(group="schema", name=name, node=schema_of(node))


def check_keys(config: DictConfig) -> None:
    """Refuses top-level keys that nothing reads, which `+key=value` would add in silence.

    Raises:
        ValueError: names the key and the nearest one.
    """
    for key in config:
        if key not in TOP_LEVEL:
            raise ValueError(f"Unknown key {key!r}.{suggestion(str(key), TOP_LEVEL)}")


def suggestion(given: str, known: Iterable[str]) -> str:
    """ " Did you mean ...?", or nothing when no name is near."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
