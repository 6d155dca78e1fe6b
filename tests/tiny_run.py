"""What a run needs, tiny and in the official layouts, and the two scripts called in this process as a shell would."""

import json
import logging
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from sentencepiece import SentencePieceTrainer

from llama_adapter.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import ROOT, tiny_model

NOUNS = ("ball", "lamp", "llama", "stone", "cloud", "tree", "bell", "ship", "coin", "rope")
COLOURS = ("red", "blue", "green", "grey", "white")


def make_records(count: int, start: int = 0) -> list[dict[str, str]]:
    """Instructions that differ, every other one with an input."""
    rows = []
    for number in range(start, start + count):
        noun, colour = NOUNS[number % len(NOUNS)], COLOURS[number * 7 % len(COLOURS)]
        given = f"the {colour} {noun} {number}" if number % 2 else ""
        row = {"instruction": f"Name the colour of {noun} {number}.", "input": given, "output": f"It is {colour}."}
        rows.append(row | {"kind": "with input" if given else "without"})
    return rows


def make_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer.model like LLaMA's (BPE with byte fallback; unk 0, bos 1, eos 2, no padding) in a folder."""
    texts = [f"{row['instruction']} {row['input']} {row['output']}" for row in make_records(50)]
    template = (
        "Below is an instruction that describes a task. Write a response. ### Instruction: ### Input: ### Response:"
    )
    with (folder / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter([*texts, template]), model_writer=file, vocab_size=340, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
    return load_tokenizer(folder)


@dataclass(frozen=True)
class TinyWorld:
    """A model's folder, and files of training and test records."""

    model: Path
    train: Path
    test: Path

    def overrides(self, folder: Path | None, **changed: object) -> list[str]:
        """The command line of a run of seconds; `changed` replaces or adds keys, with `__` for dots."""
        values = {
            "model.path": self.model,
            "task.data.path": self.train,
            "task.data.validation_path": "null",
            "task.data.validation_size": 4,
            "task.data.test_path": self.test,
            "task.data.template": "short",
            "task.data.max_length": 64,
            "task.evaluation.max_new_tokens": 4,
            "task.evaluation.containing_tokens": 4,
            "task.evaluation.worked_examples": 1,
            "task.samples": "[{instruction: Name it., input: ''}]",
            "callbacks.samples.max_new_tokens": 4,
            "callbacks.checkpoint.every_n_train_steps": 5,
            "adapter.prompt_length": 3,
            "adapter.prompt_layers": 2,
            "data.global_batch_size": 4,
            "data.micro_batch_size": 2,
            "trainer.max_epochs": 2,
        } | {key.replace("__", "."): value for key, value in changed.items()}
        if folder is not None:
            values["hydra.run.dir"] = f"'{folder}'"
        return [f"{key}={value}" for key, value in values.items()]


def make_world(folder: Path, *, records: int = 28) -> TinyWorld:
    """A random LLaMA in the Hugging Face layout with a tokenizer, and Alpaca files."""
    model = folder / "model"
    model.mkdir(parents=True)
    tokenizer = make_tokenizer(model)
    tiny_model("llama", vocab_size=tokenizer.vocabulary_size).save_pretrained(model)
    (folder / "train.json").write_text(json.dumps(make_records(records)))
    (folder / "test.json").write_text(json.dumps(make_records(4, start=1000)))
    return TinyWorld(model, folder / "train.json", folder / "test.json")


@dataclass(frozen=True)
class Result:
    """How a script ended: its exit status and what it wrote."""

    status: int
    output: str

    @property
    def error(self) -> str:
        """The sentence that an error ends in."""
        last = self.output.rstrip().splitlines()[-1]
        assert last.startswith("error: "), self.output[-2000:]
        return last.removeprefix("error: ")


def call(script: str, *arguments: str) -> Result:
    """Runs `train.py` or `evaluate.py` in this process, which saves the seconds in which a new one imports torch."""
    output = StringIO()
    with _untouched_process(), redirect_stdout(output), redirect_stderr(output):
        sys.argv = [str(ROOT / script), *map(str, arguments)]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
    return Result(status, output.getvalue())


def command(script: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a script in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "OMP_NUM_THREADS": "1",
        "PROJECT_ROOT": str(ROOT),
    }
    for name in ("HYDRA_FULL_ERROR", "LLAMA_ADAPTER_ONE_SENTENCE"):
        environment.pop(name, None)
    return [sys.executable, str(ROOT / script), *map(str, arguments)], environment


@contextmanager
def _untouched_process() -> Iterator[None]:
    """Puts back what the scripts, Hydra and Lightning set for the whole process."""
    arguments, environment = sys.argv, dict(os.environ)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level
        for number, handler in signals.items():
            signal.signal(number, handler)
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        setup_globals()
