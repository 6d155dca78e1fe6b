"""The whole model against numbers of the authors' published code, and against a trained LLaMA. Needs `shared`."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PreTrainedModel

from llama_adapter.attach import adapters, attach
from llama_adapter.checkpoint import load_adapter
from llama_adapter.loading import load_backbone
from llama_adapter.tokenizer import load_tokenizer
from llama_adapter.zero_init import AdapterConfig, prompt_attention

CASES = ["k3_l2_random", "k10_l4_random", "k1_l1_random", "k3_l2_zero_gate", "k10_l4_mixed_gate"]
# float32 with sums in another order; logits reach 15. The reference itself and transformers differ by 5.7e-6.
LOGITS = {"atol": 1e-5, "rtol": 0}
# Adam divides by the gradient's size, which amplifies rounding where a gradient is almost zero.
AFTER_STEPS = {"atol": 1e-4, "rtol": 0}


def golden(shared: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    folder = shared / "golden"
    return load_file(folder / f"text_{name}.safetensors"), json.loads((folder / f"text_{name}.json").read_text())


def adapted_model(shared: Path, tmp_path: Path, name: str, **options) -> PreTrainedModel:
    """The golden base with a case's adapter, read through the authors' file format."""
    tensors, case = golden(shared, name)
    is_adapter = ("adapter_query.", "layers.")
    torch.save({key: value for key, value in tensors.items() if key.startswith(is_adapter)}, tmp_path / "adapter.pth")
    model = load_backbone(shared / "golden/meta_checkpoint/mp1")
    return load_adapter(model, tmp_path / "adapter.pth", prompt_layers=case["adapter_layer"], **options)


def authors_loss(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(tensors["tokens"], use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tensors["labels"][:, 1:].flatten(), ignore_index=0)


def assert_trained_like(model: PreTrainedModel, tensors: dict[str, torch.Tensor], prefix: str, tolerance: dict) -> None:
    """Compares prompts and gates (or with `grad.` their gradients) with the reference's tensors."""
    what = (lambda parameter: parameter.grad) if prefix == "grad." else (lambda parameter: parameter.detach())
    attached = adapters(model)
    prompts = torch.cat([what(adapter.prompt) for adapter in attached.values()])
    torch.testing.assert_close(prompts, tensors[f"{prefix}adapter_query.weight"], **tolerance)
    for layer, adapter in attached.items():
        expected = tensors[f"{prefix}layers.{layer}.attention.gate"].flatten()
        torch.testing.assert_close(what(adapter.gate), expected, **tolerance)


@pytest.mark.parametrize("layout", ["hf_checkpoint", "meta_checkpoint/mp1", "meta_checkpoint/mp2"])
def test_base_logits_and_loss(shared, layout):
    expected = load_file(shared / "golden/text_base_no_adapter.safetensors")
    model = load_backbone(shared / "golden" / layout)
    with torch.no_grad():
        torch.testing.assert_close(model(expected["tokens"]).logits, expected["logits"], **LOGITS)
        torch.testing.assert_close(authors_loss(model, expected), expected["loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients(shared, tmp_path, name):
    tensors, case = golden(shared, name)
    model = adapted_model(shared, tmp_path, name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == case["n_trainable"]
    torch.testing.assert_close(model(tensors["tokens"]).logits.detach(), tensors["logits"], **LOGITS)
    loss = authors_loss(model, tensors)
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["loss"], atol=1e-5, rtol=0)
    assert_trained_like(model, tensors, "grad.", {"atol": 5e-6, "rtol": 0})


@pytest.mark.parametrize("name", CASES)
def test_three_optimizer_steps(shared, tmp_path, name):
    tensors, _ = golden(shared, name)
    model = adapted_model(shared, tmp_path, name)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=9e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.02)
    losses = []
    for step in (1, 2, 3):
        optimizer.zero_grad()
        loss = authors_loss(model, tensors)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert_trained_like(model, tensors, f"step{step}.", AFTER_STEPS)
    with torch.no_grad():
        losses.append(authors_loss(model, tensors).item())
        # What the parameters differ by (up to 1e-4) shows in logits of this size about as much.
        logits = model(tensors["tokens"]).logits
    torch.testing.assert_close(logits, tensors["logits_after_3_steps"], atol=1e-4, rtol=0)
    assert losses == pytest.approx(tensors["losses"].tolist(), abs=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("variant", "activation"), [("tanh_gate", "tanh"), ("raw_gate", "identity")])
def test_greedy_generation(shared, tmp_path, name, variant, activation):
    tensors, case = golden(shared, name)
    model = adapted_model(shared, tmp_path, name, gate_activation=activation)
    model.generation_config.eos_token_id = None  # the reference generates on after the end of text
    total = case["generation"]["total_len"]
    rows = case["generation"][variant]["raw_tokens"]
    for prompt, row in zip(case["generation"]["prompts"], rows, strict=True):
        ids = model.generate(
            torch.tensor([prompt]), max_new_tokens=total - len(prompt), do_sample=False, pad_token_id=0
        )
        assert ids[0].tolist() == row
    with torch.no_grad():
        logits = model(torch.tensor(rows)).logits
    shortest = min(len(prompt) for prompt in case["generation"]["prompts"])
    expected = tensors[f"gen_{variant}.step_logits"]
    torch.testing.assert_close(logits[:, shortest - 1 : -1], expected, **LOGITS)


def test_attention_in_isolation(shared):
    """The reference's attention module, rebuilt around `prompt_attention`."""
    unit = load_file(shared / "golden/attention_unit.safetensors")
    x = unit["x"].requires_grad_()
    prompt, gate = unit["adapter"].requires_grad_(), unit["gate"].requires_grad_()

    def heads(states: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(states, unit[name]).unflatten(-1, (4, 16)).transpose(1, 2)  # [B, H, T, D]

    def rotate(states: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.complex(unit["rope_cos"], unit["rope_sin"])
        return torch.view_as_real(turned).flatten(-2)

    query, key, value = rotate(heads(x, "wq")), rotate(heads(x, "wk")), heads(x, "wv")
    words = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    factor = gate.flatten().tanh()
    prompts = prompt_attention(query, heads(prompt, "wk"), heads(prompt, "wv"), factor, 16**-0.5)
    without = F.linear(words.flatten(2), unit["wo"])
    output = F.linear((words + prompts).flatten(2), unit["wo"])
    torch.testing.assert_close(without.detach(), unit["out_without_adapter"], **LOGITS)
    torch.testing.assert_close(output.detach(), unit["out"], **LOGITS)
    output.backward(unit["grad_out"])
    # grad_out is of size 1, so these sums over all tokens are larger than a training step's gradients.
    for tensor, name in ((x, "grad_x"), (prompt, "grad_adapter"), (gate, "grad_gate")):
        torch.testing.assert_close(tensor.grad, unit[name], atol=2e-5, rtol=0)


def test_parameter_counts(shared):
    """The paper's table: 1,229,760 for LLaMA-7B with K = 10, L = 30. Counted on models without memory for weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    counts = json.loads((shared / "golden/parameter_counts.json").read_text())["counts"]
    assert any(count["total"] == 1_229_760 for count in counts)
    for count in counts:
        config = AutoConfig.for_model(
            "llama", vocab_size=8, hidden_size=count["dim"], intermediate_size=8,
            num_hidden_layers=count["n_layers"], num_attention_heads=count["n_heads"],
        )  # fmt: skip
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        attach(model, AdapterConfig(prompt_length=count["adapter_len"], prompt_layers=count["adapter_layer"]))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count["total"]


def test_grouped_heads_of_a_trained_llama_in_metas_layout(shared, tmp_path):
    """stories260K.bin holds Meta's order of rows, 8 query heads and 4 key/value heads: split into two shards it must
    load as the model that the README of the weights checked."""
    folder = shared / "weights/tinyllamas-stories260K"
    raw = (folder / "stories260K.bin").read_bytes()
    dim, inner, layers, heads, groups, vocabulary, _ = struct.unpack("7i", raw[:28])
    numbers, start = torch.frombuffer(bytearray(raw[28:]), dtype=torch.float32), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal start
        start += math.prod(shape)
        return numbers[start - math.prod(shape) : start].view(shape)

    keys = dim // heads * groups
    tensors = {"tok_embeddings": take(vocabulary, dim)}
    for name, shape in (
        ("attention_norm", (dim,)),
        ("attention.wq", (dim, dim)),
        ("attention.wk", (keys, dim)),
        ("attention.wv", (keys, dim)),
        ("attention.wo", (dim, dim)),
        ("ffn_norm", (dim,)),
        ("feed_forward.w1", (inner, dim)),
        ("feed_forward.w2", (dim, inner)),
        ("feed_forward.w3", (inner, dim)),
    ):
        tensors |= {f"layers.{layer}.{name}": weight for layer, weight in enumerate(take(layers, *shape))}
    tensors |= {"norm": take(dim), "output": tensors["tok_embeddings"]}
    for shard in (0, 1):
        columns = ("wo", "w2", "tok_embeddings")
        parts = {
            f"{name}.weight": weight
            if weight.dim() == 1
            else weight.chunk(2, int(name.endswith(columns)))[shard].clone()
            for name, weight in tensors.items()
        }
        torch.save(parts, tmp_path / f"consolidated.{shard:02d}.pth")
    params = {
        "dim": dim,
        "n_heads": heads,
        "n_kv_heads": groups,
        "n_layers": layers,
        "norm_eps": 1e-5,
        "vocab_size": -1,
    }
    (tmp_path / "params.json").write_text(json.dumps(params))
    ours, expected = load_backbone(tmp_path), load_backbone(folder / "hf")
    ids = torch.randint(vocabulary, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, expected(ids).logits)
    assert ours.backbone_fingerprint == expected.backbone_fingerprint


def test_trained_tiny_llama_speaks(shared):
    """stories260K: the texts that its own program prints (README of the weights)."""
    folder = shared / "weights/tinyllamas-stories260K"
    model = load_backbone(folder / "hf", tokenizer=folder / "tok512.model")
    tokenizer = load_tokenizer(folder / "tok512.model")
    lily = " a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    for prompt, start in [("Zoo", f"Zoo was{lily}"), ("Once upon a time", f"Once upon a time, there was{lily}")]:
        ids = torch.tensor([tokenizer.encode(prompt, bos=True)])
        answer = model.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=0)[0]
        assert tokenizer.decode(answer.tolist()).startswith(start)
    sentence = "One day Tom and Sam went to the park. They saw a big dog."
    ids = torch.tensor([tokenizer.encode(sentence, bos=True)])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert loss == pytest.approx(1.22, abs=0.005)  # given to three digits
