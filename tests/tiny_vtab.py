"""A VTAB data set of a few pictures in the official layout: labels can be told from the pictures' brightness."""

from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

COUNTS = {"train800": 12, "val200": 4, "train800val200": 16, "test": 6}


def write_vtab(
    root: Path, name: str = "tiny", *, classes: int = 4, counts: dict[str, int] = COUNTS, size: int = 8
) -> Path:
    """Writes a data set, the labels in turn; returns its folder.

    Args:
        root: of all data sets.
        name: of the folder.
        classes: grey values from black to white.
        counts: pictures of train800, val200 and test.
        size: of a picture's sides.
    """
    folder, lines = root / name, {}
    for split in ("train800", "val200", "test"):
        (folder / "images" / split).mkdir(parents=True)
        lines[split] = []
        for number in range(counts[split]):
            label = number % classes
            path = f"images/{split}/{number:06d}.png"
            Image.new("L", (size, size), 255 * label // (classes - 1)).save(folder / path)
            lines[split].append(f"{path} {label}\n")
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for split, rows in lines.items():
        (folder / f"{split}.txt").write_text("".join(rows))
    return folder


def tiny_vit(labels: int = 4) -> PreTrainedModel:
    """A random ViT for pictures of 32 x 32: C=32, 3 layers, patches of 8."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=labels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViTForImageClassification(config).eval()
