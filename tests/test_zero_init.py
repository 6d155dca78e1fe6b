"""The equation against itself written out as the paper prints it, and the checks of AdapterConfig."""

import pytest
import torch

from llama_adapter.zero_init import AdapterConfig, GatedPrompt, prompt_attention


def paper_attention(query, key, value, prompt_key, prompt_value, gate_factor, scaling):
    """Eq. 4-8 word by word: one score matrix over [prompts; words], split, two softmaxes, joined, times the values.

    query [B, H, T, D], key and value [B, H, T, D], prompt_key and prompt_value [1, H, K, D].
    """
    batch, _, tokens, _ = query.shape
    length = prompt_key.shape[2]
    keys = torch.cat([prompt_key.expand(batch, -1, -1, -1), key], dim=2)
    values = torch.cat([prompt_value.expand(batch, -1, -1, -1), value], dim=2)
    scores = torch.einsum("bhtd,bhsd->bhts", query, keys) * scaling
    prompt_scores, word_scores = scores[..., :length], scores[..., length:]
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    word_scores = word_scores.masked_fill(future, float("-inf"))
    gated = prompt_scores.softmax(-1) * gate_factor[None, :, None, None]
    weights = torch.cat([gated, word_scores.softmax(-1)], dim=-1)
    return torch.einsum("bhts,bhsd->bthd", weights, values)


def words_only(query, key, value, scaling):
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return output.transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_equation_written_out(groups):
    torch.manual_seed(0)
    heads, scaling = 4, 8**-0.5
    query, key, value = (torch.randn(3, heads, 7, 8) for _ in range(3))
    prompt_key, prompt_value = torch.randn(1, groups, 5, 8), torch.randn(1, groups, 5, 8)
    factor = torch.randn(heads).tanh()
    output = words_only(query, key, value, scaling) + prompt_attention(query, prompt_key, prompt_value, factor, scaling)
    # Query head h reads group h // (H / G), as in every grouped-query model.
    spread = [tensor.repeat_interleave(heads // groups, dim=1) for tensor in (prompt_key, prompt_value)]
    expected = paper_attention(query, key, value, *spread, factor, scaling)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)  # a few float32 roundings of values below 4


def test_prompts_that_differ_by_example():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    together = prompt_attention(query, key, value, torch.ones(4), 0.3)
    for row in range(2):
        alone = prompt_attention(query[row : row + 1], key[row : row + 1], value[row : row + 1], torch.ones(4), 0.3)
        torch.testing.assert_close(
            together[row : row + 1], alone, atol=1e-6, rtol=0
        )  # batched products may sum otherwise


def test_bfloat16_stays_bfloat16_and_close():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 6, 16), torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16)
    factor = torch.randn(4).tanh()
    exact = prompt_attention(query, key, value, factor, 0.25)
    output = prompt_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), factor, 0.25)
    assert output.dtype == torch.bfloat16
    # bfloat16 has 8 bits: inputs, scores, weights and the sum each lose up to 2^-9 of values up to 3.
    torch.testing.assert_close(output.float(), exact, atol=3e-2, rtol=0)


def test_zero_gate_adds_exact_zeros_and_gets_a_gradient():
    torch.manual_seed(0)
    query = torch.randn(2, 4, 6, 16)
    prompt = torch.randn(1, 4, 5, 16, requires_grad=True)
    gate = torch.zeros(4, requires_grad=True)
    output = prompt_attention(query, prompt, prompt, gate.tanh(), 0.25)
    assert torch.equal(output, torch.zeros_like(output))
    output.sum().backward()
    assert gate.grad.abs().min() > 0, "gates move in the first step"
    assert torch.equal(prompt.grad, torch.zeros_like(prompt)), "prompts only from the second on"


@pytest.mark.parametrize(("activation", "expected"), [("tanh", 0.46211717), ("identity", 0.5)])
def test_gate_factor(activation, expected):
    layer = GatedPrompt(AdapterConfig(prompt_layers=1, gate_activation=activation), hidden_size=8, heads=2)
    layer.gate.data.fill_(0.5)
    torch.testing.assert_close(layer.gate_factor(), torch.full((2,), expected))


def test_start():
    torch.manual_seed(0)
    layer = GatedPrompt(AdapterConfig(prompt_length=64, prompt_init_std=0.5), hidden_size=256, heads=4)
    assert layer.prompt.shape == (64, 256)
    assert layer.prompt.dtype == layer.gate.dtype == torch.float32
    assert torch.equal(layer.gate.data, torch.zeros(4))
    assert layer.prompt.std().item() == pytest.approx(0.5, rel=0.03)  # 16384 samples: 0.6 % standard error
    assert GatedPrompt(AdapterConfig(gate_init="random"), hidden_size=8, heads=4).gate.abs().min() > 0
    assert "prompt_length=64, hidden_size=256, heads=4, gate=tanh" in repr(layer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_length": 0}, "adapter.prompt_length must be at least 1, got 0."),
        ({"prompt_layers": -3}, "adapter.prompt_layers must be at least 1, got -3."),
        ({"prompt_length": 2.5}, "adapter.prompt_length must be a whole number, got 2.5."),
        ({"prompt_layers": True}, "adapter.prompt_layers must be a whole number, got True."),
        ({"gate_activation": "sigmoid"}, "adapter.gate_activation is 'sigmoid'. Choose tanh or identity."),
        ({"gate_init": "one"}, "adapter.gate_init is 'one'. Choose zero or random."),
        ({"prompt_init_std": -1.0}, "adapter.prompt_init_std must be a finite number of at least 0, got -1.0."),
        ({"prompt_init_std": float("nan")}, "adapter.prompt_init_std must be a finite number of at least 0, got nan."),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError) as error:
        AdapterConfig(**settings)
    assert str(error.value) == message
