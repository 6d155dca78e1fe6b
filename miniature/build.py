"""Regenerates the committed data and tokenizer: texts byte-identical every time, pictures pixel-identical.

How a PNG is packed depends on the library that Pillow was built with, so two machines may differ in its bytes.

`python -m miniature.build [--output folder]`
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from PIL import Image

from llama_adapter.files import whole_file
from miniature import coco, scienceqa, squad, vtab
from miniature.byte_tokenizer import byte_tokenizer
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


def write_picture(path: Path, image: Image.Image) -> None:
    """As a PNG with a palette: the scenes have few colours. Not through `write`, which waits for the disk each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(len(image.getcolors()), dither=Image.Dither.NONE).save(path, optimize=True)


def build(output: Path) -> None:
    """Writes `data/`, `llama/tokenizer.model` and `roberta/tokenizer.json` under `output`."""
    for split in SPLIT_SIZES:
        write(output / "data" / "alpaca" / f"{split}.json", alpaca_json(split))
    for name, data_set in (("scienceqa", scienceqa), ("coco", coco), ("squad", squad), ("vtab1k", vtab)):
        for path, content in data_set.files():
            if isinstance(content, bytes):
                write(output / "data" / name / path, content)
            else:
                write_picture(output / "data" / name / path, content)
    write(output / "llama" / "tokenizer.model", tokenizer_model())
    byte_tokenizer().save_pretrained(output / "roberta")
    log.info("wrote data and tokenizers under %s", output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: this package)")
    build(parser.parse_args().output)
