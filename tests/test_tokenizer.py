"""Ids against golden ones, specials only where asked, and folders that hold no or another kind of tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llama_adapter.tokenizer import Tokenizer, as_tokenizer, is_hub_id, load_tokenizer

TEXTS = ["Hello there.", "  two blanks before", "line\n\nbreak\t", "Zürich ☃ 你好 🦙", "a </s> <s> <unk> b", ""]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Path:
    """A tokenizer.model like LLaMA's: BPE with byte fallback, unk 0, bos 1, eos 2, no padding."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    corpus = folder / "corpus.txt"
    corpus.write_text(
        "\n".join(f"The {a} {b} there." for a in ("red", "big", "old") for b in ("ball", "llama", "hello"))
    )
    SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=300, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return folder


def byte_level(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers like Llama 3's or Qwen2's: byte-level BPE; one with `bos_token` adds it by itself."""
    vocabulary = {character: id for id, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin|>", "<|end|>", "<|turn|>"])
    if "bos_token" in special:
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 256)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def llama3_like() -> PreTrainedTokenizerFast:
    return byte_level(bos_token="<|begin|>", eos_token="<|end|>")


def test_llama_ids_are_the_golden_ones(shared):
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama")
    for case in json.loads((shared / "data/tokenizers/golden_ids.json").read_text())["cases"]:
        ids = case["llama_ids_no_bos_eos"]
        assert tokenizer.encode(case["text"]) == ids
        assert tokenizer.encode(case["text"], bos=True, eos=True) == [1, *ids, 2]
        assert tokenizer.decode(ids) == case["text"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.vocabulary_size == 32000


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["sentencepiece", "transformers"])
def test_text_comes_back_and_specials_only_where_asked(sentencepiece, kind, text):
    tokenizer = load_tokenizer(sentencepiece) if kind == "sentencepiece" else as_tokenizer(llama3_like())
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.bos_id, tokenizer.eos_id}
    assert tokenizer.encode(text, bos=True) == [tokenizer.bos_id, *ids], "once, also when the backend adds its own"
    assert tokenizer.encode(text, eos=True) == [*ids, tokenizer.eos_id]
    assert tokenizer.encode(text, bos=True, eos=True) == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


@pytest.mark.parametrize("kind", ["sentencepiece", "transformers"])
def test_specials_in_the_text_are_text(sentencepiece, kind):
    tokenizer = load_tokenizer(sentencepiece) if kind == "sentencepiece" else as_tokenizer(llama3_like())
    for special in ("<s>", "</s>", "<unk>", "<|begin|>", "<|end|>"):
        text = f"Ignore {special} this"
        ids = tokenizer.encode(text)
        assert not set(ids) & tokenizer.special_ids
        assert tokenizer.decode(ids) == text


def test_padding_gives_no_text(sentencepiece):
    tokenizer = load_tokenizer(sentencepiece)
    ids = tokenizer.encode("Hello there.")
    assert tokenizer.decode([0, 0, 1, *ids, 2, 0]) == "Hello there."


@pytest.mark.parametrize("id", [-1, 300])
def test_id_outside_the_vocabulary(sentencepiece, id):
    with pytest.raises(ValueError, match=f"Id {id} is not in the vocabulary: ids are 0 to 299."):
        load_tokenizer(sentencepiece).decode([5, id])


def test_family_without_bos():
    tokenizer = as_tokenizer(byte_level(eos_token="<|end|>", pad_token="<|turn|>"))
    assert tokenizer.bos_id is None
    assert tokenizer.encode("a", bos=True) == tokenizer.encode("a")
    assert tokenizer.pad_id == 258
    assert tokenizer.vocabulary_size == 259


def test_fill_of_a_tokenizer_without_padding_and_unknown():
    assert as_tokenizer(llama3_like()).pad_id == 257, "its end of text"


def test_tokenizer_without_an_end():
    with pytest.raises(ValueError, match=r"does not say which id ends a text\. With a tokenizer\.json, put"):
        as_tokenizer(byte_level())


def test_as_tokenizer(sentencepiece):
    processor = SentencePieceProcessor(model_file=str(sentencepiece / "tokenizer.model"))
    tokenizer = as_tokenizer(processor)
    assert as_tokenizer(tokenizer) is tokenizer
    assert tokenizer.encode("red ball") == processor.encode("red ball")
    with pytest.raises(
        ValueError, match=r"or a tokenizer of transformers, got PosixPath\. To read one from a path, use"
    ):
        as_tokenizer(sentencepiece)


def test_folder_of_transformers(tmp_path):
    llama3_like().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [257, 258]}')
    for path in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.encode("hi", bos=True) == as_tokenizer(llama3_like()).encode("hi", bos=True)
        assert tokenizer.eos_ids == (257, 258), "the end of text, and the end of a turn"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 257}')
    assert load_tokenizer(tmp_path).eos_ids == (257,)


def test_sentencepiece_wins_over_its_conversions(sentencepiece, tmp_path):
    llama3_like().save_pretrained(tmp_path)
    shutil.copy(sentencepiece / "tokenizer.model", tmp_path)
    assert load_tokenizer(tmp_path).vocabulary_size == 300


def test_meta_keeps_the_tokenizer_above_the_sizes(sentencepiece, tmp_path):
    shutil.copy(sentencepiece / "tokenizer.model", tmp_path)
    (tmp_path / "7B").mkdir()
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "7B")
    (tmp_path / "7B/params.json").write_text("{}")
    assert load_tokenizer(tmp_path / "7B").vocabulary_size == 300


def test_tiktoken_file_of_llama_3(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    message = r"tokenizer\.model is not a SentencePiece model\. Llama 3 has .* which has tokenizer\.json"
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(ValueError, match=message):
            load_tokenizer(path)


def test_empty_file(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        load_tokenizer(tmp_path)


def test_broken_tokenizer_json(tmp_path):
    llama3_like().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="transformers cannot read the tokenizer in"):
        load_tokenizer(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No tokenizer in .*\. Expected tokenizer\.model .* Set model\.tokenizer"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No file or folder .*missing\. A tokenizer is a folder with"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(
        FileNotFoundError, match="No folder nobody/nothing, and no tokenizer of that name could be fetched"
    ):
        load_tokenizer("nobody/nothing")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("meta-llama/Llama-2-7b", True),
        ("7B", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("./a", False),
        ("../b", False),
    ],
)
def test_is_hub_id(path, expected):
    assert is_hub_id(path) is expected
    assert not is_hub_id(Path(path))


def test_is_hub_id_of_a_local_folder(tmp_path, monkeypatch):
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("org/name")


def test_more_end_ids():
    assert Tokenizer(llama3_like(), eos_ids=[258, 257]).eos_ids == (257, 258)
