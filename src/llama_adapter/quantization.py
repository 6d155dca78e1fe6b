"""Frozen weights in 8 or 4 bits, with bitsandbytes (an optional dependency), on CUDA and on the CPU.

Only the linear layers inside the decoder layers change, each in its place: embeddings and the output head keep their
dtype. Gradients pass through to the activations, so prompts and gates train, and `project_prompt` calls the quantised
projections like any other.
"""

from operator import attrgetter

import torch
from torch import nn
from transformers import PreTrainedModel

from llama_adapter.backbones import family_of

QUANTIZATIONS = ("int8", "nf4")


def check_quantization(quantization: str | None) -> None:
    """Refuses an unknown name or a missing library, before any weight is loaded.

    Raises:
        ValueError: with the choices, or with what to install.
    """
    if quantization is None:
        return
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"model.quantization is {quantization!r}. Choose null, {' or '.join(QUANTIZATIONS)}.")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'model.quantization={quantization} needs bitsandbytes: pip install "llama-adapter[quantization]".'
        ) from error


def quantize(model: PreTrainedModel, quantization: str, *, device: torch.device | None = None) -> PreTrainedModel:
    """Replaces the linear layers of every decoder layer, one after the other, so that memory holds one of them twice.

    int8 is LLM.int8 (arXiv 2208.07339): a scale per output row. nf4 is QLoRA's data type (arXiv 2305.14314): a scale
    per 64 weights. Both compute in the dtype of the weights that they replace.

    Args:
        model: frozen, in any floating dtype.
        quantization: `int8` or `nf4`.
        device: where the whole model goes; where it is when not given. A GPU never holds the unquantised layers.

    Returns:
        The same model.

    Raises:
        ValueError: an unknown name, or bitsandbytes is missing.
    """
    check_quantization(quantization)
    layers = attrgetter(family_of(model.config).layers)(model.base_model)
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                parent, _, attribute = name.rpartition(".")
                setattr(layer.get_submodule(parent), attribute, _quantized(module, quantization, device))
    return model if device is None else model.to(device)


def _quantized(linear: nn.Linear, quantization: str, device: torch.device | None) -> nn.Module:
    import bitsandbytes

    bias = linear.bias is not None
    with torch.device("meta"):
        if quantization == "nf4":
            layer = bitsandbytes.nn.LinearNF4(
                linear.in_features, linear.out_features, bias=bias, compute_dtype=linear.weight.dtype
            )
            # On CPUs with AVX512-BF16 it would repack its weight at the first input without a gradient, for a kernel
            # that has no backward: prompts of the lowest adapted layer would stop training.
            layer.support_avx512bf16_for_cpu = False
        else:
            layer = bitsandbytes.nn.Linear8bitLt(
                linear.in_features, linear.out_features, bias=bias, has_fp16_weights=False
            )
    # The weight is quantised by the move from the CPU to its device, also when that is the CPU.
    weight = linear.weight.data.cpu()
    if quantization == "nf4":
        layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    else:
        layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    return layer.to(device or linear.weight.device).requires_grad_(False)
