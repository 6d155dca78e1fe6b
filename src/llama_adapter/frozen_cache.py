"""The outputs of the frozen layers below the adapted ones, computed once and read from disk in every epoch and job.

With L of N layers adapted, the lower N - L see no prompt: what they put out for an example depends on its tokens alone,
and is the same in every epoch and in every job of a sweep over K. A step that reads it computes L layers forward and
backward in the place of N forward and L backward, 2L / (N + L) of the work.

A file is in the safetensors format: one tensor `states` [tokens, C], the examples end to end. Its name is a digest of
what the states depend on. What that cannot tell (weights that differ where the fingerprint does not look) the first
example does: it is computed again, and compared before a file is used.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from llama_adapter.attach import adapters
from llama_adapter.backbones import layers_of
from llama_adapter.examples import Example
from llama_adapter.fingerprint import fingerprint
from llama_adapter.frozen_states import frozen_states

GIB = 2**30
ROW_TOKENS = 2048  # that are computed at once, or one example: less memory than a training step needs
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # in safetensors' header
# Between two computations of an example: sums in another order (TF32 is the coarsest), and roundings in half precision.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
ABANDONED = 3600  # seconds without a write, after which an unfinished file is that of a job that was killed
NAMES_ONLY = ("_name_or_path", "architectures", "transformers_version")  # of a model's config: they change no number

log = logging.getLogger(__name__)


class CachedExamples(Sequence[Example]):
    """Examples with one more column, `states` [T, C]: what the lowest adapted layer is given.

    Args:
        examples: `input_ids` and `labels`, [T] each.
        path: of the file with their states.
    """

    def __init__(self, examples: Sequence[Example], path: Path) -> None:
        self.examples = examples
        self.outline = examples.__getitem__  # what dealing asks for needs no states
        self.path = path
        self._starts = _starts(examples)
        self._states = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        if self._states is None:
            with safe_open(self.path, framework="pt") as file:
                self._states = file.get_slice("states")  # a memory map, which stays when the file is replaced
        return self.examples[index] | {"states": self._states[self._starts[index] : self._starts[index + 1]]}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_states": None}  # a data worker maps the file itself


def cache_frozen(
    model: PreTrainedModel, parts: dict[str, Sequence[Example]], folder: str | Path
) -> dict[str, CachedExamples]:
    """Examples with their states, which are computed and written where the folder does not have them.

    Jobs may start at once: each writes a file of its own, which gets its name when it is whole.

    Args:
        model: a decoder from `attach` on its device, in evaluation mode, with fewer adapted layers than it has.
        parts: examples by name, training and validation say; those without any are left out.
        folder: of the files; made if it is not there.

    Returns:
        The parts.

    Raises:
        OSError: the disk has not enough room for what is missing. Nothing has been written then.
    """
    folder, parts = Path(folder), {name: examples for name, examples in parts.items() if len(examples)}
    _warn_if_little(layers=len(layers_of(model)), below=min(adapters(model)))
    folder.mkdir(parents=True, exist_ok=True)
    keys = {name: _key(model, examples) for name, examples in parts.items()}
    paths = {name: folder / f"{_digest(key)[:16]}.safetensors" for name, key in keys.items()}
    missing = [name for name, examples in parts.items() if not _is_usable(model, examples, paths[name], keys[name])]
    _check_room(folder, sum(_nbytes(model, parts[name]) for name in missing))
    for name, path in paths.items():
        if name in missing:
            log.info("%s: the frozen layers are computed once, into %s.", name, path)
            _write(model, parts[name], path, keys[name])
        else:
            log.info("%s: the outputs of the frozen layers are in %s.", name, path)
    return {name: CachedExamples(examples, paths[name]) for name, examples in parts.items()}


def _warn_if_little(*, layers: int, below: int) -> None:
    adapted = layers - below
    if 2 * adapted > layers:
        log.warning(
            "data.cache_frozen gains little with adapter.prompt_layers=%d of %d: a step still takes %.0f %% of the "
            "time. It is for adapter.prompt_layers of at most %d.",
            adapted,
            layers,
            100 * 2 * adapted / (layers + adapted),
            layers // 2,
        )


def _starts(examples: Sequence[Example]) -> list[int]:
    """Where each example starts when they are end to end, and how many tokens there are."""
    return [0, *accumulate(len(example["input_ids"]) for example in examples)]


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """That layers compute in, quantised ones too."""
    return model.get_input_embeddings().weight.dtype


def _nbytes(model: PreTrainedModel, examples: Sequence[Example]) -> int:
    return _starts(examples)[-1] * model.config.hidden_size * _dtype(model).itemsize


def _key(model: PreTrainedModel, examples: Sequence[Example]) -> str:
    """All that the states depend on, as JSON."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in NAMES_ONLY}
    key = {
        "fingerprint": fingerprint(model),
        "config": _digest(json.dumps(config, sort_keys=True, default=str)),
        "dtype": str(_dtype(model)),
        "layers": min(adapters(model)),
        "token_ids": _digest(json.dumps([example["input_ids"].tolist() for example in examples])),
    }
    return json.dumps(key)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_usable(model: PreTrainedModel, examples: Sequence[Example], path: Path, key: str) -> bool:
    """Whether a file is there, is whole and holds what this model computes; a warning says why one is not used."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                raise ValueError("it is of another model or of other examples")
        stored = CachedExamples(examples, path)[0]["states"].float()
        computed = frozen_states(model, [examples[0]]).float().cpu()
        # The token in the middle: the first one of a text may be thousands of times as long as the others.
        difference = ((stored - computed).norm(dim=-1) / computed.norm(dim=-1)).median().item()
        if not difference <= TOLERANCES[_dtype(model)]:
            raise ValueError(f"its first example is off by {difference:.1%}, so the frozen weights are others")
    except (ValueError, OSError, SafetensorError) as error:
        log.warning("%s is not used: %s. It is made again.", path, error)
        return False
    return True


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"data.cache_frozen needs {needed} bytes ({needed / GIB:.1f} GiB) in {folder}, where {free} "
            f"({free / GIB:.1f} GiB) are free. Set data.cache_folder to a larger disk, or data.cache_frozen=false."
        )


def _write(model: PreTrainedModel, examples: Sequence[Example], path: Path, key: str) -> None:
    """One file: the header's length in 8 bytes, the header, the numbers."""
    begun, size = time.perf_counter(), _nbytes(model, examples)
    shape = [_starts(examples)[-1], model.config.hidden_size]
    states = {"dtype": DTYPE_NAMES[_dtype(model)], "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"format": "pt", "key": key}, "states": states}).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of 8
    _remove_abandoned(path)
    with NamedTemporaryFile(dir=path.parent, prefix=f"{path.stem}.", suffix=".part", delete=False) as file:
        try:
            file.write(len(header).to_bytes(8, "little") + header)
            for row in _rows(examples):
                numbers = frozen_states(model, row).to("cpu", _dtype(model)).contiguous()
                file.write(numbers.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the name on an empty file
            os.chmod(file.name, 0o644)  # a temporary file is its owner's alone
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    log.info("%d tokens, %.3f GiB, in %.1f seconds.", shape[0], size / GIB, time.perf_counter() - begun)


def _rows(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """The examples in their order, as many at once as have `ROW_TOKENS` tokens, but at least one."""
    row: list[Example] = []
    length = 0
    for example in examples:
        if row and length + len(example["input_ids"]) > ROW_TOKENS:
            yield row
            row, length = [], 0
        row.append(example)
        length += len(example["input_ids"])
    yield row


def _remove_abandoned(path: Path) -> None:
    for part in path.parent.glob(f"{path.stem}.*.part"):
        if time.time() - part.stat().st_mtime > ABANDONED:
            part.unlink(missing_ok=True)
