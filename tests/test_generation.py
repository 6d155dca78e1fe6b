"""Decoding against loops written out naively here, and against the golden ids and distributions."""

import io
import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedModel

from llama_adapter.attach import adapter_disabled, adapters, attach
from llama_adapter.backbones import attention_modules
from llama_adapter.generation import generate, generate_ids
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import FAMILY_SHAPES, tiny_model

PROMPTS = [[1, 5, 6, 7, 8, 9, 10, 11, 12], [1, 4], [1, 20, 21, 22, 23], [1, 30, 31, 32, 33]]


def adapted_model(shape: str = "llama", **overrides) -> PreTrainedModel:
    """A tiny model with two adapted layers whose gates are so wide open that a wrong prompt half changes the words."""
    model = tiny_model(shape, **overrides)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        attach(model, AdapterConfig(prompt_length=3, prompt_layers=2))
        for adapter in adapters(model).values():
            torch.nn.init.uniform_(adapter.gate, 1.0, 2.0)
            adapter.gate.data[1] *= -1
    return model


def ids(model: PreTrainedModel, prompts: list[list[int]] = PROMPTS, **options) -> list[list[int]]:
    return generate_ids(model, prompts, **({"eos_ids": (2,), "pad_id": 0, "max_new_tokens": 8} | options))


@torch.no_grad()
def greedy_without_cache(model: PreTrainedModel, prompt: list[int], new_tokens: int = 8, eos_id: int = 2) -> list[int]:
    sequence = list(prompt)
    for _ in range(new_tokens):
        token = model(torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax().item()
        if token == eos_id:
            break
        sequence.append(token)
    return sequence[len(prompt) :]


def sentencepiece(vocabulary_size: int = 300, **options) -> SentencePieceProcessor:
    """A tokenizer with LLaMA's special ids and its pieces for single bytes."""
    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ran to the town", "what is the name of the cat"]),
        model_writer=stream,
        vocab_size=vocabulary_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    return SentencePieceProcessor(model_proto=stream.getvalue())


# --- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", FAMILY_SHAPES)
def test_padded_batch_with_cache_equals_one_by_one_without(shape):
    model = adapted_model(shape)
    expected = [greedy_without_cache(model, prompt) for prompt in PROMPTS]
    assert ids(model) == expected
    with adapter_disabled(model):
        assert ids(model) != expected  # the adapter had a say


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_answers_come_in_the_order_of_the_prompts(batch_size):
    model = adapted_model()
    assert ids(model, batch_size=batch_size) == ids(model)


def test_prompts_of_similar_length_share_a_batch():
    model = adapted_model()
    shapes = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(inputs[0].shape)))
    ids(model, [[1] * length for length in (3, 9, 4, 8)], batch_size=2, max_new_tokens=1)
    assert shapes == [(2, 9), (2, 4)]


def test_bare_model_generates_too():
    model = tiny_model()
    assert ids(model) == [greedy_without_cache(model, prompt) for prompt in PROMPTS]


def test_no_prompts_no_answers():
    assert ids(adapted_model(), []) == []


@pytest.mark.parametrize(
    "case", ["k3_l2_random", "k10_l4_random", "k1_l1_random", "k3_l2_zero_gate", "k10_l4_mixed_gate"]
)
@pytest.mark.parametrize("activation, variant", [("tanh", "tanh_gate"), ("identity", "raw_gate")])
def test_golden_greedy_ids(shared, case, activation, variant):
    golden = json.loads((shared / "golden" / f"text_{case}.json").read_text())
    tensors = load_file(shared / "golden" / f"text_{case}.safetensors")
    length, layers = golden["adapter_len"], golden["adapter_layer"]
    model = LlamaForCausalLM.from_pretrained(shared / "golden" / "hf_checkpoint", dtype=torch.float32)
    attach(model, AdapterConfig(length, layers, gate_activation=activation))
    rows = tensors["adapter_query.weight"].split(length)
    for prompt, (layer, adapter) in zip(rows, adapters(model).items(), strict=True):
        adapter.prompt.data = prompt
        adapter.gate.data = tensors[f"layers.{layer}.attention.gate"].flatten()
    generation = golden["generation"]
    prompts, new_tokens, eos_id = (generation[key] for key in ("prompts", "max_gen_len", "eos_id"))
    answers = ids(model, prompts, max_new_tokens=new_tokens, eos_ids=(eos_id,))
    expected = generation[variant]["decoded"]
    assert [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)] == expected


def test_stops_at_eos_row_by_row():
    model = adapted_model()
    free = ids(model, eos_ids=())
    assert all(len(answer) == 8 for answer in free)
    eos_ids = (free[0][2], free[2][5])
    ends = [next((i for i, token in enumerate(answer) if token in eos_ids), 8) for answer in free]
    assert min(ends) < max(ends)  # one row goes on while another one is filled
    assert ids(model, eos_ids=eos_ids) == [answer[:end] for answer, end in zip(free, ends, strict=True)]


def test_bfloat16_base_keeps_its_float32_adapter():
    model = tiny_model().bfloat16()
    attach(model, AdapterConfig(prompt_length=3, prompt_layers=2, gate_init="random"))
    prompt = PROMPTS[0]
    # One token: bfloat16 has ties, and a cached step rounds in another order than the whole row.
    assert ids(model, [prompt], max_new_tokens=1) == [greedy_without_cache(model, prompt, 1)]
    assert all(len(answer) <= 8 for answer in ids(model))
    assert all(adapter.prompt.dtype == adapter.gate.dtype == torch.float32 for adapter in adapters(model).values())


# --- sampling and beams ---------------------------------------------------------------------------------------------


def test_samples_are_drawn_from_the_golden_distribution(shared, monkeypatch):
    golden = load_file(shared / "golden" / "sampling.safetensors")
    settings = json.loads((shared / "golden" / "sampling.json").read_text())["rows"]
    model = tiny_model(vocab_size=96)
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: golden["logits"][:, None])  # [5, 1, 96]
    drawn: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def recorded(probabilities: torch.Tensor, **options) -> torch.Tensor:
        drawn.append(probabilities)
        return multinomial(probabilities, **options)

    monkeypatch.setattr(torch, "multinomial", recorded)
    for setting in settings:
        temperature, top_p = setting["temperature"], setting["top_p"]
        ids(model, [[1, 5]] * 5, max_new_tokens=1, temperature=temperature, top_p=top_p)
        # 1e-6: two float32 softmaxes
        torch.testing.assert_close(drawn.pop(), golden[f"probs_{setting['index']}"], atol=1e-6, rtol=1e-5)
        assert not drawn


def test_seed_makes_sampling_repeatable_and_leaves_the_global_state():
    model = adapted_model()
    before = torch.get_rng_state()
    first = ids(model, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert ids(model, temperature=1.0, seed=3) == first
    assert ids(model, temperature=1.0, seed=4) != first
    assert ids(model, temperature=1.0) != ids(model, temperature=1.0)  # no seed: the global state moves on


def test_top_p_zero_and_a_tiny_temperature_are_greedy():
    model = adapted_model()
    assert ids(model, temperature=1.0, top_p=0.0) == ids(model)
    assert ids(model, temperature=1e-4) == ids(model)


def test_as_many_beams_as_words_find_the_best_answer_of_all():
    model = adapted_model()
    prompt, words = PROMPTS[2], model.config.vocab_size
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)  # [words]
        pairs = torch.tensor([[*prompt, word] for word in range(words)])
        total = first[:, None] + model(pairs).logits[:, -1].log_softmax(-1)  # [words, words]
    best = divmod(total.argmax().item(), words)
    # The second prompt only makes sure that padding and several rows of beams work together.
    assert ids(model, [prompt, PROMPTS[1]], num_beams=words, max_new_tokens=2, eos_ids=())[0] == list(best)


def test_one_beam_is_greedy_and_more_run_with_padding():
    model = adapted_model()
    assert ids(model, num_beams=1) == [greedy_without_cache(model, prompt) for prompt in PROMPTS]
    together = ids(model, num_beams=3)
    assert together == [ids(model, [prompt], num_beams=3)[0] for prompt in PROMPTS]


# --- what stays as it was -------------------------------------------------------------------------------------------


def test_prompts_are_projected_once_per_call_and_dropped_after():
    model = adapted_model()
    lengths = []
    for module in attention_modules(model):
        module.k_proj.register_forward_hook(lambda _, inputs, output: lengths.append(inputs[0].shape[:2]))
    ids(model, batch_size=2)
    assert lengths.count((1, 3)) == 2  # [1, K] for each of the two adapted layers, though there were two batches
    assert all(adapter.projected is None for adapter in adapters(model).values())
    model(torch.tensor([PROMPTS[0]])).logits.sum().backward()
    assert all(adapter.prompt.grad.abs().sum() > 0 for adapter in adapters(model).values())


def test_changed_prompts_are_seen_by_the_next_call():
    model = adapted_model()
    before = ids(model)
    for adapter in adapters(model).values():
        torch.nn.init.normal_(adapter.prompt)
    after = ids(model)
    assert after != before
    assert after == [greedy_without_cache(model, prompt) for prompt in PROMPTS]


def test_modes_come_back_even_after_an_error():
    model = adapted_model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]

    def stop(index: int, token: int) -> None:
        assert not model.training
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ids(model, stream=stop)
    assert [module.training for module in model.modules()] == modes
    assert all(adapter.projected is None for adapter in adapters(model).values())


def test_generation_config_of_the_checkpoint_does_not_leak_in(recwarn):
    model = adapted_model()
    expected = ids(model)
    leaky = GenerationConfig(
        do_sample=True, temperature=0.3, top_k=5, max_length=7, repetition_penalty=1.9, min_new_tokens=3, num_beams=2,
        suppress_tokens=[expected[0][0]], use_cache=False,
    )  # fmt: skip
    model.generation_config = leaky
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        assert ids(model) == expected
        sampled = ids(model, temperature=0.7, top_p=0.9, seed=0)
        beams = ids(model, num_beams=2)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert model.generation_config is leaky
    model.generation_config = GenerationConfig()
    assert sampled == ids(model, temperature=0.7, top_p=0.9, seed=0)
    assert beams == ids(model, num_beams=2)
    assert [record.getMessage() for record in records] == []
    assert [str(warning.message) for warning in recwarn] == []


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bos_id": -1}], ids=["with_bos", "without_bos"])
def test_prompts_are_encoded_raw_with_bos_once(options):
    processor = sentencepiece(**options)
    model = adapted_model(vocab_size=processor.get_piece_size())
    texts = ["the cat", "a dog </s> ran", "what is the name"]
    start = [] if options else [processor.bos_id()]
    encoded = [start + processor.encode(text) for text in texts]
    expected = [processor.decode(answer) for answer in ids(model, encoded, eos_ids=(processor.eos_id(),))]
    assert generate(model, processor, texts, max_new_tokens=8) == expected


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("seed", range(5))
def test_streamed_pieces_join_up_to_the_answer(batch_size, seed):
    processor = sentencepiece()
    # Most pieces of this vocabulary are single bytes: random answers are full of broken characters.
    model = adapted_model(vocab_size=processor.get_piece_size())
    prompts = ["the cat", "a dog ran to the town", "what", "sat on"]
    pieces: list[list[str]] = [[] for _ in prompts]
    order: list[int] = []

    def stream(index: int, text: str) -> None:
        order.append(index)
        pieces[index].append(text)

    answers = generate(
        model, processor, prompts, max_new_tokens=40, temperature=1.0, seed=seed, batch_size=batch_size, stream=stream
    )
    assert ["".join(parts) for parts in pieces] == answers
    assert all(piece for parts in pieces for piece in parts)
    assert len(set(order[: 2 * len(prompts)])) > 1  # rows take turns: nobody waits for a neighbour's end


def test_a_character_of_several_tokens_is_streamed_whole():
    processor = sentencepiece()
    model = adapted_model(vocab_size=processor.get_piece_size())
    text = "a 猫🐈 ran"
    tokens = processor.encode(text)
    assert len(tokens) > len(text)  # the cats are three and four bytes
    script = iter([*tokens, processor.eos_id()])
    model.lm_head.forward = lambda hidden: torch.nn.functional.one_hot(torch.tensor([[next(script)]]), 300).float()
    pieces: list[str] = []
    [answer] = generate(model, processor, ["the"], stream=lambda index, piece: pieces.append(piece), max_new_tokens=20)
    assert answer == text
    assert "".join(pieces) == text
    assert {"猫", "🐈"} <= set(pieces)


def test_streamed_ids_end_before_eos():
    model = adapted_model()
    eos_id = ids(model)[0][3]
    streamed: list[list[int]] = [[] for _ in PROMPTS]
    answers = ids(model, eos_ids=(eos_id,), stream=lambda index, token: streamed[index].append(token), batch_size=3)
    assert streamed == answers
    assert min(map(len, answers)) < max(map(len, answers))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0."),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number of at least 1, got 2.5."),
        ({"num_beams": 0}, "num_beams must be a whole number of at least 1, got 0."),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0."),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1."),
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0, got nan."),
        ({"top_p": 1.5}, "top_p must be between 0 and 1, got 1.5."),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams is 2 and temperature is 0.5, but beams are not sampled."),
        ({"num_beams": 2, "stream": print}, "num_beams is 2, but beams cannot be streamed"),
        ({"max_new_tokens": 120}, "Prompt 0 has 9 tokens, and max_new_tokens is 120, but the model has 128 positions."),
        ({"prompts": [[1, 5], []]}, "Prompt 1 has no tokens."),
        ({"prompts": [[1, 5], [1, 64]]}, "Prompt 1 holds the id 64, but the model's vocabulary has 64 ids."),
    ],
)
def test_bad_settings_and_prompts_are_refused_with_a_sentence(options, message):
    with pytest.raises(ValueError) as error:
        ids(tiny_model(), **options)
    assert message in str(error.value)


def test_the_last_position_can_be_used():
    model = adapted_model(max_position_embeddings=16)
    assert len(ids(model, [PROMPTS[0]], max_new_tokens=7, eos_ids=())[0]) == 7


def test_a_single_string_is_refused():
    with pytest.raises(ValueError, match=r"prompts is one string\. Give a list of prompts"):
        generate(tiny_model(), sentencepiece(), "the cat")
