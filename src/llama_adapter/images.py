"""Image files as columns of examples: pixels for the tower, or features that were computed from them before.

Features are kept in a folder of shards, keyed by each image's path and bound to the tower they came from, so training
from them is training from pixels without the tower's work:

    python -m llama_adapter.images --root <data> --tower <clip> --layers 6,12,18,24 --output <folder>
    python train.py task=scienceqa task.features=<folder>
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from llama_adapter.examples import Example
from llama_adapter.files import whole_file
from llama_adapter.vision import ImagePrompt, load_processor, load_tower, read_image

METADATA_KEY = "llama_adapter_features"
SHARD = "features_{:05d}.safetensors"

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}  # of the files that are images

log = logging.getLogger(__name__)


class ImageFeatures:
    """Reads images for a tower.

    Args:
        tower: folder of the tower, whose own resizing and normalisation is used.
        features: a folder of `compute_features`, or None to read pixels.
        root: that the names of features are relative to.
        settings: `feature_settings` of the run, which the stored features must have been made with.
    """

    def __init__(
        self,
        tower: str | Path,
        *,
        features: str | Path | None = None,
        root: str | Path = ".",
        settings: dict | None = None,
    ) -> None:
        self.processor = load_processor(tower)
        self.root = Path(root)
        self.features = None if features is None else read_features(Path(features), settings)

    def columns(self, paths: Sequence[Path]) -> Example:
        """`pixel_values` [I, 3, height, width] or `image_features` [I, F] of one example's images.

        Raises:
            ValueError: a file is no image, or has no features.
        """
        if self.features is not None:
            rows = [self._stored(path) for path in paths]
            size = next(iter(self.features.values())).shape
            return {"image_features": torch.stack(rows) if rows else torch.zeros(0, *size)}
        if not paths:
            size = self.processor.crop_size
            return {"pixel_values": torch.zeros(0, 3, size["height"], size["width"])}
        return {"pixel_values": torch.stack([read_image(path, self.processor) for path in paths])}

    def outline(self, paths: Sequence[Path]) -> Example:
        """The same number of images, of no size; nothing is read."""
        return {"pixel_values": torch.zeros(len(paths), 0)}

    def _stored(self, path: Path) -> Tensor:
        name = feature_name(path, self.root)
        if name not in self.features:
            raise ValueError(f"No features of {name}. Compute them again, or set task.features=null for pixels.")
        return self.features[name]


def feature_name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def feature_settings(tower: str | Path, layers: Sequence[int], patch_mean: bool = False) -> dict:
    """What stored features depend on: the bytes of the tower's weights and of its processor, and what is read of it."""
    digest = hashlib.sha256()
    files = [path for path in Path(tower).iterdir() if path.suffix in (".safetensors", ".bin")]
    for path in (*sorted(files), Path(tower) / "preprocessor_config.json"):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"tower": digest.hexdigest()[:16], "layers": list(layers), "patch_mean": patch_mean}


class PicturedDataset(Sequence[Example]):
    """Examples of which some have images, which are read when an example is asked for: in a worker, if there are some.

    A subclass defines `text` and `image_paths`.

    Args:
        reader: of the images; None for text alone.
    """

    def __init__(self, reader: ImageFeatures | None) -> None:
        self.reader = reader

    def text(self, index: int) -> Example:
        """The example without its images."""
        raise NotImplementedError(f"{type(self).__name__} must define text(index).")

    def image_paths(self, index: int) -> list[Path]:
        """Its image files."""
        raise NotImplementedError(f"{type(self).__name__} must define image_paths(index).")

    def __getitem__(self, index: int) -> Example:
        example = self.text(index)
        return example if self.reader is None else example | self.reader.columns(self.image_paths(index))

    def outline(self, index: int) -> Example:
        """The example without reading its images: how many there are, for those who deal examples to devices."""
        example = self.text(index)
        return example if self.reader is None else example | self.reader.outline(self.image_paths(index))


def compute_features(
    paths: Iterable[Path],
    folder: Path,
    image_prompt: ImagePrompt,
    *,
    tower: str | Path,
    root: Path,
    batch_size: int = 64,
    shard_size: int = 4096,
) -> int:
    """Computes the features of images that have none yet; returns how many.

    A shard is written when it is whole, so what an interrupted call has finished is kept and not computed again.

    Args:
        paths: image files.
        folder: of the shards.
        image_prompt: whose tower is used.
        tower: its folder, for the processor.
        root: that the names are relative to.
        batch_size: images that pass the tower together.
        shard_size: images of a shard.
    """
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    settings = feature_settings(tower, image_prompt.layers, image_prompt.patch_mean)
    processor = load_processor(tower)
    folder.mkdir(parents=True, exist_ok=True)
    done = read_features(folder, settings, allow_none=True)
    missing = [path for path in dict.fromkeys(paths) if feature_name(path, root) not in done]
    number = len(list(folder.glob("features_*.safetensors")))
    with Tqdm(total=len(missing), desc="Image features", unit="image") as bar:
        for start in range(0, len(missing), shard_size):
            shard = {}
            for first in range(start, min(start + shard_size, len(missing)), batch_size):
                chosen = missing[first : min(first + batch_size, start + shard_size)]
                pixels = torch.stack([read_image(path, processor) for path in chosen])
                rows = image_prompt.features(pixels).cpu()
                shard |= {feature_name(p, root): row.contiguous() for p, row in zip(chosen, rows, strict=True)}
                bar.update(len(chosen))
            with whole_file(folder / SHARD.format(number)) as temporary:
                temporary.write_bytes(save(shard, metadata={METADATA_KEY: json.dumps(settings, sort_keys=True)}))
            number += 1
    return len(missing)


def read_features(folder: Path, settings: dict | None = None, *, allow_none: bool = False) -> dict[str, Tensor]:
    """All features of a folder by image name, [F] each.

    Raises:
        FileNotFoundError: there are none, and `allow_none` is False.
        ValueError: they come from another tower or other layers.
    """
    features: dict[str, Tensor] = {}
    for path in sorted(folder.glob("features_*.safetensors")):
        with safe_open(path, framework="pt") as content:
            made = json.loads((content.metadata() or {}).get(METADATA_KEY, "null"))
            if settings is not None and made != settings:
                raise ValueError(
                    f"{path} was computed with {made}, but this run has {settings}. Compute the features again into "
                    "another folder, or set task.features=null for pixels."
                )
            features |= {name: content.get_tensor(name) for name in content.keys()}
    if not features and not allow_none:
        raise FileNotFoundError(f"No image features in {folder}. Compute them first, or set task.features=null.")
    return features


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the features of all images under a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder whose images are computed, with all below it")
    parser.add_argument("--tower", type=Path, required=True, help="folder of the CLIP model or its vision tower")
    parser.add_argument("--layers", required=True, help="as model.vision.layers, with commas between")
    parser.add_argument("--patch-mean", action="store_true", help="as model.vision.patch_mean=true")
    parser.add_argument("--output", type=Path, required=True, help="folder of the features")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args(arguments)
    try:
        if not options.root.is_dir():
            raise FileNotFoundError(f"No folder {options.root}. Set --root to the folder of the images.")
        paths = sorted(path for path in options.root.rglob("*") if path.suffix.lower() in SUFFIXES)
        layers = [int(layer) for layer in options.layers.split(",")]
        tower = load_tower(options.tower)
        shape = {"hidden_size": 1, "layers": layers, "patch_mean": options.patch_mean}
        image_prompt = ImagePrompt(tower.config, tower, **shape).to(options.device)
        made = compute_features(
            paths,
            options.output,
            image_prompt,
            tower=options.tower,
            root=options.root,
            batch_size=options.batch_size,
        )
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    log.info("%d of %d images computed; all are in %s.", made, len(paths), options.output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    main()
