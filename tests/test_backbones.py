"""What every family must keep, whatever its shape: the six promises, and how prompts become keys and values."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from llama_adapter.attach import adapters, attach, prompts_projected
from llama_adapter.backbones import FAMILIES, attention_modules, family_of, head_size, project_prompt
from llama_adapter.checkpoint import load_adapter, save_adapter
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import ENCODER_SHAPES, FAMILY_SHAPES, tiny_model

each_shape = pytest.mark.parametrize("shape", FAMILY_SHAPES)
IDS = torch.tensor([[1, 7, 9, 11, 13, 17, 19, 23, 29, 31], [1, 40, 41, 42, 43, 44, 45, 46, 47, 48]])
CONFIG = AdapterConfig(prompt_length=3, prompt_layers=2)


def logits(model: PreTrainedModel, ids: torch.Tensor = IDS, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def adapted(shape: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return attach(tiny_model(shape), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random"))


def train_two_steps(model: PreTrainedModel) -> None:
    """Two optimizer steps with an evaluation and a generation in between: a stale cache shows on the second."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        model.eval()
        logits(model)
        with prompts_projected(model):
            model.generate(IDS[:1, :4], max_new_tokens=3, do_sample=False)


def test_every_family_is_tried():
    assert {name.split("_")[0] for name in (*FAMILY_SHAPES, *ENCODER_SHAPES)} == set(FAMILIES)


@each_shape
def test_1_zero_gate_is_bit_identical(shape):
    expected = logits(tiny_model(shape))
    assert torch.equal(logits(attach(tiny_model(shape), CONFIG)), expected)


@each_shape
def test_2_after_two_steps_only_the_adapter_has_moved(shape):
    model = attach(tiny_model(shape), CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_two_steps(model)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if ".adapter." in name}
    for name, buffer in tiny_model(shape).named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name
    # The new prompts are what the model computes with: not a projection kept from an earlier step.
    fresh = attach(tiny_model(shape), CONFIG)
    for layer, adapter in adapters(model).items():
        adapters(fresh)[layer].load_state_dict(adapter.state_dict())
    assert torch.equal(logits(model), logits(fresh))
    assert not torch.equal(logits(model), logits(tiny_model(shape)))


@each_shape
def test_3_saved_and_loaded_it_answers_the_same(shape, tmp_path):
    model = attach(tiny_model(shape), CONFIG)
    train_two_steps(model)
    file = save_adapter(model, tmp_path)
    size = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert size <= file.stat().st_size < size + 4096, "the adapter and nothing else"
    assert torch.equal(logits(load_adapter(tiny_model(shape), file)), logits(model))


@each_shape
@pytest.mark.parametrize("side", ["left", "right"])
def test_4_padding_changes_nothing(shape, side):
    model = adapted(shape)
    short = IDS[1:, :6]
    filler = torch.zeros(1, 4, dtype=torch.long)
    padded = torch.cat([filler, short] if side == "left" else [short, filler], dim=1)
    mask = torch.ones_like(IDS)
    place = slice(4, None) if side == "left" else slice(0, 6)
    mask[1] = 0
    mask[1, place] = 1
    # Positions count words only. Between words RoPE is relative, but prompt keys are not rotated: to a prompt, a word
    # at position 4 is another one than at position 0.
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = logits(model, torch.cat([IDS[:1], padded]), attention_mask=mask, position_ids=positions)
    # Sums over more keys and larger batches round otherwise: float32, logits below 10.
    torch.testing.assert_close(batch[1:, place], logits(model, short), atol=2e-5, rtol=0)
    torch.testing.assert_close(batch[:1], logits(model, IDS[:1]), atol=2e-5, rtol=0)


@each_shape
def test_4_left_padding_in_generation(shape):
    """transformers' generate counts positions from the mask by itself, so rows of a batch answer as they do alone."""
    model = adapted(shape)
    model.generation_config.eos_token_id = None
    batch = torch.cat([IDS[:1, :8], torch.nn.functional.pad(IDS[1:, :5], (3, 0))])
    mask = torch.ones_like(batch)
    mask[1, :3] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    together = model.generate(batch, attention_mask=mask, **options)[:, 8:]
    alone = [model.generate(IDS[:1, :8], **options)[0, 8:], model.generate(IDS[1:, :5], **options)[0, 5:]]
    assert together.tolist() == [row.tolist() for row in alone]


@each_shape
def test_5_the_adapted_layers_are_exactly_the_top_ones(shape):
    model = adapted(shape)
    assert list(adapters(model)) == [1, 2]
    hidden = model(IDS, output_hidden_states=True).hidden_states
    plain = tiny_model(shape)(IDS, output_hidden_states=True).hidden_states
    same = [torch.equal(ours, theirs) for ours, theirs in zip(hidden, plain, strict=True)]
    assert same == [True, True, False, False], "the inputs of layers 0 and 1, of layer 2, and the end"


@each_shape
def test_6_generation_with_a_cache_equals_generation_without(shape):
    model = adapted(shape)
    model.generation_config.eos_token_id = None
    prompt, new = IDS[:, :5], 12
    with prompts_projected(model):
        cached = model.generate(prompt, max_new_tokens=new, do_sample=False, pad_token_id=0)
    ids = prompt
    for _ in range(new):
        ids = torch.cat([ids, logits(model, ids, use_cache=False)[:, -1:].argmax(-1)], dim=1)
    assert cached.tolist() == ids.tolist()
    assert cached.shape == (2, 5 + new)


@each_shape
def test_prompt_projection_is_the_frozen_one_alone(shape):
    """Key and value are W p + b per head: no norm, no rotary embedding, biases kept."""
    module = attention_modules(tiny_model(shape))[0]
    prompt = torch.randn(5, 32)
    key, value = project_prompt(module, prompt)
    groups = module.config.num_key_value_heads
    assert key.shape == value.shape == (1, groups, 5, head_size(module))
    for states, projection in ((key, module.k_proj), (value, module.v_proj)):
        expected = prompt @ projection.weight.T + (0 if projection.bias is None else projection.bias)
        for group in range(groups):
            size = head_size(module)
            # Another order of summation over C = 32 products: float32 rounding.
            torch.testing.assert_close(
                states[0, group], expected[:, group * size : (group + 1) * size], atol=1e-5, rtol=0
            )
    assert (module.k_proj.bias is not None) == (shape == "qwen2"), "the biases are tried on the family that has them"
    by_example = torch.randn(2, 5, 32)
    torch.testing.assert_close(project_prompt(module, by_example)[0][1], project_prompt(module, by_example[1])[0][0])


@each_shape
def test_a_sliding_window_hides_far_words(shape):
    """Only the model with a window forgets: the window's mask must survive our attention function."""
    model = adapted(shape)
    other = IDS.clone()
    other[:, 1] = 60
    far = (logits(model)[:, -1] - logits(model, other)[:, -1]).abs().max()
    window = model.config.to_dict().get("sliding_window") if model.config.model_type == "mistral" else None
    assert far > 1e-4, "three layers pass it on, six words each" if window else "no window: word 1 is seen from word 9"
    one_layer = attach(tiny_model(shape, num_hidden_layers=1), AdapterConfig(prompt_length=3, prompt_layers=1))
    far = (logits(one_layer)[:, -1] - logits(one_layer, other)[:, -1]).abs().max()
    assert (far == 0) == bool(window)


@each_shape
def test_prompts_are_seen_from_every_position(shape):
    """Prompts are outside the sliding window and before the causal mask: the first and the last token see them all."""
    model = adapted(shape)
    before = logits(model)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.prompt.neg_()
    changed = (logits(model) - before).abs().amax(dim=-1)  # [B, T]
    assert changed.min() > 1e-4


def test_unknown_family():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8, n_positions=8))
    with pytest.raises(
        ValueError, match=r"No family for model_type 'gpt2'\. Known: llama, mistral, qwen2, bert, .*\. Add an entry"
    ):
        family_of(model.config)
    with pytest.raises(ValueError, match="No family for model_type 'gpt2'"):
        attach(model, AdapterConfig(prompt_layers=1))
