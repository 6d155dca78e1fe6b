"""The DataModule for ScienceQA: problems as examples, with their images where there are some."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from llama_adapter.data import BatchConfig, ExampleDataModule
from llama_adapter.encoding import EncodedDataset, encode_default
from llama_adapter.examples import Example
from llama_adapter.images import ImageFeatures, PicturedDataset
from llama_adapter.tokenizer import as_tokenizer
from tasks.scienceqa.problems import Problem, check_images, read_problems
from tasks.scienceqa.prompt import check_answer, check_format, prompt, response

log = logging.getLogger(__name__)


class ProblemDataset(PicturedDataset):
    """Encoded problems.

    Args:
        encoded: the problems' texts.
        problems: in the same order.
        root: of the images.
        reader: of the images; None for text alone.
    """

    def __init__(
        self, encoded: EncodedDataset, problems: Sequence[Problem], root: Path, reader: ImageFeatures | None
    ) -> None:
        super().__init__(reader)
        self.encoded = encoded
        self.problems = problems
        self.root = root

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def tokens(self) -> int:
        return self.encoded.tokens

    def text(self, index: int) -> Example:
        return self.encoded[index]

    def image_paths(self, index: int) -> list[Path]:
        return image_paths(self.problems[index], self.root)


def image_paths(problem: Problem, root: Path) -> list[Path]:
    """None or one."""
    path = problem.image_path(root)
    return [] if path is None else [path]


class ScienceQADataModule(ExampleDataModule):
    """Questions with options, of which the answer is trained.

    Args:
        root: folder of the data set, see `read_problems`.
        tokenizer: what `as_tokenizer` takes.
        images: whether the model sees the images; `image_reader` is needed then.
        image_reader: turns image files into what the model's tower takes.
        train_split, validation_split, test_split: any of `problems.SPLITS`.
        problems_file, splits_file, captions_file: relative to the root.
        format: of the texts, see `prompt`.
        captions: whether machine-made captions join the context; `captions_file` must be there then.
        answer: how an option is named: `brackets`, "The answer is (B)." as in the paper; `letter`, "The answer is B."
            as in the official texts; or `words`, "The answer is an apple."
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
        train_split: str = "train",
        validation_split: str = "val",
        test_split: str = "test",
        problems_file: str = "problems.json",
        splits_file: str = "pid_splits.json",
        captions_file: str = "captions.json",
        format: str = "QCM-A",
        captions: bool = False,
        answer: str = "brackets",
        max_length: int = 512,
        batches: BatchConfig | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(as_tokenizer(tokenizer), batches=batches, seed=seed, shuffle=shuffle)
        check_format(format)
        check_answer(answer)
        if images and image_reader is None:
            raise ValueError("task.data.images is true, which needs an image_reader. Set it to false for text alone.")
        if max_length < 4:
            raise ValueError(f"task.data.max_length must be at least 4, got {max_length}.")
        self.root = Path(root)
        self.images = image_reader if images else None
        self.splits = {"train": train_split, "validation": validation_split, "test": test_split}
        self.files = {"problems_file": problems_file, "splits_file": splits_file}
        self.files["captions_file"] = captions_file if captions else None
        self.format = format
        self.captions = captions
        self.answer = answer
        self.max_length = max_length

    def prompt(self, record: Problem) -> str:
        return prompt(record, self.format, caption=self.captions)

    def template_texts(self) -> dict[str, str]:
        return {"format": self.format, "answer": self.answer}

    def setup(self, stage: str | None = None) -> None:
        if len(self.train_dataset):
            return  # Lightning calls for every stage
        problems = {name: read_problems(self.root, split, **self.files) for name, split in self.splits.items()}
        if self.images is not None:
            check_images([problem for part in problems.values() for problem in part], self.root)
        self.train_dataset = self._encode(problems["train"], "train")
        self.validation_dataset = self._encode(problems["validation"], "validation")
        self.test_dataset = self._encode(problems["test"], "test")
        # Every problem is answered, whether its example was too long to be trained or not.
        self.test_problems = problems["test"]
        if not len(self.train_dataset):
            raise ValueError(
                f"No problem of {self.splits['train']} has room for an answer within task.data.max_length "
                f"{self.max_length}. Raise it."
            )

    def image_columns(self, problems: Sequence[Problem]) -> list[dict[str, Tensor]]:
        """The images of problems that are answered, as examples without text have them."""
        return [self.images.columns(image_paths(problem, self.root)) for problem in problems]

    def _encode(self, problems: Sequence[Problem], name: str) -> ProblemDataset:
        answers = [response(p, self.format, answer=self.answer).removeprefix(" ") for p in problems]
        encodings = [
            encode_default(self.tokenizer, self.prompt(problem), answer, self.max_length)
            for problem, answer in zip(problems, answers, strict=True)
        ]
        kept = [number for number, encoding in enumerate(encodings) if encoding.trained_tokens]
        encoded = EncodedDataset([encodings[number] for number in kept], dropped=len(encodings) - len(kept))
        dataset = ProblemDataset(encoded, [problems[number] for number in kept], self.root, self.images)
        with_image = sum(problem.image is not None for problem in dataset.problems)
        log.info(
            "%s: %d problems, %d with an image; %d tokens, %d of them trained.",
            name,
            len(dataset),
            with_image,
            encoded.tokens,
            encoded.trained_tokens,
        )
        if encoded.truncated or encoded.dropped:
            log.warning(
                "%s: %d answers are cut to fit task.data.max_length %d; %d problems are not trained, their prompts "
                "leave no room for an answer.",
                name,
                encoded.truncated,
                self.max_length,
                encoded.dropped,
            )
        return dataset
