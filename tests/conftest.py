"""Tiny random models of every family, built in memory, and the folder of shared reference data where there is one."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    PretrainedConfig,
    PreTrainedModel,
)

ROOT = Path(__file__).parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

# Each shape is one the family's promises must hold for: grouped heads, RoPE scaling, a sliding window, biases.
FAMILY_SHAPES: dict[str, dict] = {
    "llama": {"num_key_value_heads": 4},
    "llama_grouped_scaled_rope": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "mistral_sliding_window": {"num_key_value_heads": 2, "sliding_window": 6},
    "qwen2": {"num_key_value_heads": 1},
}


ENCODER_SHAPES: dict[str, dict] = {
    "roberta": {"vocab_size": 64, "max_position_embeddings": 66, "type_vocab_size": 1},
    "bert": {"vocab_size": 64, "max_position_embeddings": 64},
    "vit": {"image_size": 16, "patch_size": 4, "num_labels": 5},
    "dinov2": {"image_size": 16, "patch_size": 4, "num_labels": 5, "mlp_ratio": 2},
}


def tiny_encoder(shape: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random encoder with its head, C=32, H=4, 3 layers: spans of 64 tokens, or images of 16 pixels in 5 classes."""
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(shape, **(settings | ENCODER_SHAPES[shape] | overrides))
    kind = AutoModelForQuestionAnswering if hasattr(config, "vocab_size") else AutoModelForImageClassification
    return _with_random_weights(kind, config, seed)


def tiny_model(shape: str = "llama", seed: int = 0, **overrides) -> PreTrainedModel:
    """A random causal LM with C=32, H=4, 3 layers and 64 tokens; `shape` is a key of FAMILY_SHAPES."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(shape.split("_")[0], **(settings | FAMILY_SHAPES[shape] | overrides))
    return _with_random_weights(AutoModelForCausalLM, config, seed)


def _with_random_weights(model_class: type, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class.from_config(config, attn_implementation="sdpa")
        # transformers starts with std 0.02: logits of almost nothing, in which a wrong mask would go unnoticed.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)  # biases and norms that are not trivial
    return model.eval()


@pytest.fixture
def shared() -> Path:
    """The folder `shared` beside the checkout (or LLAMA_ADAPTER_SHARED): golden numbers and real data."""
    folder = Path(os.environ.get("LLAMA_ADAPTER_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared reference data: set LLAMA_ADAPTER_SHARED to its folder")
    return folder


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test when weights are read."""

    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    for reader in ("_load_hugging_face", "_load_meta"):
        monkeypatch.setattr(f"llama_adapter.loading.{reader}", load)
