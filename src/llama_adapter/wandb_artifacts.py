"""What W&B keeps of an adapter's lineage: its file, the frozen model and the data it comes from.

The gigabytes of models and data stay where they are. Each is an artifact of one small file with what identifies it, so
two runs on the same weights use the same version of it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from llama_adapter.adapter_file import read_adapter

METRICS = 50  # in an artifact's metadata, which may have a hundred keys in all
SETTINGS = ("format_version", "prompt_length", "prompt_layers", "gate_activation", "task")


def adapter_artifact(
    library: ModuleType, path: Path, *, data: Mapping[str, object] | None = None, metrics: Mapping[str, float]
) -> tuple[object, list[str]]:
    """The adapter file as an artifact of type `model`; its versions are the adapters of one task and backbone.

    Args:
        library: the package `wandb`.
        path: of the file.
        data: settings of the data it was trained on.
        metrics: final numbers; those of a clock are left out.

    Returns:
        The artifact, and its alias `k<K>-l<L>` in a list.
    """
    header = read_adapter(path).metadata
    names = [name for name in sorted(metrics) if not name.startswith("throughput/")][:METRICS]
    lineage = {"base": base_of(path), "data": dict(data or {}), "metrics": {name: metrics[name] for name in names}}
    artifact = library.Artifact(
        artifact_name("adapter", header["task"], header["backbone"]["name"]),
        type="model",
        description="Prompts and gates of LLaMA-Adapter (arXiv 2303.16199) for the frozen model in `base`.",
        metadata={key: header[key] for key in SETTINGS} | lineage,
    )
    # Not copied to W&B's cache in the user's home: an offline run then needs its own folder alone.
    artifact.add_file(str(path), name=path.name, policy="immutable")
    return artifact, [f"k{header['prompt_length']}-l{header['prompt_layers']}"]


def identity_artifact(library: ModuleType, kind: str, name: str | None, description: Mapping[str, object]) -> object:
    """Something that a run used, as an artifact of one file `<kind>.json` with what identifies it.

    Args:
        library: the package `wandb`.
        kind: `base` or `data`; the artifact's type.
        name: of the model or the task.
        description: what has the same one is the same version.
    """
    artifact = library.Artifact(artifact_name(kind, name), type=kind, metadata=dict(description))
    with artifact.new_file(f"{kind}.json", encoding="utf-8") as file:
        json.dump(description, file, indent=2, sort_keys=True)
    return artifact


def base_of(path: Path) -> dict[str, object]:
    """Name, shape and fingerprint of the frozen model that an adapter file belongs to."""
    return dict(read_adapter(path).metadata["backbone"])


def artifact_name(*parts: str | None) -> str:
    """Parts joined by dashes, without what W&B does not take in a name: `adapter-miniature-alpaca-miniature_llama`."""
    return re.sub(r"[^\w.-]+", "-", "-".join(part for part in parts if part))[:128]
