"""The authors' encoding to the id, and what the default one promises instead."""

import hashlib
import json
import random

import pytest
import torch

from llama_adapter.encoding import ENCODINGS, EncodedDataset, Encoding, encode_default, encode_paper
from llama_adapter.tokenizer import Tokenizer, load_tokenizer
from tasks.alpaca.prompt import TEMPLATES
from tests.tiny_run import make_tokenizer

ANSWERS = [
    "It is red.",
    " leading blank",
    ":) and :-(",
    "\n- one\n- two",
    "{x}",
    "",
    "Zürich 🦙 日本",
    "a" * 40,
    "</s>",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("name", "model"),
    [("tiny", "golden/alpaca/tokenizer_tiny.model"), ("llama", "data/tokenizers/llama/tokenizer.model")],
)
def test_paper_encoding_agrees_with_the_authors_code_to_the_id(shared, name, model):
    golden = json.loads((shared / f"golden/alpaca/encodings_{name}.json").read_text())
    examples = json.loads((shared / "golden/alpaca/alpaca_examples.json").read_text())
    assert hashlib.sha256((shared / model).read_bytes()).hexdigest() == golden["tokenizer"]["sha256"]
    tokenizer = load_tokenizer(shared / model)
    # A shorter `max_words` gives a prefix, and the larger file then leaves the ids out.
    ids = {case["example"]: case["ids"] for case in golden["encodings"] if isinstance(case["ids"], list)}
    for case in golden["encodings"]:
        record = examples[case["example"]]
        encoding = encode_paper(tokenizer, TEMPLATES["alpaca"].prompt(record), record["output"], case["max_words"])
        example = encoding.example()
        expected = torch.full((case["n_real"],), -100)
        for start, end in case["label_runs"]:
            expected[start:end] = torch.tensor(ids[case["example"]])[start:end]
        assert encoding.ids == ids[case["example"]][: case["n_real"]]
        assert torch.equal(example["labels"], expected)
        assert torch.equal(example["input_ids"], torch.tensor(encoding.ids))
        assert encoding.full_length == case["untruncated_len"]
        assert encoding.truncated == case["truncated"]
        assert encoding.prompt_length == case["prompt_len"]
        assert (encoding.ids[-1] == tokenizer.eos_id) == case["eos_kept"]
        assert (encoding.trained_tokens == 0) == case["all_labels_ignored"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_default_encoding_trains_exactly_the_answer(tokenizer, answer):
    prompt = "Instruction: name it\nResponse:"
    encoding = encode_default(tokenizer, prompt, answer, 512)
    example = encoding.example()
    trained = example["labels"] != -100
    assert tokenizer.decode(example["input_ids"][trained].tolist()) == answer
    assert tokenizer.decode(example["input_ids"][~trained].tolist()) == prompt
    assert example["input_ids"][0] == tokenizer.bos_id
    assert example["input_ids"][-1] == example["labels"][-1] == tokenizer.eos_id
    assert torch.equal(example["labels"][trained], example["input_ids"][trained])
    assert int(trained.sum()) == encoding.trained_tokens == len(tokenizer.encode(answer)) + 1
    assert not encoding.truncated


def test_default_encoding_of_the_golden_examples_trains_every_piece(shared):
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama/tokenizer.model")
    for record in json.loads((shared / "golden/alpaca/alpaca_examples.json").read_text()):
        encoding = encode_default(tokenizer, TEMPLATES["alpaca"].prompt(record), record["output"], 2048)
        assert tokenizer.decode(encoding.ids[encoding.prompt_length :]) == record["output"]


def test_default_encoding_keeps_eos_when_an_answer_is_cut(tokenizer):
    prompt, answer = "Instruction: count\nResponse:", "one two three four five six seven"
    whole = encode_default(tokenizer, prompt, answer, 512)
    for max_length in range(whole.prompt_length + 2, len(whole.ids)):
        cut = encode_default(tokenizer, prompt, answer, max_length)
        assert len(cut.ids) == max_length
        assert cut.ids == [*whole.ids[: max_length - 1], tokenizer.eos_id]
        assert cut.truncated
        assert cut.trained_tokens == max_length - whole.prompt_length
        assert cut.full_length == len(whole.ids)


@pytest.mark.parametrize("missing", [1, 0, -1, -3])
def test_default_encoding_without_room_for_an_answer_trains_nothing(tokenizer, missing):
    prompt = "Instruction: name it\nResponse:"
    prompt_length = len(tokenizer.encode(prompt, bos=True))
    encoding = encode_default(tokenizer, prompt, "red and blue", prompt_length + missing)
    assert encoding.trained_tokens == 0
    assert len(encoding.ids) <= prompt_length + missing
    assert encoding.truncated
    assert (encoding.example()["labels"] == -100).all()


@pytest.mark.parametrize("name", ENCODINGS)
def test_properties_of_random_texts(tokenizer, name):
    draw = random.Random(0)
    for _ in range(200):
        prompt, answer = ("".join(draw.choices("ab :{}-/\n1🦙", k=draw.randint(1, 30))) for _ in range(2))
        max_length = draw.randint(4, 80)
        encoding = ENCODINGS[name](tokenizer, prompt, answer, max_length)
        example = encoding.example()
        assert len(example["input_ids"]) == len(example["labels"]) <= max_length
        assert int((example["labels"] != -100).sum()) == encoding.trained_tokens
        assert encoding.truncated == (encoding.full_length > len(encoding.ids))
        assert example["input_ids"][0] == tokenizer.bos_id


def test_dataset_counts():
    cut, whole = Encoding([1, 5, 6, 2], 2, 9), Encoding([1, 5, 2], 1, 3)
    dataset = EncodedDataset([cut, whole], dropped=3)
    assert (len(dataset), dataset.truncated, dataset.dropped) == (2, 1, 3)
    assert (dataset.tokens, dataset.trained_tokens) == (7, 4)
    assert dataset[0]["labels"].tolist() == [-100, -100, 6, 2]
    assert dataset[-1]["labels"].tolist() == [-100, 5, 2]
