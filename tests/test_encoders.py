"""The promises for encoders with a head, text and images: as for decoders, and the head is trained and stored too."""

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, RobertaForMaskedLM, ViTModel

from llama_adapter.adapter_file import read_adapter
from llama_adapter.architecture import Architecture, Hardware
from llama_adapter.attach import adapter_disabled, adapters, attach, trained_of
from llama_adapter.backbones import head_parameters, layers_of
from llama_adapter.batches import BatchConfig
from llama_adapter.checkpoint import load_adapter, save_adapter
from llama_adapter.fingerprint import fingerprint, fingerprint_of_path
from llama_adapter.flops import training_flops
from llama_adapter.heads import HEADS, head_of, span_loss
from llama_adapter.loading import load_backbone
from llama_adapter.module import AdapterModule
from llama_adapter.optim import OptimizerConfig
from llama_adapter.plan import make_plan
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import ENCODER_SHAPES, tiny_encoder, tiny_model

each_encoder = pytest.mark.parametrize("shape", ENCODER_SHAPES)
CONFIG = AdapterConfig(prompt_length=3, prompt_layers=2)
IMAGES = {"vit", "dinov2"}


def batch_of(shape: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    if shape in IMAGES:
        pixels = torch.randn(4, 3, 16, 16, generator=generator)
        return {"pixel_values": pixels, "labels": torch.tensor([0, 4, 2, -100])}
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 8:] = 0
    return {
        "input_ids": torch.randint(4, 64, (3, 12), generator=generator),
        "attention_mask": mask,
        "start_positions": torch.tensor([4, 0, -100]),
        "end_positions": torch.tensor([6, 0, -100]),
    }


def head_name(shape: str) -> str:
    return "classification" if shape in IMAGES else "span"


def outputs(model: PreTrainedModel, shape: str) -> torch.Tensor:
    inputs = {
        name: value for name, value in batch_of(shape).items() if name.startswith(("pixel", "input", "attention"))
    }
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if shape in IMAGES else torch.stack((output.start_logits, output.end_logits))


def train_two_steps(model: PreTrainedModel, shape: str) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss, count = HEADS[head_name(shape)].loss(model, batch_of(shape))
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@each_encoder
def test_1_zero_gate_is_bit_identical(shape):
    assert torch.equal(outputs(attach(tiny_encoder(shape), CONFIG), shape), outputs(tiny_encoder(shape), shape))


@each_encoder
def test_2_after_two_steps_prompts_gates_and_head_have_moved_and_nothing_else(shape):
    model = attach(tiny_encoder(shape), CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_two_steps(model, shape)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if ".adapter." in name} | head_parameters(model).keys()
    assert len(head_parameters(model)) == 2


@each_encoder
def test_3_saved_and_loaded_it_answers_the_same(shape, tmp_path):
    model = attach(tiny_encoder(shape), CONFIG)
    train_two_steps(model, shape)
    file = save_adapter(model, tmp_path)
    size = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert size <= file.stat().st_size < size + 4096, "the adapter and its head, and nothing else"
    bare = tiny_encoder(shape)
    for parameter in head_parameters(bare).values():
        parameter.data.zero_()  # a new head
    assert torch.equal(outputs(load_adapter(bare, file), shape), outputs(model, shape))
    assert set(read_adapter(file).metadata["other_parameters"]) == head_parameters(model).keys()


@pytest.mark.parametrize("shape", ["roberta", "bert"])
@pytest.mark.parametrize("gate_init", ["zero", "random"])
def test_4_padding_changes_nothing(shape, gate_init):
    torch.manual_seed(1)
    model = attach(tiny_encoder(shape), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init=gate_init))
    batch = batch_of(shape)
    with torch.no_grad():
        alone = model(input_ids=batch["input_ids"][1:2, :8]).start_logits[0]
    torch.testing.assert_close(outputs(model, shape)[0, 1, :8], alone, atol=2e-6, rtol=1e-5)


@each_encoder
def test_5_the_adapted_layers_are_exactly_the_top_ones(shape):
    torch.manual_seed(1)
    model = attach(tiny_encoder(shape), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random"))
    assert list(adapters(model)) == [1, 2]
    inputs = {k: v for k, v in batch_of(shape).items() if k in ("pixel_values", "input_ids", "attention_mask")}
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    plain = tiny_encoder(shape)(**inputs, output_hidden_states=True).hidden_states
    same = [torch.equal(ours, theirs) for ours, theirs in zip(hidden, plain, strict=True)]
    assert same == [True, True, False, False]
    with adapter_disabled(model):
        assert torch.equal(outputs(model, shape), outputs(tiny_encoder(shape), shape))


@each_encoder
def test_6_every_trained_tensor_gets_a_gradient_and_nothing_below_keeps_one(shape):
    torch.manual_seed(1)
    model = attach(tiny_encoder(shape), AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random"))
    seen = []
    for layer in layers_of(model):
        layer.register_forward_hook(
            lambda _, __, out: seen.append((out if torch.is_tensor(out) else out[0]).requires_grad)
        )
    loss, _ = HEADS[head_name(shape)].loss(model, batch_of(shape))
    loss.backward()
    assert seen == [False, True, True], "the frozen layer below the adapted ones runs without autograd"
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == parameter.requires_grad, name


# --- the losses -----------------------------------------------------------------------------------------------------


def test_the_span_loss_is_transformers_own_without_padding():
    model = tiny_encoder("roberta").train(False)
    batch = {name: value[:1] for name, value in batch_of("roberta").items()}
    loss, count = span_loss(model, batch)
    assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)
    assert count == 1
    whole, windows = span_loss(model, batch_of("roberta"))
    assert windows == 2, "-100 is not trained"
    output = model(input_ids=batch_of("roberta")["input_ids"][1:2, :8])
    padded = sum(F.cross_entropy(logits, torch.tensor([0])) for logits in (output.start_logits, output.end_logits)) / 2
    assert whole.item() == pytest.approx(loss.item() + padded.item(), rel=1e-5)


def test_an_unknown_head():
    with pytest.raises(ValueError, match="^task.head is 'token'. Choose language, classification, span.$"):
        head_of("token")


# --- what is trained ------------------------------------------------------------------------------------------------


@each_encoder
@pytest.mark.parametrize("trained", ["adapter", "head", "all"])
def test_what_is_trained_for_comparison(shape, trained, tmp_path):
    config = AdapterConfig(prompt_length=3, prompt_layers=2, trained=trained)
    model = attach(tiny_encoder(shape), config)
    assert trained_of(model) == trained
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    frozen = outputs(model, shape)
    train_two_steps(model, shape)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    head = head_parameters(model).keys()
    prompts = {name for name in before if ".adapter." in name}
    unused = {name for name in before if "mask_token" in name}
    assert moved == {"adapter": head | prompts, "head": head, "all": before.keys() - prompts - unused}[trained]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan_of(model, shape, config).trainable_parameters == count
    file = save_adapter(model, tmp_path)
    assert torch.equal(outputs(load_adapter(tiny_encoder(shape), file), shape), outputs(model, shape))
    assert not torch.equal(outputs(model, shape), frozen)


def plan_of(model: PreTrainedModel, shape: str, config: AdapterConfig):
    return make_plan(
        model=shape, architecture=Architecture.from_config(model.config), hardware=Hardware(), adapter=config,
        batches=BatchConfig(batching="padded"), optimizer=OptimizerConfig(), devices=1, max_epochs=3, max_steps=-1,
        examples=100, tokens_per_example=17.0, max_length=17, dtype="float32", quantization=None,
        head_outputs=5 if shape in IMAGES else 2,
    )  # fmt: skip


@each_encoder
def test_the_plan_says_what_is_trained(shape):
    model = tiny_encoder(shape)
    frozen = sum(p.numel() for p in model.base_model.parameters())
    assert Architecture.from_config(model.config).parameters == frozen
    lines = {
        trained: str(plan_of(model, shape, AdapterConfig(3, 2, trained=trained))).splitlines()[1]
        for trained in ("adapter", "head", "all")
    }
    assert "K=3, L=2 of 3 layers, and the head" in lines["adapter"]
    assert "(the head alone)" in lines["head"]
    assert "(all weights)" in lines["all"]
    totals = {line.split("total ")[1] for line in (lines["head"], lines["all"])}
    assert totals == {f"{sum(p.numel() for p in model.parameters()):,}"}


def test_a_comparison_needs_something_to_train():
    with pytest.raises(ValueError, match="^adapter.trained is head, but this model has no head of its own to train."):
        attach(tiny_model(), AdapterConfig(3, 2, trained="head"))
    with pytest.raises(ValueError, match="adapter.trained is all, but the weights are torch.bfloat16.*float32.$"):
        attach(tiny_encoder("roberta").bfloat16(), AdapterConfig(3, 2, trained="all"))
    with pytest.raises(ValueError, match="^adapter.trained is 'gates'. Choose adapter, head, all.$"):
        AdapterConfig(trained="gates")
    with pytest.raises(ValueError, match="adapter.trained=head leaves the gates where they start.*Set it to zero.$"):
        AdapterConfig(trained="head", gate_init="random")


def test_a_linear_probe_costs_a_forward_pass_and_full_fine_tuning_three():
    shape = Architecture.from_config(tiny_encoder("vit").config)
    numbers = {"prompt_length": 3, "prompt_layers": 2, "tokens": 10, "attended": 100, "trained": 1}
    flops = {kind: training_flops(shape, **numbers, trains=kind).useful for kind in ("head", "adapter", "all")}
    assert flops["all"] == 3 * flops["head"]
    assert flops["head"] < flops["adapter"] < flops["all"]


def test_the_frozen_models_dropout_is_off_unless_it_is_asked_for():
    def losses(dropout: bool) -> set[float]:
        model = attach(tiny_encoder("roberta", attention_probs_dropout_prob=0.5), CONFIG)
        module = AdapterModule(model, head=HEADS["span"], dropout=dropout)
        return {module.head.loss(module.model, batch_of("roberta"))[0].item() for _ in range(3)}

    assert len(losses(dropout=False)) == 1
    assert len(losses(dropout=True)) == 3


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_pretrained_encoder_gets_a_new_head(tmp_path, caplog):
    encoder = tiny_encoder("roberta")
    pretrained = RobertaForMaskedLM(encoder.config)
    pretrained.roberta.load_state_dict(encoder.roberta.state_dict())
    pretrained.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        model = load_backbone(tmp_path, model_class=HEADS["span"].model_class)
    assert "A new head, to be trained: qa_outputs.bias, qa_outputs.weight." in caplog.text
    assert "LOAD REPORT" not in caplog.text
    for name, parameter in encoder.roberta.named_parameters():
        assert torch.equal(parameter, model.roberta.get_parameter(name)), name
    assert fingerprint(model) == fingerprint(encoder) == fingerprint_of_path(tmp_path) is not None


def test_a_bare_encoder_and_a_head_of_other_classes(tmp_path, caplog):
    classifier = tiny_encoder("vit")
    for name in ("bare", "head"):
        folder = tmp_path / name
        (classifier.vit if name == "bare" else classifier).save_pretrained(folder)
        with caplog.at_level("INFO"):
            model = load_backbone(folder, model_class=HEADS["classification"].model_class, classes=7)
        assert "A new head, to be trained: classifier.bias, classifier.weight." in caplog.text
        caplog.clear()
        assert model.classifier.weight.shape == (7, 32)
        assert torch.equal(model.vit.layernorm.weight, classifier.vit.layernorm.weight)
        assert fingerprint(model) == fingerprint(classifier)
        # ViT's files have the names of an older transformers: nothing is compared before they are loaded.
        assert fingerprint_of_path(folder) is None
    same = load_backbone(tmp_path / "head", model_class=HEADS["classification"].model_class, classes=5)
    assert torch.equal(same.classifier.weight, classifier.classifier.weight), "a head that fits is taken"


def test_a_damaged_encoder_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    ViTModel(tiny_encoder("vit").config, add_pooling_layer=False).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="layernorm.weight is missing"):
        load_backbone(tmp_path, model_class=HEADS["classification"].model_class, classes=7)


def test_a_model_of_the_wrong_kind(tmp_path, no_weights):
    tiny_encoder("roberta").config.save_pretrained(tmp_path / "encoder")
    tiny_model().config.save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match="encoder holds a roberta, an encoder, which has no next token, but task.head"):
        load_backbone(tmp_path / "encoder")
    with pytest.raises(ValueError, match="decoder holds a llama, a decoder, but task.head asks for another output"):
        load_backbone(tmp_path / "decoder", model_class=HEADS["span"].model_class)
