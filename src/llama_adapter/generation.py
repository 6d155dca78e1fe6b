"""Answers to raw text prompts: greedy, sampled or by beams, many together, optionally streamed.

Greedy and sampled answers are decoded in slots (`decoding`); beams are transformers'. Either way the adapter's prompts
are projected once per call (per text, where each has its own) and not once per token, no setting of a checkpoint's
`generation_config.json` leaks in, and the answers come back in the order of the prompts. Templates are the task's
business, not this file's.

Sampling is the authors' rule: divide the logits by the temperature, keep the most likely tokens until their total
probability passes `top_p`, renormalise. They answer with temperature 0.1 and top_p 0.75; our default is greedy.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llama_adapter.attach import adapters, prompts_projected
from llama_adapter.decoding import DecodingStats, SlotDecoder, can_decode
from llama_adapter.layer_modes import uncompiled
from llama_adapter.streaming import IdStreamer, TextPieces
from llama_adapter.tokenizer import Tokenizer, as_tokenizer

LOGGED_FROM = 16  # answers of a call; the few samples of an epoch are no measurement
STATIC_CACHE_FROM = 8192  # tokens; compiling takes about a minute (a guess until it is measured on a GPU)

log = logging.getLogger(__name__)


def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer | SentencePieceProcessor | PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_beams: int = 1,
    batch_size: int | None = None,
    seed: int | None = None,
    context: Tensor | None = None,
    static_cache: bool | None = None,
    stream: Callable[[int, str], None] | None = None,
    stats: DecodingStats | None = None,
) -> list[str]:
    """The model's answer to each prompt, without the prompt.

    Args:
        model: a causal language model of a known family, with an adapter or without.
        tokenizer: the one that belongs to the model, of any kind that `as_tokenizer` takes.
        prompts: raw texts; nothing is added but BOS, once, where the tokenizer has one.
        max_new_tokens, temperature, top_p, num_beams, batch_size, seed, context, static_cache, stats: as in
            `generate_ids`.
        stream: called with the index of a prompt and the next piece of its answer, as soon as the piece is known. The
            pieces of one index join up to exactly the answer returned; half a character is held back.

    Returns:
        The answers, in the order of the prompts.

    Raises:
        ValueError: as `generate_ids`, or `prompts` is a single string.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string. Give a list of prompts: [prompt].")
    tokenizer = as_tokenizer(tokenizer)

    def decode(ids: Sequence[int]) -> str:
        # Some models have more embeddings than their tokenizer has ids (Qwen2); the surplus ones stand for no text.
        return tokenizer.decode(id for id in ids if id < tokenizer.vocabulary_size)

    pieces = None if stream is None else TextPieces(decode, stream, len(prompts))
    answers = generate_ids(
        model,
        [tokenizer.encode(prompt, bos=True) for prompt in prompts],
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        batch_size=batch_size,
        seed=seed,
        context=context,
        static_cache=static_cache,
        stream=None if pieces is None else pieces.add,
        stats=stats,
    )
    texts = [decode(answer) for answer in answers]
    if pieces is not None:
        pieces.finish(texts)
    return texts


def generate_ids(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_beams: int = 1,
    batch_size: int | None = None,
    seed: int | None = None,
    context: Tensor | None = None,
    static_cache: bool | None = None,
    stream: Callable[[int, int], None] | None = None,
    stats: DecodingStats | None = None,
) -> list[list[int]]:
    """The new token ids for each prompt, without the prompt, EOS and padding.

    Args:
        model: a causal language model of a known family, with an adapter or without. Its mode (training or evaluation)
            and its generation_config are the same before and after.
        prompts: token ids, BOS included.
        eos_ids: an answer ends before the first of these. May be empty: every answer then has `max_new_tokens`.
        pad_id: any id of the vocabulary; it is masked wherever it fills.
        max_new_tokens: where an answer is cut when no EOS comes.
        temperature: 0 takes the most likely token (`top_p` then does nothing), above 0 samples.
        top_p: from 0 (only the most likely token) to 1 (all of them).
        num_beams: above 1 searches with that many beams; not together with a temperature.
        batch_size: answers decoded together at most; None decodes all at once. An answer that ends makes room for the
            next prompt (for beams: when all of the batch have ended).
        seed: makes sampling repeatable, and leaves the global random state as it was. The same seed draws other samples
            with another `batch_size`.
        context: [N, C], for each prompt what is added to the adapter's prompts: its image, from
            `vision.prompt_context`.
        static_cache: keys and values in memory of a fixed size and a compiled step; None uses it on CUDA where at least
            `STATIC_CACHE_FROM` tokens may be decoded, fewer do not pay for compiling. Not for beams.
        stream: called with the index of a prompt and its next id, each step.
        stats: is added to, but for beams and models that transformers decodes. Without one, a line in the log says how
            fast many answers were decoded.

    Returns:
        The new ids, in the order of the prompts.

    Raises:
        ValueError: a setting out of range or of two that exclude each other; a prompt that is empty, too long for the
            model, or not of its vocabulary.
    """
    _check_settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        batch_size=batch_size,
        streamed=stream is not None,
    )
    _check_prompts(prompts, model.config, max_new_tokens)
    if context is not None:
        _check_context(context, model, len(prompts))
    if not prompts:
        return []
    batch_size = batch_size or len(prompts)
    # not inference_mode: a rotary embedding that grows with the input would keep its tensors, unusable in training
    with _ready_to_generate(model), _seeded(seed, model.device), torch.no_grad():
        if num_beams > 1 or not can_decode(model):
            return _generate_with_transformers(
                model,
                prompts,
                GenerationConfig(
                    max_new_tokens=max_new_tokens,
                    num_beams=num_beams,
                    eos_token_id=list(eos_ids) or None,
                    pad_token_id=pad_id,
                    use_cache=True,
                    **_sampling(temperature, top_p),
                ),
                batch_size=batch_size,
                eos_ids=eos_ids,
                context=context,
                stream=stream,
            )
        if static_cache is None:
            static_cache = model.device.type == "cuda" and len(prompts) * max_new_tokens >= STATIC_CACHE_FROM
        decoder = SlotDecoder(
            model,
            prompts,
            slots=batch_size,
            max_new_tokens=[max_new_tokens] * len(prompts),
            eos_ids=eos_ids,
            pad_id=pad_id,
            choose=_sampler(temperature, top_p) if temperature > 0 else _most_likely,
            context=context,
            stream=stream,
            static=static_cache,
        )
        answers = decoder.run()
    if stats is not None:
        stats.add(decoder.stats)
    elif len(prompts) >= LOGGED_FROM:
        log.info("%s", decoder.stats)
    return answers


def _check_context(context: Tensor, model: PreTrainedModel, prompts: int) -> None:
    if not adapters(model):
        raise ValueError("A context is added to an adapter's prompts, but the model has no adapter. Leave it out.")
    if len(context) != prompts:
        raise ValueError(f"context has {len(context)} rows for {prompts} prompts. Give one for each, zeros for none.")
    if context.shape != (prompts, model.config.hidden_size):
        raise ValueError(
            f"context has the shape {list(context.shape)}; it must be [{prompts}, {model.config.hidden_size}]."
        )


def _most_likely(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def _sampler(temperature: float, top_p: float) -> Callable[[Tensor], Tensor]:
    warp = LogitsProcessorList([TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(float(top_p))])

    def sample(logits: Tensor) -> Tensor:
        return torch.multinomial(warp(None, logits.float()).softmax(dim=-1), num_samples=1)[:, 0]

    return sample


def _sampling(temperature: float, top_p: float) -> dict[str, object]:
    if temperature > 0:
        return {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
    return {"do_sample": False}


def _generate_with_transformers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    batch_size: int,
    eos_ids: Sequence[int],
    context: Tensor | None,
    stream: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """Beams, and models whose layers differ in what they see; prompts of similar length share a batch."""
    longest_first = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), batch_size):
        indices = longest_first[start : start + batch_size]
        input_ids, attention_mask = _left_padded([prompts[index] for index in indices], config.pad_token_id)
        # Every beam of a row has the row's prompts.
        own = None if context is None else context[indices].repeat_interleave(config.num_beams, dim=0)
        with prompts_projected(model, own):
            output = model.generate(
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
                streamer=None if stream is None else IdStreamer(indices, eos_ids, stream),
            )
        for index, ids in zip(indices, output[:, input_ids.shape[1] :].tolist(), strict=True):
            answers[index] = _until_eos(ids, eos_ids)
    return answers


def _check_settings(
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    num_beams: int,
    batch_size: int | None,
    streamed: bool,
) -> None:
    for key, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{key} must be a whole number of at least 1, got {value!r}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be a finite number of at least 0, got {temperature}. 0 takes the most likely token."
        )
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be between 0 and 1, got {top_p}. 1 keeps every token.")
    if num_beams > 1 and temperature > 0:
        raise ValueError(
            f"num_beams is {num_beams} and temperature is {temperature}, but beams are not sampled. "
            "Set temperature=0 or num_beams=1."
        )
    if num_beams > 1 and streamed:
        raise ValueError(
            f"num_beams is {num_beams}, but beams cannot be streamed: their answer is known only at the end. "
            "Leave stream out or set num_beams=1."
        )


def _check_prompts(prompts: Sequence[Sequence[int]], config: PretrainedConfig, max_new_tokens: int) -> None:
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"Prompt {index} has no tokens. Give it some text, or a BOS token.")
        if len(prompt) + max_new_tokens > config.max_position_embeddings:
            raise ValueError(
                f"Prompt {index} has {len(prompt)} tokens, and max_new_tokens is {max_new_tokens}, but the model has "
                f"{config.max_position_embeddings} positions. Shorten the prompt or lower max_new_tokens."
            )
        if max(prompt) >= config.vocab_size:
            raise ValueError(
                f"Prompt {index} holds the id {max(prompt)}, but the model's vocabulary has {config.vocab_size} ids. "
                "Use the tokenizer that belongs to the model."
            )


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, [B, T] each. The ends line up, so that every row's next token is the next column."""
    length = max(map(len, prompts))
    input_ids = torch.tensor([[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    attention_mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return input_ids, attention_mask


def _until_eos(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    ends = (position for position, token in enumerate(ids) if token in eos_ids)
    return ids[: next(ends, len(ids))]


@contextmanager
def _ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, layers not compiled, prompts projected, a blank generation_config: while the context lasts."""
    training = [module for module in model.modules() if module.training]
    generation_config = model.generation_config
    model.eval()
    # transformers fills what a call leaves open from the checkpoint's own: penalties, min_p, a max_length.
    model.generation_config = GenerationConfig()
    try:
        with prompts_projected(model), uncompiled(model):
            yield
    finally:
        model.generation_config = generation_config
        for module in training:
            module.training = True


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` on the CPU and on this device alone; the state from before comes back afterwards."""
    if seed is None:
        yield
        return
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
