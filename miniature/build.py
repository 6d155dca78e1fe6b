"""Regenerates the committed data and tokenizer, byte-identical every time.

`python -m miniature.build [--output folder]`
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from llama_adapter.files import whole_file
from miniature.instructions import records
from miniature.tokenizer import tokenizer_model
from miniature.world import SPLIT_SIZES

HERE = Path(__file__).parent

log = logging.getLogger(__name__)


def alpaca_json(split: str) -> bytes:
    """One instruction file in the official format, as bytes."""
    return (json.dumps(records(split), indent=1, ensure_ascii=False) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def build(output: Path) -> None:
    """Writes `data/alpaca/*.json` and `llama/tokenizer.model` under `output`."""
    for split in SPLIT_SIZES:
        write(output / "data" / "alpaca" / f"{split}.json", alpaca_json(split))
    write(output / "llama" / "tokenizer.model", tokenizer_model())
    log.info("wrote data/alpaca and llama/tokenizer.model under %s", output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: this package)")
    build(parser.parse_args().output)
