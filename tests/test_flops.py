"""The arithmetic of a step's operations, against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from llama_adapter.architecture import Architecture
from llama_adapter.attach import attach
from llama_adapter.data import PaddedCollator
from llama_adapter.examples import IGNORED
from llama_adapter.flops import TrainingFlops, training_flops
from llama_adapter.heads import class_loss, response_loss, span_loss
from llama_adapter.layer_modes import checkpoint_layers
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import FAMILY_SHAPES, tiny_encoder, tiny_model
from tests.tiny_training import make_examples

K = 3


def adapted(model: PreTrainedModel, prompt_layers: int) -> PreTrainedModel:
    return attach(model, AdapterConfig(K, prompt_layers, gate_init="random")).eval()


def text_batch() -> dict[str, torch.Tensor]:
    """Of one length, as padding is computed too."""
    return PaddedCollator(0)([example for example in make_examples(40) if len(example["input_ids"]) == 9][:4])


def counted(model, loss_of, batch) -> int:
    """With attention as plain products, of which torch counts the whole square."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = loss_of(model, batch)
        loss.backward()
    return counter.get_total_flops()


def decoder_flops(model, batch, prompt_layers: int, **options) -> TrainingFlops:
    rows, length = batch["input_ids"].shape
    return training_flops(
        Architecture.from_config(model.config),
        prompt_length=K,
        prompt_layers=prompt_layers,
        tokens=rows * length,
        attended=rows * length**2,
        trained=int((batch["labels"] != IGNORED).sum()),
        **options,
    )


@pytest.mark.parametrize("prompt_layers", [1, 2, 3])
@pytest.mark.parametrize("shape", FAMILY_SHAPES)
def test_decoders_compute_what_torch_counts(shape, prompt_layers):
    """To the last operation."""
    torch.manual_seed(0)
    model, batch = adapted(tiny_model(shape), prompt_layers), text_batch()
    assert decoder_flops(model, batch, prompt_layers).useful == counted(model, response_loss, batch)


@pytest.mark.parametrize("prompt_layers", [1, 3])
@pytest.mark.parametrize("kept", ["layer", "products"])
def test_what_is_computed_again(kept, prompt_layers):
    """Plain products are none of the attention kernels that `attention` and `products` keep: without them."""
    model, batch = adapted(tiny_model(), prompt_layers), text_batch()
    checkpoint_layers(model, kept)
    flops = decoder_flops(model, batch, prompt_layers, activation_checkpointing=kept)
    if kept == "layer":
        assert flops.computed == counted(model, response_loss, batch)
    else:
        assert flops.recomputed == 0
    kernels_kept = decoder_flops(model, batch, prompt_layers, activation_checkpointing="attention")
    with FlopCounterMode(display=False) as counter:  # this kernel's operations are not counted
        loss, _ = response_loss(adapted_and_keeping("attention", prompt_layers), batch)
        loss.backward()
    shape = Architecture.from_config(model.config)
    pairs = 4 * shape.heads * shape.head_size
    words = pairs * 4 * 81 * (shape.layers + 2 * (prompt_layers - 1))
    prompts = pairs * 36 * K * (3 * prompt_layers - 0.5)
    assert kernels_kept.computed - words - prompts == counter.get_total_flops()


def adapted_and_keeping(kept: str, prompt_layers: int) -> PreTrainedModel:
    model = adapted(tiny_model(), prompt_layers)
    checkpoint_layers(model, kept)
    return model


@pytest.mark.parametrize("prompt_layers", [1, 3])
@pytest.mark.parametrize("shape", ["roberta", "bert", "vit", "dinov2"])
def test_encoders_compute_what_torch_counts(shape, prompt_layers):
    """But for the head and the patches, which are left out; here, where all is tiny, they are counted apart."""
    model = adapted(tiny_encoder(shape), prompt_layers)
    if shape in ("vit", "dinov2"):
        batch, loss_of, tokens = (
            {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])},
            class_loss,
            17,
        )
        head = 3 * 2 * 2 * 5 * 32 * (2 if shape == "dinov2" else 1) + 2 * 2 * 16 * 48 * 32  # and the patches
    else:
        zeros, ids = torch.zeros(2, dtype=torch.long), torch.randint(3, 64, (2, 20))
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "start_positions": zeros,
            "end_positions": zeros,
        }
        loss_of, tokens, head = span_loss, 20, 3 * 2 * 40 * 32 * 2
    architecture = Architecture.from_config(model.config)
    if shape == "dinov2":  # the tiny config has an intermediate_size too, which this family does not read
        architecture = replace(architecture, intermediate_size=32 * 2)
    flops = training_flops(
        architecture,
        prompt_length=K,
        prompt_layers=prompt_layers,
        tokens=2 * tokens,
        attended=2 * tokens**2,
        trained=2,
    )
    assert flops.useful + head == pytest.approx(counted(model, loss_of, batch), rel=0.01)


def test_attention_by_hand():
    """One layer, one head of size 2: a pair of query and key is 2 x 2 for its score and 2 x 2 for its value."""
    shape = Architecture(hidden_size=2, layers=1, heads=1, key_value_heads=1, head_size=2)
    options = {"prompt_length": 1, "prompt_layers": 1, "tokens": 0, "trained": 0}

    def of_pairs(shape: Architecture) -> float:
        more, none = (training_flops(shape, attended=pairs, **options).useful for pairs in (10, 0))
        return more - none

    assert of_pairs(shape) == 10 * 8  # forward alone: below the prompts of the lowest adapted layer nothing is trained
    deeper = Architecture(hidden_size=2, layers=2, heads=1, key_value_heads=1, head_size=2)
    options["prompt_layers"] = 2
    assert of_pairs(deeper) == 10 * 8 * (2 + 2)  # two layers forward; the upper one backward, at twice the price


def test_llama_7b_of_the_paper():
    """25.4 GFLOP per useful token: the forward pass and the gradient to the activations of 6.6e9 weights, K=10, L=30."""
    shape = Architecture(4096, 11008, 32, 32, 32, 128, 32000)
    tokens, length = 123, 123
    flops = training_flops(
        shape,
        prompt_length=10,
        prompt_layers=30,
        tokens=tokens,
        attended=length * (length + 1) // 2,
        trained=tokens // 2,
    )
    assert 24e9 < flops.useful / tokens < 26.5e9
    assert flops.recomputed == 0


def test_every_image_brings_prompts_of_its_own():
    shape = Architecture(4096, 11008, 32, 32, 32, 128, 32000)
    options = {"prompt_length": 10, "prompt_layers": 30, "tokens": 100, "attended": 5050, "trained": 50}
    one, four = (training_flops(shape, prompt_sets=sets, **options) for sets in (1, 4))
    # K tokens through key and value projections in L layers, forward and backward
    assert four.prompts - one.prompts == 3 * 10 * 30 * 2 * 2 * 2 * 4096**2
    assert four.forward == one.forward


def test_a_linear_probe_and_full_fine_tuning():
    shape = Architecture(4096, 11008, 32, 32, 32, 128, 32000)
    options = {"prompt_length": 10, "prompt_layers": 30, "tokens": 100, "attended": 5050, "trained": 50}
    flops = {trains: training_flops(shape, trains=trains, **options) for trains in ("head", "adapter", "all")}
    assert flops["head"].backward == 0 and flops["head"].useful == flops["all"].forward
    # Kaplan et al., arXiv 2001.08361: 2 forward and 4 backward for every weight and token
    assert flops["all"].backward == 2 * flops["all"].forward
    assert flops["all"].prompts == flops["head"].prompts == 0
