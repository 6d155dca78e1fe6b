"""The miniature's SQuAD and RoBERTa: regenerated to the byte, in the official form, answerable by reading alone."""

import json
import random
import re

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, RobertaForMaskedLM

from miniature import squad
from miniature.build import HERE
from miniature.byte_tokenizer import ROW_LENGTH, byte_tokenizer
from miniature.pages import GAP, INTRODUCTIONS, LAYOUTS, UNTOLD, exercises, pages
from miniature.passages import passage, passage_names, untold
from miniature.pretrain_roberta import (
    MaskedWords,
    accuracy,
    configuration,
    exercise_accuracy,
    look_up_gaps,
    salient_pieces,
    start_with_neighbours,
)
from miniature.roberta_rows import exercise_rows, piece
from miniature.world import VALUES, things
from tasks.squad.records import Article, Question, questions_of, read_articles

SQUAD, ROBERTA = HERE / "data/squad", HERE / "roberta"
FILES = [(split, version) for split in ("train", "dev") for version in ("v1.1", "v2.0")]


def articles(split: str, version: str) -> list[Article]:
    return read_articles(SQUAD / f"{split}-{version}.json", version)


def questions(split: str, version: str) -> list[Question]:
    return list(questions_of(articles(split, version)))


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) & set(passage_names())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROBERTA)


@pytest.fixture(scope="module")
def model() -> RobertaForMaskedLM:
    return RobertaForMaskedLM.from_pretrained(ROBERTA, dtype=torch.float32).eval()


# --- passages -----------------------------------------------------------------------------------------------------


def test_a_passage_tells_its_facts_where_it_says():
    generator = random.Random(0)
    for facts in range(1, 25):
        read = passage(generator, passage_names(), facts)
        assert len(read.facts) == facts
        assert len({(fact.name, fact.attribute) for fact in read.facts}) == facts
        for fact in read.facts:
            assert read.text[fact.start : fact.end] == fact.value
            assert re.split("[ -]", fact.value)[-1] in VALUES[fact.attribute]


def test_passages_are_about_no_thing_of_the_world_and_a_name_is_in_one_split():
    train, dev = set(passage_names("train")), set(passage_names("dev"))
    assert not (train | dev) & {thing.name for thing in things()}
    assert not train & dev
    assert train | dev == set(passage_names())


def test_what_is_untold_is_told_of_another_thing():
    generator = random.Random(0)
    for _ in range(200):
        read = passage(generator, passage_names(), 6)
        name, other = untold(generator, read, passage_names())
        assert other in read.facts
        assert other.name != name
        assert (name, other.attribute) not in {(fact.name, fact.attribute) for fact in read.facts}


# --- SQuAD --------------------------------------------------------------------------------------------------------


def test_committed_files_are_regenerated_to_the_byte():
    files = dict(squad.files())
    assert {path.name for path in SQUAD.iterdir()} == files.keys()
    for name, content in files.items():
        assert (SQUAD / name).read_bytes() == content, name


@pytest.mark.parametrize(("split", "version"), FILES)
def test_the_official_reader_reads_every_answer_at_its_place(split, version):
    for article in articles(split, version):
        for paragraph in article.paragraphs:
            for question in paragraph.questions:
                assert all(answer.fits(paragraph.context) for answer in question.answers)
                given = len(question.answers)
                assert given == (1 if split == "train" else 3) or (given == 0 and version == "v2.0")
                assert names_in(question.text), "every question names a thing"


def test_the_sizes_are_those_of_the_readme():
    sizes = {(split, version): len(questions(split, version)) for split, version in FILES}
    assert sizes == {("train", "v1.1"): 1440, ("train", "v2.0"): 2016, ("dev", "v1.1"): 320, ("dev", "v2.0"): 480}


@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_second_version_holds_the_first_and_questions_without_an_answer(split):
    first, second = questions(split, "v1.1"), questions(split, "v2.0")
    answered = [question for question in second if question.answers]
    assert answered == first
    assert len(answered) < len(second)
    records = json.loads((SQUAD / f"{split}-v2.0.json").read_text(encoding="utf-8"))["data"]
    for paragraph in (paragraph for article in records for paragraph in article["paragraphs"]):
        for record in paragraph["qas"]:
            assert record["is_impossible"] is ("plausible_answers" in record)
            for answer in record.get("plausible_answers", ()):
                assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])


def test_no_thing_of_the_dev_file_and_no_passage_is_in_the_training_file():
    contexts = {
        split: {paragraph.context for article in articles(split, "v2.0") for paragraph in article.paragraphs}
        for split in ("train", "dev")
    }
    seen = {split: names_in(" ".join(sorted(contexts[split]))) for split in contexts}
    assert not seen["train"] & seen["dev"]
    assert not contexts["train"] & contexts["dev"]


def test_answers_differ_in_words_and_length_and_guessing_is_poor():
    answers = [answer.text for question in questions("dev", "v1.1") for answer in question.answers]
    assert {"dark", "old"} & {answer.split()[0] for answer in answers}
    assert any("-" in answer for answer in answers)
    assert any(answer.startswith("the ") for answer in answers)
    assert max(answers.count(text) for text in set(answers)) / len(answers) < 0.05


def test_some_passages_need_windows_and_some_characters_several_bytes(tokenizer):
    contexts = [paragraph.context for article in articles("dev", "v1.1") for paragraph in article.paragraphs]
    lengths = [len(ids) for ids in tokenizer(contexts, add_special_tokens=False).input_ids]
    assert 5 <= sum(length > ROW_LENGTH for length in lengths) <= 20
    assert sum(not context.isascii() for context in contexts) > 10


def test_titles_of_a_file_differ():
    for split in ("train", "dev"):
        titles = [article.title for article in articles(split, "v2.0")]
        assert len(titles) == len(set(titles)) == squad.ARTICLES[split]


# --- pages and tokenizer ------------------------------------------------------------------------------------------


def test_a_page_answers_its_questions_from_its_passage():
    assert all("{q}" in layout and "{a}" in layout for layout in LAYOUTS)
    made = pages(3000)
    assert made == pages(3000)
    told = [page for page in made if not any(sentence in part for part in page for sentence in UNTOLD)]
    assert 0 < len(told) < len(made)
    for page in told:
        asked, read = page if "?" in page[0] else page[::-1]
        answers = re.findall(r"([\w-]+)\.?(?= \(| Ann asks| A child| Question:|$)", asked)
        assert answers
        assert all(re.search(rf"\b{answer}\b", read) for answer in answers)


def test_the_committed_tokenizer_is_regenerated_to_the_byte(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROBERTA / path.name).read_bytes(), path.name


def test_the_tokenizer_has_the_pair_form_of_roberta(tokenizer):
    read = "It is “dark”: in the cave – 日本."
    encoded = tokenizer("Where is Posil?", read, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == f"<s> Where is Posil?</s></s> {read}</s>"
    assert "token_type_ids" not in encoded
    start, end = encoded.offset_mapping[encoded.input_ids.index(piece(tokenizer, "cave"))]
    assert read[start:end] == "cave"


def test_a_name_is_one_piece_wherever_it_stands(tokenizer):
    for name in passage_names():
        (piece,) = tokenizer(name, add_special_tokens=False).input_ids
        assert piece in tokenizer(f"We saw {name} in the cave.").input_ids


# --- the encoder --------------------------------------------------------------------------------------------------


def test_names_and_values_are_masked_more_often(tokenizer):
    salient = salient_pieces(tokenizer)
    loss = MaskedWords(salient)
    torch.manual_seed(0)
    rows = torch.randint(0, len(tokenizer), (200, 128))
    words, masked = loss.mask(rows)
    assert masked[salient[rows]].float().mean() == pytest.approx(0.4, abs=0.02)
    assert masked[~salient[rows] & (rows >= 5)].float().mean() == pytest.approx(0.2, abs=0.01)
    assert not masked[rows < 5].any(), "special tokens stay"
    assert torch.equal(words[~masked], rows[~masked])
    assert (words[masked] == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (words[masked] == rows[masked]).float().mean() == pytest.approx(0.1, abs=0.02)


def test_weights_are_small_and_load_with_a_span_head():
    assert (ROBERTA / "model.safetensors").stat().st_size < 4 * 2**20
    loaded, info = AutoModelForQuestionAnswering.from_pretrained(ROBERTA, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"qa_outputs"}
    assert loaded.config.max_position_embeddings == ROW_LENGTH + 2


def test_the_encoder_looks_up_what_it_reads_and_does_exercises(model, tokenizer):
    assert exercise_accuracy(model, tokenizer) > 0.7
    for masked in ("answer", "passage"):
        assert accuracy(model, tokenizer, look_up_gaps(masked)) > 0.7  # chance is .125


def test_an_exercise_shows_the_words_that_are_left_out(tokenizer):
    made = exercises(400)
    introduced = [exercise for exercise in made if exercise.question.startswith(INTRODUCTIONS)]
    assert 0.4 < len(introduced) / len(made) < 0.8
    assert all(exercise.gap == (0, 0) for exercise in made if exercise not in introduced)
    gap = piece(tokenizer, GAP)
    for exercise, (shown, right, is_exercise) in zip(made[:100], exercise_rows(tokenizer, made[:100]), strict=True):
        left_out = tokenizer.decode([id for id, other in zip(shown, right, strict=True) if other == gap])
        assert left_out.strip() == exercise.passage[slice(*exercise.gap)]
        assert is_exercise


def test_start_with_neighbours_looks_some_tokens_back_or_ahead(tokenizer):
    model = RobertaForMaskedLM(configuration(len(tokenizer)))
    torch.manual_seed(0)
    start_with_neighbours(model)
    attention = model.roberta.encoder.layer[0].attention.self
    states = model.roberta.embeddings.position_embeddings.weight[2:]  # [positions, C], the words' part left out
    query, key = (
        layer(states / states.std()).unflatten(-1, (4, -1)).transpose(0, 1)
        for layer in (attention.query, attention.key)
    )
    nearest = (query @ key.transpose(1, 2)).argmax(dim=-1)[:, 10:-10] - torch.arange(10, len(states) - 10)
    assert nearest.float().median(dim=1).values.tolist() == [-1, 1, -2, 2]
