"""Compiled and checkpointed layers compute the same, keep less, and leave generation as it was."""

import pytest
import torch

from llama_adapter.attach import adapters, attach
from llama_adapter.backbones import layers_of
from llama_adapter.data import PaddedCollator
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.generation import generate_ids
from llama_adapter.heads import response_loss
from llama_adapter.layer_modes import KEPT, checkpoint_layers, compile_layers, uncompiled
from llama_adapter.plan import ACTIVATION_CHECKPOINTING
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import FAMILY_SHAPES, tiny_model
from tests.tiny_training import make_examples


def adapted(shape: str = "llama", *, dtype: torch.dtype = torch.float32, **config):
    torch.manual_seed(0)
    model = attach(tiny_model(shape, **config).to(dtype), AdapterConfig(3, 2, gate_init="random"))
    return model.eval()


def step(model, batch) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss, _ = response_loss(model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def assert_equal(ours, theirs, tolerance: float = 1e-5) -> None:
    assert abs(ours[0] - theirs[0]) <= tolerance * theirs[0]
    assert (ours[1] - theirs[1]).norm() <= tolerance * theirs[1].norm()


@pytest.mark.parametrize("collator", [FlatCollator(0), PaddedCollator(0)])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("shape", FAMILY_SHAPES)
def test_checkpointed_layers_give_the_same_gradients(shape, kept, collator):
    batch = collator(make_examples(6))
    plain, checkpointed = adapted(shape), adapted(shape)
    checkpoint_layers(checkpointed, kept)
    assert_equal(step(checkpointed, batch), step(plain, batch), tolerance=0.0)


@pytest.mark.parametrize("kept", [None, *KEPT])
def test_a_bfloat16_base(kept):
    batch = FlatCollator(0)(make_examples(6))
    plain, other = adapted(dtype=torch.bfloat16), adapted(dtype=torch.bfloat16)
    if kept:
        checkpoint_layers(other, kept)
    assert_equal(step(other, batch), step(plain, batch), tolerance=0.0)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in other.parameters() if p.requires_grad)


def kept_bytes(model, batch) -> int:
    """Of the tensors that autograd holds between forward and backward, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = response_loss(model, batch)
    loss.backward()
    return sum(storages.values())


def test_less_is_kept():
    batch = FlatCollator(0)(make_examples(12))
    options = {"hidden_size": 64, "intermediate_size": 256}
    kept = {}
    for name in (None, "layer"):
        model = adapted(**options)
        if name:
            checkpoint_layers(model, name)
        kept[name] = kept_bytes(model, batch)
    assert kept["layer"] < 0.3 * kept[None]


def test_only_the_layers_own_flag_says_that_it_trains():
    model = adapted()
    checkpoint_layers(model, "layer")
    training = {name for name, module in model.named_modules() if module.training}
    assert training == {f"model.layers.{number}" for number in adapters(model)}


def test_generation_leaves_the_flags():
    model, plain = adapted(), adapted()
    checkpoint_layers(model, "attention")
    arguments = {"eos_ids": (), "pad_id": 0, "max_new_tokens": 5}
    assert generate_ids(model, [[1, 5, 6]], **arguments) == generate_ids(plain, [[1, 5, 6]], **arguments)
    assert [layer.training for layer in layers_of(model)] == [False, True, True]


def test_refuses_what_is_no_choice():
    with pytest.raises(ValueError, match=r"What a layer keeps is 'all'\. Choose layer, attention, products\."):
        checkpoint_layers(adapted(), "all")


def test_the_choices_are_those_that_a_plan_knows():
    assert tuple(KEPT) == ACTIVATION_CHECKPOINTING


def test_uncompiled():
    model = adapted()
    for number, layer in enumerate(layers_of(model)):
        layer._compiled_call_impl = number
    with uncompiled(model):
        assert {layer._compiled_call_impl for layer in layers_of(model)} == {None}
    assert [layer._compiled_call_impl for layer in layers_of(model)] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [None, *KEPT])
def test_compiled_layers_give_the_same_gradients(kept, dtype):
    """Over rows of changing lengths, with few graphs; the kernels may round in another order."""
    torch.compiler.reset()
    plain, compiled = adapted(dtype=dtype), adapted(dtype=dtype)
    if kept:
        checkpoint_layers(compiled, kept)
    compile_layers(compiled)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # bfloat16: 8 bits, rounded after every fused kernel
    for number in (6, 9, 7, 12):
        batch = FlatCollator(0)(make_examples(number, seed=number))
        assert_equal(step(compiled, batch), step(plain, batch), tolerance)
    with torch.compiler.set_stance("fail_on_recompile"):
        step(compiled, FlatCollator(0)(make_examples(10, seed=3)))
    arguments = {"eos_ids": (), "pad_id": 0, "max_new_tokens": 5}
    generate_ids(compiled, [[1, 5, 6]], **arguments)
