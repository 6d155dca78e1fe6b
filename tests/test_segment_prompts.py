"""Prompts of each example's own: in a flat row as in padded rows as one by one, for the numbers and the gradients."""

import pytest
import torch

from llama_adapter.attach import attach
from llama_adapter.data import PaddedCollator
from llama_adapter.flat_batches import FlatCollator, flat_model_inputs, shared_prefixes
from llama_adapter.generation import generate_ids
from llama_adapter.layer_modes import KEPT, checkpoint_layers, compile_layers
from llama_adapter.segment_prompts import segment_prompt_attention
from llama_adapter.zero_init import AdapterConfig, prompt_attention
from tests.conftest import FAMILY_SHAPES, tiny_model
from tests.tiny_training import make_examples

C = 32


def adapted(shape: str = "llama"):
    torch.manual_seed(0)
    return attach(tiny_model(shape), AdapterConfig(3, 2, gate_init="random")).eval()


def examples() -> list[dict[str, torch.Tensor]]:
    """Six: some with one feature, one with two, some without, which begin alike."""
    made = make_examples(6)
    for number, example in enumerate(made):
        example["image_features"] = torch.zeros((1, 0, 2, 0, 1, 0)[number], 4)
        if number % 2:
            example["input_ids"] = torch.cat((torch.arange(20, 30), example["input_ids"]))
            example["labels"] = torch.cat((torch.full((10,), -100), example["labels"]))
    return made


def contexts() -> torch.Tensor:
    """[6, C]: one for each example, zeros where there is no image."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, C, generator=generator) * torch.tensor([1.0, 0, 1, 0, 1, 0])[:, None]


def hidden_states(model, batch: dict, context: torch.Tensor) -> dict[int, torch.Tensor]:
    """Of the trained positions, by their label: which no two examples share here."""
    if "cu_seqlens" in batch:
        hidden = model.base_model(**flat_model_inputs(batch, context)).last_hidden_state
    else:
        hidden = model.base_model(
            input_ids=batch["input_ids"], prompt_context=context, use_cache=False
        ).last_hidden_state
    return hidden[batch["labels"] != -100]


def gradients(model, batch, context) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    context = context.clone().requires_grad_()
    # A weight of its own for every label: no order of the examples matters to the sum.
    labels = batch["labels"][batch["labels"] != -100]
    weights = torch.randn(64, C, generator=torch.Generator().manual_seed(5))[labels]
    loss = (hidden_states(model, batch, context) * weights).sum()
    loss.backward()
    # What is added for an example without an image is no result of anything: its gradient goes nowhere.
    of_images = context.grad * (context != 0)
    parts = [of_images, *(p.grad for p in model.parameters() if p.requires_grad)]
    return loss.item(), torch.cat([part.flatten() for part in parts])


def assert_equal(ours, theirs) -> None:
    # float32 rounding through three layers; the promise to users is 1e-5 and 1e-4
    assert abs(ours[0] - theirs[0]) < 1e-5 * max(1, abs(theirs[0]))
    assert (ours[1] - theirs[1]).norm() < 1e-5 * theirs[1].norm()


@pytest.mark.parametrize("shape", FAMILY_SHAPES)
def test_flat_padded_and_one_by_one_agree(shape):
    model, made, context = adapted(shape), examples(), contexts()
    padded = gradients(model, PaddedCollator(0)(made), context)
    assert_equal(gradients(model, FlatCollator(0)(made), context), padded)
    alone = [gradients(model, PaddedCollator(0)([e]), context[n : n + 1]) for n, e in enumerate(made)]
    assert sum(loss for loss, _ in alone) == pytest.approx(padded[0], rel=1e-4)
    of_contexts = torch.stack([gradient[:C] for _, gradient in alone])
    assert (of_contexts - padded[1][: 6 * C].view(6, C)).norm() < 1e-5 * of_contexts.norm()


@pytest.mark.parametrize("kept", KEPT)
def test_checkpointed_layers_remember_the_contexts(kept):
    batch, context = FlatCollator(0)(examples()), contexts()
    expected = gradients(adapted(), batch, context)
    model = adapted()
    checkpoint_layers(model, kept)
    assert_equal(gradients(model, batch, context), expected)


@pytest.mark.slow
def test_compiled_layers_take_contexts():
    torch.compiler.reset()
    batch, context = FlatCollator(0)(examples()), contexts()
    expected = gradients(adapted(), batch, context)
    model = adapted()
    compile_layers(model)
    assert_equal(gradients(model, batch, context), expected)


def test_zeros_are_the_plain_prompts_bit_for_bit():
    model, batch = adapted(), PaddedCollator(0)(make_examples(4))
    with torch.no_grad():
        plain = model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        zeros = model.base_model(input_ids=batch["input_ids"], prompt_context=torch.zeros(4, C), use_cache=False)
    torch.testing.assert_close(
        zeros.last_hidden_state, plain, rtol=0, atol=1e-6
    )  # another order in the batched product


def test_an_image_reaches_no_other_example():
    """Bit for bit: not through a shared prefix either."""
    model, batch, context = adapted(), FlatCollator(0)(examples()), contexts()
    changed = context.clone()
    changed[2] += 1
    with torch.no_grad():
        one, other = (model.base_model(**flat_model_inputs(batch, c)).last_hidden_state[0] for c in (context, changed))
    segments = list(zip(batch["cu_seqlens"].tolist(), batch["cu_seqlens"].tolist()[1:], strict=False))
    for (start, end), owner in zip(segments, batch["context_of"].tolist(), strict=False):
        assert torch.equal(one[start:end], other[start:end]) == (owner != 2)


def test_examples_with_images_share_no_prefix():
    made = examples()
    groups = shared_prefixes(made)
    assert [(group.prefix_length > 0, sorted(group.members)) for group in groups if len(group.members) > 1] == [
        (True, [1, 3, 5])
    ]
    batch = FlatCollator(0)(made)
    assert batch["context_of"].tolist().count(-1) == 5  # the prefix, its three documents and the end
    assert batch["image_of"].tolist() == [0, 2, 2, 4]
    assert batch["example_count"] == 6


def test_a_zero_gate_hides_the_contexts():
    model = attach(tiny_model(), AdapterConfig(3, 2)).eval()
    batch = FlatCollator(0)(examples())
    with torch.no_grad():
        one, other = (
            model.base_model(**flat_model_inputs(batch, c)).last_hidden_state for c in (contexts(), torch.zeros(6, C))
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_operator_against_the_equation(groups):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 9, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(3, groups, 5, 8, generator=generator, requires_grad=True) for _ in range(2))
    gate = torch.randn(4, generator=generator, requires_grad=True)
    segments = {"cu_seqlens": torch.tensor([0, 4, 5, 9]), "context_of": torch.tensor([1, -1, 1, -1])}
    output = segment_prompt_attention(query, key, value, gate, 0.3, **segments)
    parts = [(0, 4, 1), (4, 5, 2), (5, 9, 1)]
    expected = torch.cat(
        [prompt_attention(query[:, :, a:b], key[c : c + 1], value[c : c + 1], gate, 0.3) for a, b, c in parts], dim=1
    )
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(expected.shape, generator=generator)
    inputs = (query, key, value, gate)
    ours, theirs = (torch.autograd.grad((o * weights).sum(), inputs) for o in (output, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"static_cache": True}, {"batch_size": 2}])
def test_answers_with_contexts_are_those_one_by_one(options, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, context = adapted(), contexts()
    prompts = [[1, 5, 6, 7], [1, 8], [1, 9, 10], [1, 11, 12, 13, 14], [1, 15], [1, 16, 17]]
    arguments = {"eos_ids": (), "pad_id": 0, "max_new_tokens": 6}
    together = generate_ids(model, prompts, context=context, **arguments, **options)
    beams = {key: value for key, value in options.items() if key == "num_beams"}
    alone = [
        generate_ids(model, [prompt], context=context[n : n + 1], **arguments, **beams)[0]
        for n, prompt in enumerate(prompts)
    ]
    assert together == alone
    plain = generate_ids(model, prompts, **arguments, **beams)
    assert together != plain
    assert [together[number] for number in (1, 3, 5)] == [plain[number] for number in (1, 3, 5)]


def test_a_context_for_each_prompt():
    with pytest.raises(ValueError, match=r"context has 6 rows for 1 prompts\. Give one for each, zeros for none\."):
        generate_ids(adapted(), [[1]], eos_ids=(), pad_id=0, max_new_tokens=1, context=contexts())
