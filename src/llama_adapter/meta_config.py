"""Meta's `params.json` in the words of transformers' LlamaConfig.

The file says little; what it leaves open is read from tensors' shapes, or told by its other values as described here.
"""

from transformers import LlamaConfig

LLAMA3_VOCABULARY = 128256


def llama_config(params: dict, *, vocabulary: int, intermediate_size: int) -> LlamaConfig:
    """The config of a LLaMA 1, 2 or 3.

    Args:
        params: `params.json`.
        vocabulary: rows of the embeddings; LLaMA 1 and 2 write -1 into params.json and leave it to the tokenizer.
        intermediate_size: rows of w1; params.json only has the rule behind it (`multiple_of`, `ffn_dim_multiplier`).
    """
    is_llama3 = vocabulary == LLAMA3_VOCABULARY
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=params["dim"],
        intermediate_size=intermediate_size,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
        rms_norm_eps=params["norm_eps"],
        max_position_embeddings=context_length(params),
        rope_parameters=rope_parameters(params),
        # Llama 3: <|begin_of_text|> and <|end_of_text|>; before it: the pieces of tokenizer.model.
        bos_token_id=128000 if is_llama3 else 1,
        eos_token_id=128001 if is_llama3 else 2,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )


def context_length(params: dict) -> int:
    """The tokens a model was trained on at once.

    `max_seq_len` if it is there; Llama 3.1 and later 131072 (scaled RoPE); Llama 3 8192 and Code Llama 16384 (RoPE
    theta); LLaMA 2 4096; LLaMA 1 2048. LLaMA 1 has norm_eps 1e-6, except its 65B model, which has 1e-5 but not the
    n_kv_heads of LLaMA 2 70B.
    """
    if "max_seq_len" in params:
        return params["max_seq_len"]
    if params.get("use_scaled_rope"):
        return 131072
    theta = params.get("rope_theta", 10000.0)
    if theta != 10000.0:
        return 8192 if theta == 500000.0 else 16384
    is_llama1 = params["norm_eps"] == 1e-6 or (params["dim"] == 8192 and "n_kv_heads" not in params)
    return 2048 if is_llama1 else 4096


def rope_parameters(params: dict) -> dict:
    """Rotary settings; the numbers of the scaled kind are those of Llama 3.1's and 3.2's published config.json."""
    rope = {"rope_type": "default", "rope_theta": float(params.get("rope_theta", 10000.0))}
    if params.get("use_scaled_rope"):
        rope |= {
            "rope_type": "llama3",
            "factor": 8.0 if params["dim"] >= 4096 else 32.0,  # 32: Llama 3.2, whose two text models are narrower
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return rope
