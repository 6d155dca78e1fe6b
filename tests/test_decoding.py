"""Decoding in slots: the same answers as one by one, whatever is refilled, moved or kept, and no row computed in vain."""

import random
from functools import cache

import pytest
import torch

from llama_adapter import decoding
from llama_adapter.decoding import DecodingStats, can_decode
from llama_adapter.generation import generate_ids
from tests.conftest import FAMILY_SHAPES, tiny_model
from tests.test_generation import adapted_model, greedy_without_cache

# Random models repeat themselves; with some of their tokens as ends, answers have very different lengths.
EOS_IDS = tuple(range(2, 8))


def many_prompts(count: int = 23) -> list[list[int]]:
    generator = random.Random(0)
    return [[1, *(generator.randrange(8, 64) for _ in range(generator.randint(1, 20)))] for _ in range(count)]


def decoded(model, prompts, **options) -> tuple[list[list[int]], DecodingStats]:
    stats = DecodingStats()
    options = {"eos_ids": EOS_IDS, "pad_id": 0, "max_new_tokens": 24} | options
    return generate_ids(model, prompts, stats=stats, **options), stats


def one_by_one(model, prompts) -> list[list[int]]:
    return [decoded(model, [prompt])[0][0] for prompt in prompts]


@cache
def answers_one_by_one(shape: str) -> list[list[int]]:
    """To `many_prompts`, by the adapted model of a shape."""
    return one_by_one(adapted_model(shape), many_prompts())


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("slots", [1, 4, 9, 100])
@pytest.mark.parametrize("shape", FAMILY_SHAPES)
def test_refilled_slots_give_each_prompt_its_own_answer(shape, slots, static_cache, uncompiled_steps):
    model, prompts = adapted_model(shape), many_prompts()
    expected = answers_one_by_one(shape)
    assert len({len(answer) for answer in expected}) >= 3, "the lengths must differ for this to say anything"
    answers, _ = decoded(model, prompts, batch_size=slots, static_cache=static_cache)
    assert answers == expected


@pytest.fixture
def uncompiled_steps(monkeypatch):
    """A static cache without its compiler: the shapes are what is tested."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("spare", [0, 3])
def test_texts_that_are_moved_to_the_front(spare, static_cache, monkeypatch, uncompiled_steps):
    model, prompts = adapted_model("mistral_sliding_window"), many_prompts()
    expected = answers_one_by_one("mistral_sliding_window")
    moves = []
    move = decoding.SlotCache.move_to_front
    monkeypatch.setattr(decoding.SlotCache, "move_to_front", lambda self, by: (moves.append(by), move(self, by)))
    monkeypatch.setattr(decoding, "SPARE_COLUMNS", spare)
    assert decoded(model, prompts, batch_size=4, static_cache=static_cache)[0] == expected
    assert len(moves) > 1
    assert min(moves) > 0


def test_no_row_is_computed_in_vain():
    """Every row of every step brings a token of an unfinished answer; a prompt's pass brings its first one."""
    model, prompts = adapted_model(), many_prompts()
    rows = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, output: rows.append(tuple(inputs[0].shape)))
    answers, stats = decoded(model, prompts, batch_size=8)
    steps = [count for count, length in rows if length == 1]
    assert sum(steps) == stats.rows == stats.live_rows == stats.new_tokens - len(prompts)
    ended = sum(len(answer) < 24 for answer in answers)
    assert stats.new_tokens == sum(map(len, answers)) + ended, "EOS is computed too"
    # In fixed batches of 8, by length, as transformers decodes them:
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batches = [by_length[start : start + 8] for start in range(0, len(prompts), 8)]
    fixed = sum(len(batch) * max(len(answers[index]) for index in batch) for batch in batches)
    assert stats.rows < 0.7 * fixed


def test_slots_are_refilled_in_groups():
    model = adapted_model()
    passes = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, output: passes.append(tuple(inputs[0].shape)))
    decoded(model, [[1] * 5] * 40, batch_size=16, eos_ids=(), max_new_tokens=3)
    assert [shape for shape in passes if shape[1] > 1] == [(16, 5), (16, 5), (8, 5)]


def test_prompts_beyond_a_sliding_window():
    """Against the model without a cache, which builds its masks itself."""
    model, prompts = adapted_model("mistral_sliding_window"), many_prompts()
    answers, _ = decoded(model, prompts, batch_size=4, eos_ids=(2,))
    assert answers == [greedy_without_cache(model, prompt, new_tokens=24) for prompt in prompts]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
        ("llama", {"sliding_window": 4}),
    ],
)
def test_a_window_that_no_layer_uses(shape, options):
    model, prompts = adapted_model(shape, **options), many_prompts(8)
    assert can_decode(model)
    answers, _ = decoded(model, prompts, batch_size=3, eos_ids=(2,))
    assert answers == [greedy_without_cache(model, prompt, new_tokens=24) for prompt in prompts]


@pytest.mark.parametrize("static_cache", [False, True])
def test_contexts_stay_with_their_texts_when_slots_are_refilled(static_cache, uncompiled_steps):
    model, prompts = adapted_model(), many_prompts()
    context = torch.randn(len(prompts), 32, generator=torch.Generator().manual_seed(0))
    alone = [decoded(model, [prompt], context=context[n : n + 1])[0][0] for n, prompt in enumerate(prompts)]
    assert len({len(answer) for answer in alone}) >= 3
    assert decoded(model, prompts, context=context, batch_size=4, static_cache=static_cache)[0] == alone


@pytest.mark.parametrize("static_cache", [False, True])
def test_a_broken_answer_spoils_no_later_one(static_cache, uncompiled_steps):
    """NaN in a slot's keys and values must not come through the mask into the next text there."""
    model, prompts = adapted_model(), many_prompts(9)
    context = torch.zeros(len(prompts), 32)
    context[max(range(9), key=lambda n: len(prompts[n]))] = float("nan")  # the longest, which is decoded first
    answers, _ = decoded(model, prompts, context=context, batch_size=2, static_cache=static_cache)
    healthy = [n for n in range(9) if not context[n].isnan().any()]
    assert [answers[n] for n in healthy] == [decoded(model, [prompts[n]])[0][0] for n in healthy]


def test_contexts_that_do_not_fit():
    arguments = {"eos_ids": (), "pad_id": 0, "max_new_tokens": 1}
    with pytest.raises(ValueError, match=r"context has the shape \[1, 1\]; it must be \[1, 32\]\."):
        generate_ids(adapted_model(), [[1]], context=torch.zeros(1, 1), **arguments)
    with pytest.raises(ValueError, match=r"but the model has no adapter\. Leave it out\."):
        generate_ids(tiny_model(), [[1]], context=torch.zeros(1, 32), **arguments)


def test_streamed_ids_are_the_answers():
    model, prompts = adapted_model(), many_prompts()
    streamed = [[] for _ in prompts]
    answers, _ = decoded(model, prompts, batch_size=4, stream=lambda index, token: streamed[index].append(token))
    assert streamed == answers


def test_layers_that_see_different_things_are_left_to_transformers():
    options = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    model = adapted_model("qwen2", **options)
    assert not can_decode(model)
    prompts = many_prompts(5)
    answers, stats = decoded(model, prompts, batch_size=2)
    assert answers == one_by_one(model, prompts)
    assert stats.rows == 0


def test_another_attention_is_left_to_transformers():
    model = tiny_model()
    expected = decoded(model, many_prompts(3))[0]
    model.set_attn_implementation("eager")
    assert not can_decode(model)
    assert decoded(model, many_prompts(3))[0] == expected


def test_stats_add_up_and_read_as_a_sentence():
    stats = DecodingStats(answers=2, new_tokens=1500, seconds=2.0, steps=800, rows=1600, live_rows=1498)
    stats.add(DecodingStats(answers=1, new_tokens=500, seconds=0.5, steps=500, rows=500, live_rows=499))
    assert stats == DecodingStats(3, 2000, 2.5, 1300, 2100, 1997)
    assert str(stats) == "3 answers, 2,000 new tokens in 2.5 s: 800 tokens/s; 95% of the computed rows were live."
    assert str(DecodingStats()) == "0 answers, 0 new tokens in 0.0 s: 0 tokens/s."


def test_many_answers_are_logged_and_few_are_not(caplog):
    caplog.set_level("INFO", logger="llama_adapter.generation")
    model = adapted_model()
    options = {"eos_ids": (), "pad_id": 0, "max_new_tokens": 2}
    generate_ids(model, [[1, 4]] * 15, **options)
    assert not caplog.messages
    generate_ids(model, [[1, 4]] * 16, **options)
    assert caplog.messages[0].startswith("16 answers, 32 new tokens in ")


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_answers():
    torch.compiler.reset()
    model, prompts = adapted_model(), many_prompts()
    expected = one_by_one(model, prompts)
    answers, stats = decoded(model, prompts, batch_size=4, static_cache=True)
    assert answers == expected
    with torch.compiler.set_stance("fail_on_recompile"):
        decoded(model, prompts[:9], batch_size=4, static_cache=True)
    assert stats.steps > 0
