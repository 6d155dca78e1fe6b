"""The attention function inside a whole model: masks, layers, freezing, and the two context managers."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from llama_adapter.attach import ATTENTION, adapter_disabled, adapters, attach, detach, prompts_projected
from llama_adapter.backbones import attention_modules
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model

IDS = torch.tensor([[1, 7, 9, 11, 13, 17]])


def adapted(shape: str = "llama", *, prompt_layers: int = 2, gate_init: str = "random", **options):
    torch.manual_seed(1)
    config = AdapterConfig(prompt_length=3, prompt_layers=prompt_layers, gate_init=gate_init)
    return attach(tiny_model(shape, **options), config)


def logits(model, ids=IDS, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def test_attention_and_mask_are_both_registered():
    # With the first alone, transformers makes no mask and says nothing.
    assert ATTENTION in AttentionInterface().valid_keys()
    assert ATTENTION in AttentionMaskInterface().valid_keys()
    assert adapted().config._attn_implementation == ATTENTION


@pytest.mark.parametrize("gate_init", ["zero", "random"])
def test_left_padding_is_masked(gate_init):
    model = adapted(gate_init=gate_init)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS], dim=1)
    mask = (torch.arange(10) >= 4).long()[None]
    alone = logits(model)
    # Another order of summation in the attention over 10 instead of 6 keys: float32 rounding of logits below 10.
    positions = (torch.arange(10) - 4).clamp(min=0)[None]
    batched = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 4:]
    torch.testing.assert_close(batched, alone, atol=2e-5, rtol=0)
    unmasked = logits(model, padded, position_ids=positions)[:, 4:]
    assert (unmasked - alone).abs().max() > 0.01, "padding would be seen without the mask"


@pytest.mark.parametrize("prompt_layers", [1, 2, 3])
def test_exactly_the_top_layers(prompt_layers):
    model = adapted(prompt_layers=prompt_layers)
    assert list(adapters(model)) == list(range(3))[-prompt_layers:]
    hidden = model(IDS, output_hidden_states=True).hidden_states
    plain = tiny_model()(IDS, output_hidden_states=True).hidden_states
    same = [torch.equal(ours, theirs) for ours, theirs in zip(hidden, plain, strict=True)]
    # hidden_states[i] goes into layer i: equal up to the input of the lowest adapted layer.
    assert same == [layer <= 3 - prompt_layers for layer in range(4)]


def test_only_prompts_and_gates_train():
    model = adapted()
    trainable = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"model.layers.{layer}.self_attn.adapter.{name}": shape
        for layer in (1, 2)
        for name, shape in (("prompt", (3, 32)), ("gate", (4,)))
    }
    model(IDS, labels=IDS).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trainable)


def test_detach_gives_the_frozen_model_back():
    model = adapted()
    assert not torch.equal(logits(model), logits(tiny_model()))
    detach(model)
    assert adapters(model) == {}
    assert torch.equal(logits(model), logits(tiny_model()))
    assert list(adapters(attach(model, AdapterConfig(prompt_layers=1)))) == [2]


def test_adapter_disabled():
    model = adapted()
    before = logits(model)
    with adapter_disabled(model):
        assert torch.equal(logits(model), logits(tiny_model()))
        with adapter_disabled(model):
            pass
        assert torch.equal(logits(model), logits(tiny_model())), "the inner context must not switch it on again"
    assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError, match="inside"), adapter_disabled(model):
        raise RuntimeError("inside")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("shape", ["llama", "llama_grouped_scaled_rope"])
def test_prompts_projected_changes_nothing_and_is_dropped(shape):
    model = adapted(shape)
    before = logits(model)
    with prompts_projected(model):
        assert all(adapter.projected is not None for adapter in adapters(model).values())
        assert torch.equal(logits(model), before)
        # What is held is used, not computed again: a moved prompt shows only afterwards.
        for adapter in adapters(model).values():
            adapter.prompt.data.mul_(2)
        assert torch.equal(logits(model), before)
    assert all(adapter.projected is None for adapter in adapters(model).values())
    assert not torch.equal(logits(model), before), "a stale projection would give the old answer"
    with pytest.raises(RuntimeError, match="inside"), prompts_projected(model):
        raise RuntimeError("inside")
    assert all(adapter.projected is None for adapter in adapters(model).values())


def test_bfloat16_base_keeps_a_float32_adapter():
    model = attach(tiny_model().bfloat16(), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    output = model(IDS, labels=IDS)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(adapter.prompt.grad.dtype == torch.float32 for adapter in adapters(model).values())
    with prompts_projected(model):
        assert logits(model).dtype == torch.bfloat16


def test_bfloat16_zero_gate_is_bit_identical():
    plain = tiny_model().bfloat16()
    expected = logits(plain)
    assert torch.equal(logits(attach(plain, AdapterConfig(prompt_length=3, prompt_layers=2))), expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = adapted().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_refuses_a_second_adapter():
    with pytest.raises(ValueError, match=r"The model has an adapter already\. Call detach\(model\) first\."):
        attach(adapted(), AdapterConfig(prompt_layers=1))


def test_refuses_more_layers_than_there_are_and_changes_nothing():
    model = tiny_model()
    message = r"adapter\.prompt_layers is 40, but the model has 3 layers\. Choose 1 to 3\."
    with pytest.raises(ValueError, match=message):
        attach(model, AdapterConfig(prompt_layers=40))
    assert adapters(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_sits_in_the_attention_module():
    model = adapted(prompt_layers=1)
    assert attention_modules(model)[-1].adapter is adapters(model)[2]
