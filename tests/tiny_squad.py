"""A SQuAD of a few questions in the official layout, tokenizers for it, and the real files that tests use."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, RobertaTokenizer

from tasks.squad.data import SpanCollator
from tasks.squad.pairs import PairTemplate
from tasks.squad.records import read_articles
from tasks.squad.tokens import squad_tokens
from tasks.squad.windows import WindowConfig, Windows

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
FILES = {"dev-v1.1.rebuilt": "v1.1", "dev-v2.0.rebuilt": "v2.0", "dev-v2.0-slice": "v2.0"}

CONTEXT = "The red ball is in the box. A blue lamp of 1990s—style stands beside Zoë's bed."

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "red",
    "ball",
    "is",
    "in",
    "box",
    ".",
    "?",
    "where",
    "##s",
    "a",
]


def answer(text: str, context: str = CONTEXT, start: int | None = None) -> dict:
    return {"text": text, "answer_start": context.index(text) if start is None else start}


def question(id: str, *answers: dict, text: str = "Which is it?", **changed: object) -> dict:
    """One of v2.0; without `is_impossible` one of v1.1."""
    return {"id": id, "question": text, "answers": list(answers), "is_impossible": not answers} | changed


def article(*questions: dict, context: str = CONTEXT, title: str = "Things") -> dict:
    return {"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}


def write_squad(folder: Path, *articles: dict, name: str = "dev-v2.0.json", version: str = "v2.0") -> Path:
    """Writes a file and returns its path."""
    path = folder / name
    path.write_text(json.dumps({"version": version, "data": list(articles)}), encoding="utf-8")
    return path


def make_articles(count: int, start: int = 0) -> list[dict]:
    """Articles of three questions each, the last of which has no answer."""
    articles = []
    for number in range(start, start + count):
        context = f"Ball {number} is {('red', 'blue', 'green')[number % 3]}. " * (1 + number % 4) + "Lamps stand there."
        colour = ("red", "blue", "green")[number % 3]
        questions = [
            question(f"{number}a", answer(colour, context), text=f"Which colour has ball {number}?"),
            question(f"{number}b", answer("there", context), answer("there.", context), text="Where do lamps stand?"),
            question(f"{number}c", text="Who bought the lamps?"),
        ]
        articles.append(article(*questions, context=context, title=f"Ball {number}"))
    return articles


def byte_tokenizer() -> RobertaTokenizer:
    """RoBERTa's with a token for every byte and no merges: a span of tokens is any span of characters."""
    pieces = (*SPECIALS, *sorted(ByteLevel.alphabet()), "<mask>")
    return RobertaTokenizer(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[])


def bert_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: id for id, word in enumerate(WORDS)})


def roberta_tokenizer(shared: Path) -> RobertaTokenizer:
    """The real one, put together from GPT-2's files and RoBERTa's dictionary."""
    folder = shared / "data/tokenizers"
    pieces = {id: piece for piece, id in json.loads((folder / "gpt2/vocab.json").read_text(encoding="utf-8")).items()}
    names = [line.split()[0] for line in (folder / "roberta/dict.txt").read_text().splitlines()]
    words = [pieces[int(name)] if name.isdigit() else name for name in names]
    merges = (folder / "gpt2/merges.txt").read_text(encoding="utf-8").splitlines()
    return RobertaTokenizer(
        vocab={piece: id for id, piece in enumerate((*SPECIALS, *words, "<mask>"))},
        merges=[tuple(line.split(" ")) for line in merges if line and not line.startswith("#version")],
    )


def windows_of(path: Path, version: str, tokenizer, config: WindowConfig | None = None, **options) -> Windows:
    articles = read_articles(path, version)
    tokens = squad_tokens(path, articles, tokenizer, cache=None, workers=0)
    return Windows(articles, tokens, PairTemplate.of(tokenizer), config or WindowConfig(), **options)


def data_of(windows: Windows, version: str, pad_id: int = 1) -> SimpleNamespace:
    """What an evaluation takes of a DataModule."""
    return SimpleNamespace(test_dataset=windows, collator=SpanCollator(pad_id), version=version)


class Predictor(torch.nn.Module):
    """A model that knows the answers: logits of 9 where they begin and end, 0 elsewhere.

    It takes the windows in the order of an evaluation on one device, the longest first.

    Args:
        windows: that it is asked.
        answers: number of a question to the first and the last token of the context that hold its answer; a question
            that is not there has none.
    """

    device = torch.device("cpu")

    def __init__(self, windows: Windows, answers: dict[int, tuple[int, int]]) -> None:
        super().__init__()
        self.windows = windows
        self.answers = answers
        self.order = iter(sorted(range(len(windows)), key=lambda window: -windows.lengths[window]))

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        logits = torch.zeros(2, *input_ids.shape)
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            window = next(self.order)
            assert length == self.windows.lengths[window]
            logits[:, row, 0] = 1.0
            begin, first = int(self.windows.context_begin[window]), int(self.windows.first[window])
            places = self.answers.get(int(self.windows.question[window]))
            if places and first <= places[0] and places[1] < first + int(self.windows.count[window]):
                logits[0, row, begin + places[0] - first] = 9.0
                logits[1, row, begin + places[1] - first] = 9.0
        return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])
