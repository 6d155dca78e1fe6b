"""params.json of the published models against the config.json that was published for the same model."""

import pytest

from llama_adapter.meta_config import context_length, llama_config, rope_parameters

LLAMA1_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}
LLAMA1_65B = {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}
LLAMA2_7B = LLAMA1_7B | {"norm_eps": 1e-05}
LLAMA2_70B = LLAMA1_65B | {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8}
CODE_LLAMA_7B = LLAMA2_7B | {"rope_theta": 1000000}
LLAMA3_8B = LLAMA2_7B | {"n_kv_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0}
LLAMA31_8B = LLAMA3_8B | {"use_scaled_rope": True}
LLAMA32_1B = LLAMA31_8B | {"dim": 2048, "n_layers": 16}


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        (LLAMA1_7B, 2048),
        (LLAMA1_65B, 2048),
        (LLAMA2_7B, 4096),
        (LLAMA2_70B, 4096),
        (CODE_LLAMA_7B, 16384),
        (LLAMA3_8B, 8192),
        (LLAMA31_8B, 131072),
        (LLAMA3_8B | {"max_seq_len": 1234}, 1234),
    ],
)
def test_context_length(params, tokens):
    assert context_length(params) == tokens


@pytest.mark.parametrize(
    ("params", "theta", "factor"),
    [
        (LLAMA1_7B, 1e4, None),
        (CODE_LLAMA_7B, 1e6, None),
        (LLAMA3_8B, 5e5, None),
        (LLAMA31_8B, 5e5, 8),
        (LLAMA32_1B, 5e5, 32),
    ],
)
def test_rope(params, theta, factor):
    rope = rope_parameters(params)
    assert rope["rope_theta"] == theta
    assert rope["rope_type"] == ("default" if factor is None else "llama3")
    assert rope.get("factor") == factor
    if factor:
        assert (rope["low_freq_factor"], rope["high_freq_factor"]) == (1, 4)
        assert rope["original_max_position_embeddings"] == 8192


def test_config():
    config = llama_config(LLAMA3_8B, vocabulary=128256, intermediate_size=14336)
    assert (config.bos_token_id, config.eos_token_id) == (128000, 128001)
    assert (config.num_key_value_heads, config.head_dim, config.rms_norm_eps) == (8, 128, 1e-5)
    config = llama_config(LLAMA1_7B, vocabulary=32000, intermediate_size=11008)
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert (config.num_key_value_heads, config.num_attention_heads, config.vocab_size) == (32, 32, 32000)
