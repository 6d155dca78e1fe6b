"""Flat rows and the prefixes found in them."""

import random

import pytest
import torch

from llama_adapter.data import IGNORED
from llama_adapter.examples import TokenCounts
from llama_adapter.flat_attention import NO_MASK
from llama_adapter.flat_batches import FlatCollator, Group, flat_model_inputs, shared_prefixes


def example(prompt: list[int], response: list[int]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(prompt + response)
    return {"input_ids": ids, "labels": torch.tensor([IGNORED] * len(prompt) + response)}


def template(length: int, start: int = 100) -> list[int]:
    return list(range(start, start + length))


def row_of(*examples, **options) -> dict[str, torch.Tensor]:
    return FlatCollator(0, **options)(examples)


# --- prefixes ---------------------------------------------------------------------------------------------------------


def test_a_shared_template_is_found_from_the_ids():
    examples = [example([*template(9), own, 6], [7, 8]) for own in (5, 3, 4)]
    assert shared_prefixes(examples) == [Group(9, [1, 2, 0])]  # in the order of their prompts


def test_two_templates_and_an_example_of_neither():
    first, second = template(9), template(12, start=200)
    examples = [example([*front, own], [7]) for own, front in enumerate((first, second, [1], second, first))]
    groups = shared_prefixes(examples)
    assert sorted(groups) == [Group(0, [2]), Group(9, [0, 4]), Group(12, [1, 3])]


def test_the_last_prompt_token_is_never_shared():
    # Its output predicts the first trained token, which differs between the documents.
    examples = [example(template(12), [answer]) for answer in (5, 6)]
    assert shared_prefixes(examples) == [Group(11, [0, 1])]


def test_an_example_cut_before_its_answer_keeps_a_token():
    examples = [example(template(12), []), example([*template(12), 3], [4])]
    assert shared_prefixes(examples) == [Group(11, [0, 1])]


@pytest.mark.parametrize(("length", "shared"), [(7, 0), (8, 8)])
def test_a_prefix_has_at_least_8_tokens(length, shared):
    examples = [example([*template(length), own], [7]) for own in (1, 2)]
    assert {group.prefix_length for group in shared_prefixes(examples)} == {shared}


def test_one_example_shares_nothing():
    assert shared_prefixes([example(template(12), [5])]) == [Group(0, [0])]
    assert shared_prefixes([]) == []


def test_equal_questions_inside_a_template_make_a_group_of_their_own_where_that_saves_more():
    question = [*template(10), *template(30, start=300)]
    others = [example([*template(10), own], [7]) for own in (1, 2, 3)]
    twins = [example([*question, 9], [answer]) for answer in (5, 6)]
    # 30 + 10 + (10 again for the twins' group) against 10 x 4: apart they save 40 + 20.
    assert shared_prefixes(others + twins) == [Group(10, [0, 1, 2]), Group(40, [3, 4])]


def runs(order: list[int]):
    """All ways to cut a list into runs."""
    if not order:
        yield []
    for size in range(1, len(order) + 1):
        for rest in runs(order[size:]):
            yield [order[:size], *rest]


def saves(shared: list[list[int]]) -> int:
    """Tokens that one group of these beginnings saves."""
    common = 0
    while all(len(ids) > common and ids[common] == shared[0][common] for ids in shared):
        common += 1
    return common * (len(shared) - 1)


def test_no_other_grouping_saves_more():
    generator = random.Random(0)
    for _ in range(40):
        prompts = [[generator.choice((1, 2)) for _ in range(generator.randint(1, 9))] for _ in range(6)]
        groups = shared_prefixes([example(prompt, [3]) for prompt in prompts], min_length=1)

        order = sorted(range(6), key=lambda index: prompts[index][:-1])
        best = max(sum(saves([prompts[member][:-1] for member in run]) for run in cut) for cut in runs(order))
        assert sum(group.prefix_length * (len(group.members) - 1) for group in groups) == best
        assert sorted(member for group in groups for member in group.members) == list(range(6))
        for group in groups:
            beginnings = {tuple(prompts[member][: group.prefix_length]) for member in group.members}
            assert len(beginnings) == 1


def test_answers_do_not_change_the_order():
    prompts = ([5, 6], [5, 6], [4, 9])
    before, after = (
        shared_prefixes([example(p, [a]) for p, a in zip(prompts, answers, strict=True)])
        for answers in ((1, 2, 3), (3, 2, 1))
    )
    assert before == after


# --- rows -------------------------------------------------------------------------------------------------------------


def plain(batch: dict) -> dict:
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def test_row_without_prefixes():
    batch = row_of(example([1, 5], [6, 7]), example([1], [9]), share_prefixes=False)
    assert plain(batch) == {
        "input_ids": [[1, 5, 6, 7, 1, 9]],
        "labels": [[IGNORED, IGNORED, 6, 7, IGNORED, 9]],
        "position_ids": [[0, 1, 2, 3, 0, 1]],
        "cu_seqlens": [0, 4, 6],
        "prefix": [-1, -1, -1],
        # 1 + 2 + 3 + 4 pairs of the first document, 1 + 2 of the second one
        "counts": TokenCounts(useful=6, computed=6, padding=0, attended=13),
    }
    assert batch["cu_seqlens"].dtype == batch["prefix"].dtype == torch.int32


def test_row_with_a_prefix():
    front = template(8)
    batch = row_of(example([*front, 1, 2], [3]), example([9], [4]), example([*front, 5], [6, 7]))
    assert plain(batch) == {
        "input_ids": [[9, 4, *front, 5, 6, 7, 1, 2, 3]],
        "labels": [[IGNORED, 4, *[IGNORED] * 8, IGNORED, 6, 7, IGNORED, IGNORED, 3]],
        "position_ids": [[0, 1, *range(8), 8, 9, 10, 8, 9, 10]],
        "cu_seqlens": [0, 2, 10, 13, 16],
        "prefix": [-1, -1, 1, 1, -1],
        # a document of 2; the prefix of 8; two documents of 3 that see 9, 10 and 11 tokens
        "counts": TokenCounts(useful=24, computed=16, padding=0, attended=3 + 36 + 30 + 30),
    }


def test_one_shift_of_the_labels_is_right_over_the_whole_row():
    examples = [example([*template(8), own], [own, 7]) for own in range(1, 6)] + [example([3], [4])]
    batch = row_of(*examples)
    assert (batch["labels"][0, batch["cu_seqlens"][:-1].long()] == IGNORED).all()
    assert (batch["labels"] != IGNORED).sum() == sum((e["labels"] != IGNORED).sum() for e in examples)


def test_a_batch_without_examples_trains_nothing():
    batch = FlatCollator(3)([])
    assert batch["input_ids"].tolist() == [[3, 3]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED]]
    assert batch["cu_seqlens"].tolist() == [0, 2]
    assert batch["counts"] == TokenCounts(useful=0, computed=2, padding=2, attended=0)


@pytest.mark.parametrize(("multiple", "length"), [(1, 6), (4, 8), (6, 6)])
def test_padding_to_a_multiple_is_a_document_of_its_own(multiple, length):
    batch = row_of(example([1, 5], [6, 7]), example([1], [9]), multiple=multiple)
    assert batch["input_ids"].shape == (1, length)
    assert batch["cu_seqlens"].tolist() == ([0, 2, 6] if length == 6 else [0, 2, 6, 8])
    assert batch["labels"][0, 6:].tolist() == [IGNORED] * (length - 6)
    assert batch["counts"] == TokenCounts(useful=6, computed=length, padding=length - 6, attended=13)


def test_padding_of_an_empty_batch():
    assert FlatCollator(0, multiple=8)([])["input_ids"].shape == (1, 8)


def test_model_inputs():
    batch = row_of(example([1, 5], [6, 7]))
    inputs = flat_model_inputs(batch)
    assert inputs.keys() == {"input_ids", "position_ids", "attention_mask", "cu_seqlens", "prefix", "use_cache"}
    assert inputs["use_cache"] is False
    assert inputs["attention_mask"].shape == NO_MASK.shape == (1, 1, 1, 1)
    assert inputs["cu_seqlens"] is batch["cu_seqlens"]


def test_refuses_an_example_that_trains_its_first_token():
    good = example([1], [2])
    message = (
        r"Example 1 of the batch trains its first token, which nothing predicts\. "
        r"Begin it with a prompt or set its first label to -100\."
    )
    with pytest.raises(ValueError, match=message):
        row_of(good, example([], [3, 4]))


def test_refuses_an_empty_example():
    with pytest.raises(ValueError, match=r"Example 0 of the batch has no tokens\. Leave it out\."):
        row_of({"input_ids": torch.empty(0, dtype=torch.long), "labels": torch.empty(0, dtype=torch.long)})


def test_refuses_a_multiple_of_nothing():
    with pytest.raises(ValueError, match=r"The multiple of a flat row's length must be at least 1, got 0\."):
        FlatCollator(0, multiple=0)
