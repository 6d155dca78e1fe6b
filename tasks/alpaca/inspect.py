"""Shows what is trained on: `python -m tasks.alpaca.inspect --data alpaca_data.json --tokenizer tokenizer.model`.

Prints the first examples with their trained tokens coloured, then lengths and truncations of the whole file. Without
arguments it shows the miniature.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, median

from llama_adapter.encoding import ENCODINGS, Encoding
from llama_adapter.tokenizer import Tokenizer, load_tokenizer
from tasks.alpaca.prompt import resolve_template
from tasks.alpaca.records import read_records

ROOT = Path(__file__).parents[2]
TRAINED, PLAIN = "\033[1;32m", "\033[0m"


def coloured(tokenizer: Tokenizer, encoding: Encoding, *, colour: bool = True) -> str:
    """One example, a bar between tokens; trained tokens are green, or in [brackets] without colour."""
    pieces = []
    for position, piece in enumerate(tokenizer.pieces(encoding.ids)):
        trained = position >= encoding.prompt_length
        text = piece.replace("▁", " ").replace("<0x0A>", "\n").replace("Ċ", "\n").replace("Ġ", " ")
        if trained:
            text = f"{TRAINED}{text}{PLAIN}" if colour else f"[{text}]"
        pieces.append(text)
    return ("│" if colour else "").join(pieces)


def summary(encodings: list[Encoding], max_length: int) -> str:
    """Lengths and truncations of a file, as a few lines."""
    lengths = sorted(encoding.full_length for encoding in encodings)
    trained = [encoding.trained_tokens for encoding in encodings]
    cut = [number for number, encoding in enumerate(encodings) if encoding.truncated]
    empty = [number for number, count in enumerate(trained) if not count]
    percentile = {q: lengths[min(len(lengths) - 1, len(lengths) * q // 100)] for q in (90, 99)}
    lines = [
        f"{len(encodings)} examples, {sum(len(encoding.ids) for encoding in encodings)} tokens, {sum(trained)} trained",
        f"tokens before cutting: mean {mean(lengths):.1f}, median {median(lengths):.0f}, "
        f"90 % {percentile[90]}, 99 % {percentile[99]}, longest {lengths[-1]}",
        f"trained tokens: mean {mean(trained):.1f}, fewest {min(trained)}, most {max(trained)}",
        f"cut to {max_length} tokens: {len(cut)}" + (f" (records {_few(cut)})" if cut else ""),
        f"without a trained token: {len(empty)}" + (f" (records {_few(empty)})" if empty else ""),
    ]
    return "\n".join(lines)


def _few(numbers: list[int], most: int = 10) -> str:
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tasks.alpaca.inspect", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=ROOT / "miniature/data/alpaca/train.json", help="a file of the Alpaca layout")
    parser.add_argument("--tokenizer", default=ROOT / "miniature/llama", help="tokenizer.model, or a model's folder")
    parser.add_argument("--encoding", default="default", choices=sorted(ENCODINGS))
    parser.add_argument("--template", default="alpaca")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--first", type=int, default=3, help="examples to show")
    parser.add_argument("--no-color", action="store_true", help="trained tokens in [brackets]")
    options = parser.parse_args(arguments)
    try:
        tokenizer = load_tokenizer(options.tokenizer)
        template = resolve_template(options.template)
        records = read_records(options.data)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    encode = ENCODINGS[options.encoding]
    encodings = [encode(tokenizer, template.prompt(r), r["output"], options.max_length) for r in records]
    colour = not options.no_color and sys.stdout.isatty()
    for number, encoding in enumerate(encodings[: options.first]):
        title = f"--- record {number}: {len(encoding.ids)} tokens, {encoding.trained_tokens} trained"
        sys.stdout.write(f"{title}\n{coloured(tokenizer, encoding, colour=colour)}\n\n")
    sys.stdout.write(summary(encodings, options.max_length) + "\n")


if __name__ == "__main__":
    main()
