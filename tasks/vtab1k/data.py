"""The DataModule for all data sets of VTAB-1k: pictures with their classes, decoded in workers or kept in memory."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from llama_adapter.data import BatchConfig, ExampleDataModule
from llama_adapter.examples import IGNORED, Example, TokenCounts
from tasks.vtab1k.lists import LISTS, Picture, read_lists
from tasks.vtab1k.preprocessing import Preprocessing

# The lists of training, validation and test. A choice of settings must not see the test pictures, and the final run
# trains on the validation's too.
PROTOCOLS = {"choose": ("train800", "val200", None), "final": ("train800val200", None, "test")}
DEFAULT_SIZE = 224  # where neither the configuration nor the model says one
DECODERS = 8  # threads that fill the memory of pictures; Pillow lets them work side by side

log = logging.getLogger(__name__)


class PictureDataset:
    """Pictures of one size as examples: `pixels` [3, size, size] in uint8 and `labels`, a scalar.

    Args:
        pictures: of a list.
        folder: that their names are relative to.
        preprocessing: reads them.
        patches: tokens of a picture, the class token included.
    """

    def __init__(
        self, pictures: Sequence[Picture], folder: Path, preprocessing: Preprocessing, *, patches: int
    ) -> None:
        self.pictures = list(pictures)
        self.folder = folder
        self.preprocessing = preprocessing
        self.tokens = patches * len(self.pictures)
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        pixels = self._read(index) if self._kept is None else self._kept[index]
        return {"pixels": pixels, "labels": torch.tensor(self.pictures[index].label)}

    def keep(self) -> None:
        """Decodes all pictures once; from then on they come from memory, which workers share."""
        if self._kept is not None or not self.pictures:
            return
        start, size = perf_counter(), self.preprocessing.image_size
        kept = torch.empty(len(self), 3, size, size, dtype=torch.uint8)
        with ThreadPoolExecutor(DECODERS) as threads:
            for index, pixels in enumerate(threads.map(self._read, range(len(self)))):
                kept[index] = pixels
        self._kept = kept
        log.info(
            "%d pictures are kept in %.0f MB of memory, decoded in %.1f s.",
            len(self),
            self._kept.nbytes / 1e6,
            perf_counter() - start,
        )

    def path(self, index: int) -> Path:
        return self.folder / self.pictures[index].name

    def _read(self, index: int) -> Tensor:
        return self.preprocessing.read(self.path(index))


class PictureCollator:
    """Batches for a model with a classification head.

    Args:
        preprocessing: normalises them.
        patches: tokens of a picture, the class token included.
    """

    def __init__(self, preprocessing: Preprocessing, *, patches: int) -> None:
        self.preprocessing = preprocessing
        self.patches = patches

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | TokenCounts]:
        """Returns `pixel_values` [B, 3, size, size] in float32, `labels` [B], and `counts`.

        A device may get no picture from a small last batch; it then computes an empty one, which trains nothing.
        """
        size, useful = self.preprocessing.image_size, self.patches * len(examples)
        if examples:
            pixels = torch.stack([example["pixels"] for example in examples])
            labels = torch.stack([example["labels"] for example in examples])
        else:
            pixels, labels = torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.tensor([IGNORED])
        computed = self.patches * len(labels)
        counts = TokenCounts(useful, computed, computed - useful, attended=useful * self.patches)
        return {"pixel_values": self.preprocessing.normalise(pixels), "labels": labels, "counts": counts}


class VtabDataModule(ExampleDataModule):
    """One data set in the layout of `lists`.

    Args:
        root: folder that holds the data sets' folders.
        tokenizer: None; pictures have none.
        data_set: the folder's name.
        classes: labels are 0 to classes - 1.
        protocol: `choose` trains on train800 and validates on val200; `final` trains on train800val200 and tests.
        counts: lines of each list by its name: a number, several any of which is right, or None for any.
        image_size: height and width in pixels; None for the model's own.
        model_image_size, model_patch_size: of the model, in pixels.
        interpolation, statistics: see `Preprocessing`.
        cache: whether the decoded pictures of training and validation are kept in memory, 150 kB each at 224 x 224.
        batches, seed, shuffle: see `ExampleDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: None = None,
        *,
        data_set: str,
        classes: int,
        protocol: str = "final",
        counts: Mapping[str, int | Sequence[int] | None] | None = None,
        image_size: int | None = None,
        model_image_size: int | None = None,
        model_patch_size: int = 16,
        interpolation: str = "bilinear",
        statistics: str = "half",
        cache: bool = True,
        batches: BatchConfig | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"task.data.protocol is {protocol!r}. Choose {' or '.join(PROTOCOLS)}.")
        if not isinstance(classes, int) or classes < 2:
            raise ValueError(f"task.data.classes must be a whole number of at least 2, got {classes!r}.")
        if surplus := sorted(set(counts or {}) - set(LISTS)):
            raise ValueError(f"task.data.counts has {surplus[0]!r}, but the lists are {', '.join(LISTS)}.")
        if image_size is not None and model_image_size and image_size != model_image_size:
            raise ValueError(
                f"task.data.image_size is {image_size}, but the model takes pictures of {model_image_size} x "
                f"{model_image_size}. Set it to null for the model's own."
            )
        size = (model_image_size or DEFAULT_SIZE) if image_size is None else image_size
        patches = (size // model_patch_size) ** 2 + 1
        preprocessing = Preprocessing(size, interpolation=interpolation, statistics=statistics)
        super().__init__(
            tokenizer,
            batches=batches,
            seed=seed,
            shuffle=shuffle,
            collator=PictureCollator(preprocessing, patches=patches),
        )
        self.preprocessing = preprocessing
        self.patches = patches
        self.folder = Path(root) / data_set
        self.classes = classes
        self.protocol = protocol
        self.counts = dict(counts or {})
        self.cache = cache

    def template_texts(self) -> dict[str, str]:
        """What pictures must go through, for the adapter's file."""
        return {"interpolation": self.preprocessing.interpolation, "statistics": self.preprocessing.statistics}

    def setup(self, stage: str | None = None) -> None:
        if len(self.train_dataset):
            return  # Lightning calls for every stage
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"No data set {self.folder}. Set task.data.root to the folder that holds {self.folder.name}/."
            )
        names = PROTOCOLS[self.protocol]
        lists = read_lists(self.folder, [n for n in names if n], classes=self.classes, counts=self.counts)
        datasets = [self._dataset(lists[name] if name else []) for name in names]
        self.train_dataset, self.validation_dataset, self.test_dataset = datasets
        parts = (f"{len(lists[name])} pictures of {name}.txt" for name in names if name)
        log.info("%s, %d classes: %s.", self.folder.name, self.classes, ", ".join(parts))

    @property
    def scored_dataset(self) -> PictureDataset:
        """The pictures that a run is measured by."""
        return self.test_dataset if len(self.test_dataset) else self.validation_dataset

    def train_dataloader(self) -> DataLoader:
        self._keep(self.train_dataset)
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader:
        self._keep(self.validation_dataset)
        return super().val_dataloader()

    def _keep(self, dataset: PictureDataset) -> None:
        # Before the loader starts its workers: what they inherit they share.
        if self.cache:
            dataset.keep()

    def _dataset(self, pictures: Sequence[Picture]) -> PictureDataset:
        return PictureDataset(pictures, self.folder, self.preprocessing, patches=self.patches)
