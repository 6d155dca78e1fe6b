"""The miniature is what it says: regenerated to the byte, fair to the frozen model, small enough to commit."""

import json
import re

import pytest
import torch

from llama_adapter.loading import load_backbone
from llama_adapter.tokenizer import load_tokenizer
from miniature.build import HERE, build
from miniature.text import documents
from miniature.world import SPLIT_SIZES, things, things_of

KINDS = {"recall", "list", "compare", "choose", "count", "rewrite", "complete", "input"}


def records(split: str) -> list[dict[str, str]]:
    return json.loads((HERE / "data/alpaca" / f"{split}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(documents())


@pytest.mark.slow
def test_committed_data_and_tokenizer_are_regenerated_to_the_byte(tmp_path):
    build(tmp_path)
    for file in ("llama/tokenizer.model", *(f"data/alpaca/{split}.json" for split in SPLIT_SIZES)):
        assert (tmp_path / file).read_bytes() == (HERE / file).read_bytes(), file


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_every_kind_asks_about_the_things_of_its_split_alone(split):
    names = {thing.name for thing in things()}
    own = {thing.name for thing in things_of(split)}
    asked = {kind: set() for kind in KINDS}
    for record in records(split):
        words = set(re.findall(r"\w+", " ".join((record["instruction"], record["input"], record["output"]))))
        assert words & names <= own, record
        asked[record["kind"]] |= words & names
    assert set(asked) == KINDS
    assert all(asked.values())


def test_outputs_are_the_facts():
    by_name = {thing.name: thing for thing in things()}
    for record in records("test"):
        if record["kind"] not in ("recall", "count"):
            continue
        (name,) = set(re.findall(r"\w+", record["instruction"])) & by_name.keys()
        attributes = ["number"] if record["kind"] == "count" else ["colour", "shape", "place", "number", "material"]
        assert record["output"] in {by_name[name].value(attribute) for attribute in attributes}


def test_text_tells_every_thing_but_no_instruction(text):
    assert len(text.split()) > 300_000
    assert all(len(re.findall(rf"\b{thing.name}\b", text)) > 100 for thing in things())
    assert not re.search(r"###|Instruction:|Response:|Below is an instruction", text)
    instructions = {record["instruction"] for split in SPLIT_SIZES for record in records(split)}
    assert not [instruction for instruction in instructions if instruction in text]


def test_no_document_ends_on_a_bare_answer():
    values = {thing.value(attribute) for thing in things() for attribute in ("colour", "shape", "place", "material")}
    ends = {document.strip().split("\n")[-1].strip().rstrip(".") for document in documents()}
    assert not ends & values


def test_weights_are_small_and_load():
    assert (HERE / "llama/model.safetensors").stat().st_size < 8 * 2**20
    model, tokenizer = load_backbone(HERE / "llama"), load_tokenizer(HERE / "llama")
    assert 2_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 4_000_000
    assert tokenizer.vocabulary_size == model.config.vocab_size
    thing = things_of("test")[0]
    ids = tokenizer.encode(f"{thing.name} has the shape of a", bos=True)
    with torch.no_grad():
        likeliest = model(torch.tensor([ids])).logits[0, -1].argmax()
    assert tokenizer.decode([likeliest]).strip() == thing.shape  # known though no instruction tells it
