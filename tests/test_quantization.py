"""8 and 4 bit weights: near the unquantised model, trainable through, and refused in words where they cannot be had."""

import sys

import pytest
import torch
from torch import nn

from llama_adapter.attach import adapters, attach, prompts_projected
from llama_adapter.backbones import attention_modules, project_prompt
from llama_adapter.checkpoint import load_adapter, save_adapter
from llama_adapter.fingerprint import fingerprint
from llama_adapter.loading import load_backbone
from llama_adapter.quantization import check_quantization, quantize
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.test_meta_checkpoint import save_meta

IDS = torch.tensor([[1, 7, 9, 11, 13, 17]])
CONFIG = AdapterConfig(prompt_length=3, prompt_layers=2)
# Relative error of the logits of a random model three layers deep: 8 bits round to 1/254 of a row's largest weight,
# nf4's 16 levels are about a tenth of the standard deviation off. Every layer adds its share.
ERRORS = {"int8": 0.05, "nf4": 0.5}
each = pytest.mark.parametrize("quantization", ["int8", "nf4"])


@pytest.fixture
def library():
    """bitsandbytes is an extra: the tests that quantise need it."""
    pytest.importorskip("bitsandbytes", reason="needs the extra llama-adapter[quantization]")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def wide(**options):
    """nf4 scales blocks of 64 weights: rows of 32 would be less than one."""
    return tiny_model(hidden_size=64, intermediate_size=128, **options)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_layers_change_and_the_answer_is_near(library, quantization, dtype):
    expected = logits(wide())
    model = quantize(wide().to(dtype).requires_grad_(False), quantization)
    inside = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    assert len(inside) == 3 * 7
    assert all(type(module) is not nn.Linear for module in inside)
    assert {module.weight.element_size() for module in inside} == {1}
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight.dtype == model.model.embed_tokens.weight.dtype == dtype
    output = model(IDS).logits
    assert output.dtype == dtype
    assert (output.float() - expected).norm() / expected.norm() < ERRORS[quantization]


@each
@pytest.mark.parametrize("layout", ["hugging_face", "meta"])
def test_loading(library, tmp_path, quantization, layout):
    if layout == "meta":
        save_meta(wide(), tmp_path, shards=2)
    else:
        wide().save_pretrained(tmp_path)
    model = load_backbone(tmp_path, quantization=quantization)
    expected = logits(wide())
    assert (logits(model) - expected).norm() / expected.norm() < ERRORS[quantization]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert fingerprint(model) == fingerprint(wide()), "of the weights before they were quantised"


@each
def test_gradients_reach_prompts_and_gates(library, quantization):
    """Against the same model with the quantised weights written back as plain ones."""
    torch.manual_seed(0)
    config = AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random")
    model = attach(quantize(wide().requires_grad_(False), quantization), config)
    plain = attach(wide(), config)
    for layer, adapter in adapters(model).items():
        adapters(plain)[layer].load_state_dict(adapter.state_dict())
    with torch.no_grad():
        for name, module in plain.model.layers.named_modules():
            if isinstance(module, nn.Linear):
                # What a linear layer does to the unit vectors is its weight.
                unit = torch.eye(module.in_features)
                module.weight.copy_(model.model.layers.get_submodule(name)(unit).T)
    for each_model in (model, plain):
        each_model(IDS, labels=IDS, use_cache=False).loss.backward()
    for layer, adapter in adapters(model).items():
        for ours, exact in zip(adapter.parameters(), adapters(plain)[layer].parameters(), strict=True):
            # int8 also rounds the activations, to 1/254 of their largest; nf4 only the weights.
            assert (ours.grad - exact.grad).norm() < 0.05 * exact.grad.norm()
            assert exact.grad.norm() > 0


@each
def test_training_and_generation(library, quantization, tmp_path):
    torch.manual_seed(0)
    model = attach(quantize(wide().bfloat16().requires_grad_(False), quantization), CONFIG)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    with prompts_projected(model):
        cached = model.generate(IDS[:, :3], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert cached.shape[1] > 3
    fresh = quantize(wide().bfloat16().requires_grad_(False), quantization)
    assert torch.equal(logits(load_adapter(fresh, save_adapter(model, tmp_path))), logits(model))


@each
def test_prompts_go_through_the_quantised_projections(library, quantization):
    torch.manual_seed(0)
    model, plain = (
        quantize(wide(num_key_value_heads=2).requires_grad_(False), quantization),
        wide(num_key_value_heads=2),
    )
    prompt = torch.randn(5, 64)
    for ours, exact in zip(*(project_prompt(attention_modules(m)[1], prompt) for m in (model, plain)), strict=True):
        assert ours.shape == exact.shape == (1, 2, 5, 16)
        assert (ours - exact).norm() / exact.norm() < {"int8": 0.02, "nf4": 0.15}[quantization]


def test_biases_stay(library):
    plain = tiny_model("qwen2", hidden_size=64, intermediate_size=128).requires_grad_(False)
    bias = plain.model.layers[0].self_attn.k_proj.bias.clone()
    assert torch.equal(quantize(plain, "int8").model.layers[0].self_attn.k_proj.bias, bias)


def test_unknown_name(tmp_path):
    message = r"model\.quantization is 'int4'\. Choose null, int8 or nf4\."
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path, quantization="int4")
    check_quantization(None)


@each
def test_missing_library(quantization, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = rf'model\.quantization={quantization} needs bitsandbytes: pip install "llama-adapter\[quantization\]"\.'
    with pytest.raises(ValueError, match=message):
        check_quantization(quantization)


def test_nf4_weights_stay_as_they_are_on_the_cpu(library):
    """bitsandbytes would repack them where the CPU has AVX512-BF16, for a kernel without a backward."""
    model = quantize(tiny_model(hidden_size=192, intermediate_size=512).requires_grad_(False), "nf4")
    layers = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    before = [layer.weight.data.clone() for layer in layers]
    attach(model, AdapterConfig(prompt_length=3, prompt_layers=3, gate_init="random")).eval()
    logits(model)  # inputs without a gradient, in evaluation mode
    model(IDS).logits.square().sum().backward()
    assert all(torch.equal(layer.weight.data, weight) for layer, weight in zip(layers, before, strict=True))
    assert all(adapter.prompt.grad.abs().sum() > 0 for adapter in adapters(model).values())
