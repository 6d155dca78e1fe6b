"""The DataModule for COCO captions: images with an instruction, and each of their captions as an answer."""

import logging
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from llama_adapter.data import BatchConfig, ExampleDataModule
from llama_adapter.data_files import first
from llama_adapter.encoding import Encoding, encode_default
from llama_adapter.examples import Example
from llama_adapter.images import ImageFeatures, PicturedDataset
from llama_adapter.tokenizer import as_tokenizer
from tasks.coco_captions.annotations import CaptionedImage, check_images, chosen, read_images, read_split, read_splits

log = logging.getLogger(__name__)

INSTRUCTION = "Generate caption for this image"  # the paper's
# Alpaca's template for an instruction alone; that the paper uses it for captions is not published.
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


class CaptionDataset(PicturedDataset):
    """One example for every caption of every image. The prompt is held once.

    Args:
        images: with their captions.
        encodings: of the captions, image after image; all have the same prompt.
        folder: of the images.
        reader: reads them; None for text alone.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        encodings: Iterable[Encoding],
        folder: Path,
        reader: ImageFeatures | None,
    ) -> None:
        super().__init__(reader)
        self.images = images
        self.folder = folder
        self.image_of = array("l", [number for number, image in enumerate(images) for _ in image.captions])
        self.prompt: list[int] = []
        # COCO has half a million captions: arrays take a tenth of the lists' memory.
        self.answers: list[array] = []
        self.truncated = self.trained_tokens = 0
        for encoding in encodings:
            self.prompt = encoding.ids[: encoding.prompt_length]
            self.answers.append(array("i", encoding.ids[encoding.prompt_length :]))
            self.truncated += encoding.truncated
            self.trained_tokens += encoding.trained_tokens
        self.tokens = self.trained_tokens + len(self.prompt) * len(self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def text(self, index: int) -> Example:
        ids = [*self.prompt, *self.answers[index]]
        return Encoding(ids, len(self.prompt), len(ids)).example()

    def image_paths(self, index: int) -> list[Path]:
        return [self.folder / self.images[self.image_of[index]].path]


class CocoCaptionsDataModule(ExampleDataModule):
    """Images, of whose captions every one is trained; the loss of validation and test is over every one as well.

    Which image is in which split:
        - `split_file` is dataset_coco.json: as it says; what it calls restval is trained on.
        - it is a list: the test images. `validation_split_file` lists those of the validation.
        - it is None: all of `annotations` are the test images, less those of the validation.
        Without dataset_coco.json, what is left of both annotation files is trained on.

    Args:
        root: folder of the data set; the other files are relative to it.
        tokenizer: what `as_tokenizer` takes.
        images: whether the model sees the images; `image_reader` is needed then.
        image_reader: turns image files into what the model's tower takes.
        image_folder: that holds train2014/ and val2014/, relative to the root.
        train_annotations: captions, see `read_images`; None where `annotations` has all.
        annotations: captions of the test images, and more.
        split_file, validation_split_file: see above and `read_splits`.
        instruction: what the model is asked; the same for every image.
        template: the text around it, with {instruction} in its place.
        max_length: tokens of an example at most.
        batches, seed, shuffle: see `ExampleDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer,
        *,
        images: bool = True,
        image_reader: ImageFeatures | None = None,
        image_folder: str = ".",
        train_annotations: str | None = "annotations/captions_train2014.json",
        annotations: str = "annotations/captions_val2014.json",
        split_file: str | None = "dataset_coco.json",
        validation_split_file: str | None = None,
        instruction: str = INSTRUCTION,
        template: str = TEMPLATE,
        max_length: int = 128,
        batches: BatchConfig | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(as_tokenizer(tokenizer), batches=batches, seed=seed, shuffle=shuffle)
        if images and image_reader is None:
            raise ValueError("task.data.images is true, which needs an image_reader. Set it to false for text alone.")
        if max_length < 4:
            raise ValueError(f"task.data.max_length must be at least 4, got {max_length}.")
        if "{instruction}" not in template:
            raise ValueError(f"task.data.template is {template!r}. It must hold {{instruction}}.")
        self.root = Path(root)
        self.folder = self.root / image_folder
        self.images = image_reader if images else None
        self.annotations = [name for name in (train_annotations, annotations) if name is not None]
        self.split_file = split_file
        self.validation_split_file = validation_split_file
        self.prompt_text = template.replace("{instruction}", instruction)
        self.max_length = max_length
        self.test_images: list[CaptionedImage] = []

    def prompt(self, record: object = None) -> str:
        """The same text for every image."""
        return self.prompt_text

    def template_texts(self) -> dict[str, str]:
        return {"prompt": self.prompt_text}

    def setup(self, stage: str | None = None) -> None:
        if len(self.train_dataset):
            return  # Lightning calls for every stage
        splits = self._splits()
        if self.images is not None:
            check_images([image for part in splits.values() for image in part], self.folder)
        self.test_images = splits["test"]
        self.train_dataset = self._encode(splits["train"], "train")
        self.validation_dataset = self._encode(splits["val"], "validation")
        self.test_dataset = self._encode(splits["test"], "test")

    def image_columns(self, images: Sequence[CaptionedImage]) -> list[dict[str, Tensor]]:
        """The images alone, as examples without text have them."""
        return [self.images.columns([self.folder / image.path]) for image in images]

    def _splits(self) -> dict[str, list[CaptionedImage]]:
        annotated = [read_images(self.root / name) for name in self.annotations]
        images = {id: image for part in annotated for id, image in part.items()}
        ids = self._ids(annotated[-1])
        if "train" not in ids:
            held_out = {*ids["val"], *ids["test"]}
            ids["train"] = [id for id in images if id not in held_out]
        if not ids["train"]:
            raise ValueError(
                f"All {len(images)} images of {' and '.join(self.annotations)} are for validation and test, so none is "
                "left to train on. Set task.data.train_annotations, task.data.split_file, or both."
            )
        files = {"val": self.validation_split_file} if self.validation_split_file else {}
        return {name: chosen(images, part, files.get(name, self.split_file)) for name, part in ids.items()}

    def _ids(self, tested: dict[int, CaptionedImage]) -> dict[str, list[int]]:
        """Image ids of `test` and `val`, and of `train` where a file says them."""
        named = {} if self.split_file is None else read_splits(self.root / self.split_file)
        if named and "" not in named:
            return {name: named.get(name, []) for name in ("train", "val", "test")}
        validation = []
        if self.validation_split_file is not None:
            validation = read_split(self.root / self.validation_split_file, "val")
        ids = {"val": validation, "test": named.get("", [])}
        if self.split_file is None:
            held_out = set(validation)
            ids["test"] = [id for id in tested if id not in held_out]
        if both := set(ids["val"]) & set(ids["test"]):
            raise ValueError(
                f"{self.validation_split_file} and {self.split_file} both name {len(both)} images: "
                f"{first(sorted(both))}. An image is in one split."
            )
        return ids

    def _encode(self, images: Sequence[CaptionedImage], name: str) -> CaptionDataset:
        captions = (caption.strip() for image in images for caption in image.captions)
        encodings = (encode_default(self.tokenizer, self.prompt_text, text, self.max_length) for text in captions)
        dataset = CaptionDataset(images, encodings, self.folder, self.images)
        if images and not dataset.trained_tokens:
            length = len(self.tokenizer.encode(self.prompt_text, bos=True))
            raise ValueError(
                f"The prompt has {length} tokens, which leaves no room for a caption within task.data.max_length "
                f"{self.max_length}. Raise it."
            )
        log.info(
            "%s: %d images with %d captions; %d tokens, %d of them trained.",
            name,
            len(images),
            len(dataset),
            dataset.tokens,
            dataset.trained_tokens,
        )
        if dataset.truncated:
            log.warning(
                "%s: %d captions are cut to fit task.data.max_length %d.", name, dataset.truncated, self.max_length
            )
        return dataset
