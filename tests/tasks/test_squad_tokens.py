"""Texts as tokens: in one process and in several, and from a cache that is checked."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from tasks.squad import tokens as module
from tasks.squad.records import read_articles
from tasks.squad.tokens import Pieces, cache_key, squad_tokens, tokenize_texts
from tests.conftest import ROOT
from tests.tiny_squad import article, byte_tokenizer, make_articles, question, write_squad

TEXTS = ["A red ball.", "", "  Zoë's — 日本 \ufeff", "</s> <mask>", "x" * 700]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def equal(one: Pieces, other: Pieces) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "offsets", "bounds"))


def test_texts_end_to_end(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 2)
    pieces = tokenize_texts(TEXTS, tokenizer)
    assert len(pieces) == 5
    assert (pieces.ids.dtype, pieces.offsets.dtype) == (torch.int32, torch.int32)
    assert [pieces.of(n).stop - pieces.of(n).start for n in range(5)] == [len(text.encode()) for text in TEXTS]
    for number, text in enumerate(TEXTS):
        assert tokenizer.decode(pieces.ids[pieces.of(number)]) == text
        for start, end in pieces.offsets[pieces.of(number)].tolist():
            assert 0 <= start <= end <= len(text)


def test_every_byte_of_a_character_stands_for_the_whole_of_it(tokenizer):
    pieces = tokenize_texts(["aëb"], tokenizer)
    assert pieces.offsets.tolist() == [[0, 1], [1, 2], [1, 2], [2, 3]]


def test_text_is_only_ever_text(tokenizer):
    ids = tokenize_texts(["</s> <mask>"], tokenizer).ids.tolist()
    assert not {tokenizer.eos_token_id, tokenizer.mask_token_id} & set(ids)


def test_no_texts(tokenizer):
    pieces = tokenize_texts([], tokenizer)
    assert (len(pieces), pieces.ids.shape, pieces.offsets.shape) == (0, (0,), (0, 2))


def test_several_processes_give_the_same(tmp_path):
    """In a process of its own: what is spawned imports its main module, which is pytest here."""
    script = tmp_path / "script.py"
    script.write_text(
        "if __name__ == '__main__':\n"
        "    from tasks.squad import tokens\n"
        "    from tests.tiny_squad import byte_tokenizer\n"
        "    tokens.TOGETHER = 3\n"
        "    texts = [f'Ball {number} — Zoë' for number in range(20)]\n"
        "    one, two = (tokens.tokenize_texts(texts, byte_tokenizer(), workers=workers) for workers in (0, 2))\n"
        "    assert all((getattr(one, n) == getattr(two, n)).all() for n in ('ids', 'offsets', 'bounds'))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "/20 [" in done.stderr, "the progress bar"


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = write_squad(tmp_path, *make_articles(2))
    return path, read_articles(path, "v2.0")


def cached(file, tokenizer, folder, **options):
    return squad_tokens(*file, tokenizer, cache=folder, workers=0, **options)


def test_a_second_reading_tokenises_nothing(file, tokenizer, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    made = cached(file, tokenizer, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").iterdir()
    assert stored.name.startswith("dev-v2.0-")
    monkeypatch.setattr(module, "tokenize_texts", None)
    read = cached(file, tokenizer, tmp_path / "cache")
    assert equal(made.contexts, read.contexts)
    assert equal(made.questions, read.questions)
    assert f"The tokens of {file[0]} are from {stored}." in caplog.messages


def test_what_the_tokens_depend_on_decides_the_key(file, tokenizer, tmp_path):
    path, _ = file
    key = cache_key(path, tokenizer)
    assert cache_key(path, byte_tokenizer()) == key
    tokenizer("a", "b", truncation=True, max_length=5, padding="max_length")  # leaves its settings behind
    assert cache_key(path, tokenizer) == key
    other = byte_tokenizer()
    other.add_tokens(["ball"])
    assert cache_key(path, other) != key
    again = tmp_path / "again.json"
    again.write_bytes(path.read_bytes())
    assert cache_key(again, tokenizer) == key
    again.write_bytes(path.read_bytes().replace(b"red", b"RED"))
    assert cache_key(again, tokenizer) != key


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-7], ""),
        (lambda content: b"", ""),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "its contents are not those that were written"),
        (lambda content: content.replace(b"contexts.ids", b"contexts.xds"), "it has no 'contexts.ids'"),
    ],
    ids=["cut off", "empty", "a bit changed", "a name changed"],
)
def test_a_damaged_file_is_made_again(file, tokenizer, tmp_path, caplog, damage, reason):
    made = cached(file, tokenizer, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(damage(stored.read_bytes()))
    again = cached(file, tokenizer, tmp_path / "cache")
    assert equal(made.contexts, again.contexts)
    (warning,) = caplog.messages
    assert equal(cached(file, tokenizer, tmp_path / "cache").contexts, made.contexts)
    assert len(caplog.messages) == 1, "what was made again is not damaged"
    assert warning.startswith(f"The cached tokens in {stored} are damaged ({reason}")
    assert warning.endswith("); they are made again.")


def test_the_file_of_other_data_is_not_taken(file, tokenizer, tmp_path, caplog):
    made = cached(file, tokenizer, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").iterdir()
    other = write_squad(tmp_path, *make_articles(3), name="dev-v2.0.json")
    articles = read_articles(other, "v2.0")
    key = cache_key(other, tokenizer)
    stored.rename(stored.with_name(f"dev-v2.0-{key[:16]}.safetensors"))
    again = cached((other, articles), tokenizer, tmp_path / "cache")
    assert len(again.contexts) == 3 != len(made.contexts)
    assert "its contents are not those that were written" in caplog.text


def test_nothing_is_left_of_a_file_that_was_not_finished(file, tokenizer, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        cached(file, tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_blanks_around_a_question_are_left_out(tmp_path, tokenizer):
    path = write_squad(tmp_path, article(question("a", text=" \n Where? ")))
    tokens = squad_tokens(path, read_articles(path, "v2.0"), tokenizer, cache=None, workers=0)
    assert tokenizer.decode(tokens.questions.ids) == "Where?"
