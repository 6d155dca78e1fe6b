"""LLaMA weights from Meta's layout to Hugging Face's: `python -m llama_adapter.convert <Meta's folder> <new folder>`.

Both layouts load alike; but devices that shard a model each read their part alone, which safetensors files allow.
The weights stream through memory one file at a time, and the folder has its name only when it is whole.
"""

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llama_adapter.fingerprint import fingerprint_of_path
from llama_adapter.loading import DTYPES
from llama_adapter.meta_checkpoint import MetaCheckpoint, is_meta_folder

INDEX = "model.safetensors.index.json"
GIB = 2**30
log = logging.getLogger(__name__)


def convert(source: str | Path, target: str | Path, *, dtype: str = "bfloat16", file_gib: float = 2.0) -> Path:
    """Writes a model in Hugging Face's layout, with its tokenizer where one is found.

    Args:
        source: holds `params.json` and `consolidated.NN.pth`.
        target: a folder that does not exist yet.
        dtype: of the new weights; `float16` keeps those of LLaMA 1 and 2 to the bit.
        file_gib: size at which a new file is begun; so much memory is needed at most, and a layer more.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no weights in this layout at `source`, or not all of them.
        FileExistsError: `target` is there.
        ValueError: damaged files, or an unknown dtype.
        OSError: the disk refused; nothing is left then.
    """
    source, target = Path(source), Path(target)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}. Choose {', '.join(DTYPES)}.")
    if not is_meta_folder(source):
        raise FileNotFoundError(f"No params.json in {source}: it does not hold weights in Meta's layout.")
    if target.exists():
        raise FileExistsError(f"{target} is there already. Give another folder, or remove it.")
    checkpoint = MetaCheckpoint(source)
    config = checkpoint.config  # checks every file, before anything is written
    config.dtype, config.architectures = DTYPES[dtype], ["LlamaForCausalLM"]
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_weights(checkpoint, partial, DTYPES[dtype], file_gib)
        config.save_pretrained(partial)
        _copy_tokenizer(source, partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    log.info("Written to %s: %s in %s.", target, f"{config.num_hidden_layers} layers", dtype)
    return target


def _write_weights(checkpoint: MetaCheckpoint, folder: Path, dtype: torch.dtype, file_gib: float) -> None:
    places: dict[str, str] = {}
    waiting: dict[str, Tensor] = {}
    written = 0

    def write() -> None:
        file = folder / f"model-{1 + len(set(places.values())):05d}.safetensors"
        try:
            save_file(waiting, file, metadata={"format": "pt"})
        except Exception as error:  # the library has an error of its own for a full disk
            raise OSError(f"Cannot write {file}: {error}. Is the disk full?") from error
        file.chmod(0o644)  # the library makes it for its owner alone
        places.update(dict.fromkeys(waiting, file.name))
        log.info("%s: %d tensors", file.name, len(waiting))
        waiting.clear()

    for part in checkpoint.parts(checkpoint.config, dtype, torch.device("cpu")):
        waiting |= part
        written += _size(part)
        if _size(waiting) >= file_gib * GIB:
            write()
    if waiting:
        write()
    index = {"metadata": {"total_size": written}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _copy_tokenizer(source: Path, target: Path) -> None:
    """LLaMA 1 has one tokenizer for all sizes, in the folder above."""
    for folder in (source, source.parent):
        if (folder / "tokenizer.model").is_file():
            shutil.copyfile(folder / "tokenizer.model", target / "tokenizer.model")
            return
    log.warning("No tokenizer.model in %s or above it. Set model.tokenizer to where it is.", source)


def main() -> None:
    """The command; an error is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m llama_adapter.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with params.json and consolidated.00.pth")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES), help="of the new weights")
    parser.add_argument("--file-gib", type=float, default=2.0, help="size at which a new file is begun")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        folder = convert(given.source, given.target, dtype=given.dtype, file_gib=given.file_gib)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    if fingerprint_of_path(folder) != fingerprint_of_path(given.source):
        sys.exit(f"error: {folder} has another fingerprint than {given.source}. Please report this.")


if __name__ == "__main__":
    main()
