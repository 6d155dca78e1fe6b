"""Windows against those that transformers makes, and the places of answers against the texts they stand for."""

import json
import sys

import pytest
import torch

from llama_adapter.examples import IGNORED
from tasks.squad.records import read_articles
from tasks.squad.windows import NO_ANSWER, WindowConfig, Windows
from tests.tiny_squad import (
    CONTEXT,
    FILES,
    answer,
    article,
    bert_tokenizer,
    byte_tokenizer,
    question,
    roberta_tokenizer,
    windows_of,
    write_squad,
)


def official_windows(tokenizer, asked: str, context: str, config: WindowConfig) -> list[tuple[list[int], list]]:
    """Rows and context offsets as transformers itself cuts them; its stride is the overlap."""
    made = tokenizer(
        asked, context, truncation="only_second", max_length=config.max_length, stride=config.doc_stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    rows = []
    for number, ids in enumerate(made["input_ids"]):
        owners = made.sequence_ids(number)
        offsets = [list(pair) for pair, owner in zip(made["offset_mapping"][number], owners, strict=True) if owner == 1]
        rows.append((ids, offsets, made["token_type_ids"][number] if "token_type_ids" in made else None))
    return rows


CONTEXTS = [
    CONTEXT,
    "a",
    "the red ball is in the box . " * 9,
    "  Blanks  before\tand\nZoë — 日本語 after. ",
    "is " * 31,
]


@pytest.mark.parametrize("make", [byte_tokenizer, bert_tokenizer])
@pytest.mark.parametrize(("max_length", "overlap"), [(64, 0), (40, 10), (33, 20), (200, 5)])
def test_rows_are_those_of_transformers(tmp_path, make, max_length, overlap):
    tokenizer, asked = make(), "where is it?"
    config = WindowConfig(max_length, overlap, "overlap", max_question_length=8)
    for number, context in enumerate(CONTEXTS):
        path = write_squad(tmp_path, article(question("a", text=asked[:8]), context=context), name=f"{number}.json")
        windows = windows_of(path, "v2.0", tokenizer, config)
        expected = official_windows(tokenizer, asked[:8], context, config)
        assert len(windows) == len(expected)
        for window, (ids, offsets, types) in enumerate(expected):
            example = windows[window]
            assert example["input_ids"].tolist() == ids
            assert windows.offsets(window).tolist() == offsets
            assert windows.lengths[window] == len(ids)
            assert ("token_type_ids" in example) == (types is not None)
            if types is not None:
                assert example["token_type_ids"].tolist() == types


def test_rows_of_the_real_slice_are_those_of_transformers(shared):
    tokenizer, config = roberta_tokenizer(shared), WindowConfig(max_length=200, doc_stride=64, max_question_length=100)
    path = shared / "data/squad/dev-v2.0-slice.json.gz"
    windows = windows_of(path, "v2.0", tokenizer, config)
    for number in range(0, 1407, 60):
        text, context = windows.questions[number].text, windows.contexts[windows.context_of[number]]
        expected = official_windows(tokenizer, text.strip(), context, config)
        own = windows.of_question[number]
        assert [windows[window]["input_ids"].tolist() for window in own] == [ids for ids, _, _ in expected]
        assert [windows.offsets(window).tolist() for window in own] == [offsets for _, offsets, _ in expected]


def firsts(tmp_path, config: WindowConfig, context: str) -> list[tuple[int, int]]:
    path = write_squad(tmp_path, article(question("a", text="?"), context=context))
    windows = windows_of(path, "v2.0", byte_tokenizer(), config)
    return list(zip(windows.first.tolist(), windows.count.tolist(), strict=True))


def test_the_two_meanings_of_a_stride(tmp_path):
    """A row has 4 special tokens and one of the question: room for 10 bytes of 25."""
    context = "abcdefghijklmnopqrstuvwxy"
    shared_by_two = firsts(tmp_path, WindowConfig(15, 4, "overlap", 1), context)
    assert shared_by_two == [(0, 10), (6, 10), (12, 10), (18, 7)]
    steps = firsts(tmp_path, WindowConfig(15, 4, "step", 1), context)
    assert steps == [(0, 10), (4, 10), (8, 10), (12, 10), (16, 9)]
    assert firsts(tmp_path, WindowConfig(15, 10, "step", 1), context) == [(0, 10), (10, 10), (20, 5)]
    assert firsts(tmp_path, WindowConfig(15, 0, "overlap", 1), context) == [(0, 10), (10, 10), (20, 5)]
    assert firsts(tmp_path, WindowConfig(30, 4, "overlap", 1), context) == [(0, 25)]


def test_every_window_moves_however_long_its_question(tmp_path):
    path = write_squad(tmp_path, article(*(question(str(n), text="?" * n) for n in range(1, 30)), context="word " * 30))
    windows = windows_of(path, "v2.0", byte_tokenizer(), WindowConfig(40, 15, "overlap", 20))
    assert windows.cut_questions == 9
    assert max(windows.lengths) == 40
    for number, own in windows.of_question.items():
        begins, counts = windows.first[own].tolist(), windows.count[own].tolist()
        assert begins[0] == 0
        assert begins[-1] + counts[-1] == 150, number
        for one, other, count in zip(begins, begins[1:], counts, strict=False):
            assert one < other <= one + count


def test_the_example_of_a_cut_question(tmp_path):
    path = write_squad(tmp_path, article(question("a", text="Where is it?"), context="Here."))
    windows = windows_of(path, "v2.0", byte_tokenizer(), WindowConfig(30, 5, "overlap", 5))
    assert byte_tokenizer().decode(windows[0]["input_ids"]) == "<s>Where</s></s>Here.</s>"


# --- answers --------------------------------------------------------------------------------------------------------


def labelled_text(windows, window: int) -> str | None:
    """What stands between a window's labels, None where they are 0."""
    start, end = int(windows.start_positions[window]), int(windows.end_positions[window])
    if start == NO_ANSWER:
        assert end == NO_ANSWER
        return None
    begin, offsets = int(windows.context_begin[window]), windows.offsets(window).tolist()
    context = windows.contexts[windows.context_of[int(windows.question[window])]]
    return context[offsets[start - begin][0] : offsets[end - begin][1]]


@pytest.mark.parametrize("text", ["The red", "1990s—style", "—", "Zoë", "ë", "bed.", ".", "ball is in", CONTEXT])
def test_the_label_is_the_answer(tmp_path, text):
    path = write_squad(tmp_path, article(question("a", answer(text))))
    windows = windows_of(path, "v2.0", byte_tokenizer())
    assert labelled_text(windows, 0) == text


def test_labels_in_windows_that_hold_the_answer_whole(tmp_path):
    path = write_squad(tmp_path, article(question("a", answer("klm", "abcdefghijklmnopqrstuvwxy"), text="?"),
                                         context="abcdefghijklmnopqrstuvwxy"))  # fmt: skip
    windows = windows_of(path, "v2.0", byte_tokenizer(), WindowConfig(15, 6, "overlap", 1))
    assert list(zip(windows.first.tolist(), windows.count.tolist(), strict=True)) == [
        (0, 10),
        (4, 10),
        (8, 10),
        (12, 10),
        (16, 9),
    ]
    assert [labelled_text(windows, window) for window in range(5)] == [None, "klm", "klm", None, None]
    example = windows[1]
    assert (int(example["start_positions"]), int(example["end_positions"])) == (4 + 6, 4 + 8)
    assert byte_tokenizer().decode(example["input_ids"][10:13]) == "klm"


def test_questions_without_an_answer(tmp_path):
    path = write_squad(tmp_path, article(question("a")))
    windows = windows_of(path, "v2.0", byte_tokenizer())
    assert labelled_text(windows, 0) is None
    assert windows.unfit == []


def test_blanks_around_an_answer_are_not_trained(tmp_path):
    path = write_squad(tmp_path, article(question("a", answer(" red ball "))))
    assert labelled_text(windows_of(path, "v2.0", byte_tokenizer()), 0) == "red ball"


@pytest.mark.parametrize(
    "wrong", [answer("red", start=5), answer("red", start=10**6), answer("", start=0), answer(" ")]
)
def test_an_answer_that_does_not_stand_at_its_place(tmp_path, wrong):
    asked = [question("a", answer("ball")), question("b", wrong), question("c", wrong, answer("box"))]
    path = write_squad(tmp_path, article(*asked))
    windows = windows_of(path, "v2.0", byte_tokenizer(), train=True)
    assert windows.unfit == [1]
    assert windows.question.tolist() == [0, 2]
    assert [labelled_text(windows, window) for window in range(2)] == ["ball", "box"]  # the first that fits
    windows = windows_of(path, "v2.0", byte_tokenizer())
    assert windows.question.tolist() == [0, 1, 2]
    assert int(windows[1]["start_positions"]) == int(windows[1]["end_positions"]) == IGNORED


def test_a_part_of_the_questions(tmp_path):
    path = write_squad(tmp_path, article(question("a"), question("b")), article(question("c")))
    windows = windows_of(path, "v2.0", byte_tokenizer(), chosen=[0, 2])
    assert windows.question.tolist() == [0, 2]
    assert windows.tokens == sum(len(windows[window]["input_ids"]) for window in range(2))
    empty = windows_of(path, "v2.0", byte_tokenizer(), chosen=[])
    assert (len(empty), empty.tokens, empty.lengths) == (0, 0, [])


def offsets_of_contexts(windows) -> list[torch.Tensor]:
    pieces = windows.tokens_of.contexts
    return [pieces.offsets[pieces.of(context)] for context in range(len(pieces))]


# Answers whose offset is certain, and those of questions that the rebuilt files' list names.
ANSWERS = {"dev-v1.1.rebuilt": (31187, 3539), "dev-v2.0.rebuilt": (18771, 1531), "dev-v2.0-slice": (2106, 0)}


@pytest.mark.parametrize("name", FILES)
def test_windows_hold_every_answer_of_the_real_files(shared, name, capsys):
    """With RoBERTa's vocabulary: the answer is whole in a window, from its first character's token to its last one's.

    The offsets of some answers of the rebuilt files are the first of several places; those are held too.
    """
    path = shared / f"data/squad/{name}.json.gz"
    listed = path.with_name(f"{name}.uncertain_offset_ids.json")
    uncertain = set(json.loads(listed.read_text())) if listed.is_file() else set()
    overlapping = windows_of(path, FILES[name], roberta_tokenizer(shared))
    articles, template = read_articles(path, FILES[name]), overlapping.template
    stepping = Windows(articles, overlapping.tokens_of, template, WindowConfig(doc_stride_means="step"))
    places = [pieces.tolist() for pieces in offsets_of_contexts(overlapping)]
    for windows in (overlapping, stepping):
        counts = [0, 0]
        for number, asked in enumerate(windows.questions):
            context, offsets = windows.contexts[windows.context_of[number]], places[windows.context_of[number]]
            own = windows.of_question[number]
            held = list(zip(windows.first[own].tolist(), windows.count[own].tolist(), strict=True))
            for given in asked.answers:
                first, last = windows.answer_tokens(number, given)
                assert any(begin <= first and last < begin + count for begin, count in held), (asked.id, given)
                (start, start_end), (end_start, end) = offsets[first], offsets[last]
                stripped = given.text.strip()
                begin = given.start + given.text.index(stripped)
                assert start <= begin < start_end, (asked.id, given)
                assert end_start < begin + len(stripped) <= end, (asked.id, given)
                assert stripped in context[start:end]
                counts[asked.id in uncertain] += 1
        assert tuple(counts) == ANSWERS[name]
        with capsys.disabled():
            sys.stdout.write(
                f"\n{name}, {windows.config.doc_stride_means}: {len(windows)} windows of {len(windows.questions)} "
                f"questions hold all of {counts[0]} answers whose offset is certain, and {counts[1]} others.\n"
            )


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"doc_stride_means": "stride"}, "task.data.doc_stride_means is 'stride'. Choose overlap (tokens that two windows share) or step (tokens from one beginning to the next)."),
        ({"max_length": 3}, "task.data.max_length must be at least 4, got 3."),
        ({"doc_stride": -1}, "task.data.doc_stride must be at least 0, got -1."),
        ({"doc_stride": 0, "doc_stride_means": "step"}, "task.data.doc_stride must be at least 1, got 0."),
        ({"max_question_length": 0}, "task.data.max_question_length must be at least 1, got 0."),
    ],
)  # fmt: skip
def test_values_that_are_none(values, message):
    with pytest.raises(ValueError) as error:
        WindowConfig(**values)
    assert str(error.value) == message


@pytest.mark.parametrize(("means", "most"), [("overlap", 11), ("step", 12)])
def test_windows_that_would_not_move_or_leave_gaps(means, most):
    WindowConfig(32, most, means, 16).check_room(4)
    with pytest.raises(ValueError) as error:
        WindowConfig(32, most + 1, means, 16).check_room(4)
    assert str(error.value) == (
        "task.data.max_length 32 leaves 12 tokens of context beside a question of 16 and 4 special tokens, but "
        f"task.data.doc_stride is {most + 1} ({means}), which may be {most} at most. Lower it or "
        "task.data.max_question_length, or raise task.data.max_length."
    )


def test_no_room_for_a_context():
    with pytest.raises(ValueError, match=r"leaves -8 tokens of context beside a question of 64"):
        WindowConfig(60, 0, "overlap", 64).check_room(4)


def test_a_label_points_into_the_row(tmp_path):
    path = write_squad(tmp_path, article(question("a", answer("red ball"))))
    example = windows_of(path, "v2.0", byte_tokenizer())[0]
    row = example["input_ids"][int(example["start_positions"]) : int(example["end_positions"]) + 1]
    assert byte_tokenizer().decode(row) == "red ball"
    assert example["input_ids"].dtype == torch.long
