"""Regenerates the committed data and tokenizer, byte-identical every time.

`python -m miniature.build [--output folder]`
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from miniature.instructions import records
from miniature.tokenizer import tokenizer_model
from miniature.world import SPLIT_SIZES

HERE = Path(__file__).parent

log = logging.getLogger(__name__)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes under a temporary name and renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def alpaca_json(split: str) -> bytes:
    """One instruction file in the official format, as bytes."""
    return (json.dumps(records(split), indent=1, ensure_ascii=False) + "\n").encode()


def build(output: Path) -> None:
    """Writes `data/alpaca/*.json` and `llama/tokenizer.model` under `output`."""
    for split in SPLIT_SIZES:
        write_atomically(output / "data" / "alpaca" / f"{split}.json", alpaca_json(split))
    write_atomically(output / "llama" / "tokenizer.model", tokenizer_model())
    log.info("wrote data/alpaca and llama/tokenizer.model under %s", output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: this package)")
    build(parser.parse_args().output)
