"""Decoding without waste: a fixed number of slots, each refilled with the next prompt as soon as its answer ends.

    column     0 ............ end
    slot 0     ....[prompt 4][answer]        all texts end at the same column, so one step writes one column;
    slot 1     ..........[prompt 9][ans]     where they start differs, and a mask hides what lies before
    slot 2     [prompt 1][long answer..]

A prompt's keys and values are computed in a forward pass of their own and written so that they end at the current
column. Keys are stored after the rotary embedding with the text's own positions, so a text may lie anywhere.

On the CPU a step sees the live slots and the columns in use, as views. With a static cache, for CUDA, it sees all slots
and columns, so that every step has the same shapes and can be compiled; that path is tested on the CPU and UNTRIED on a
GPU.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from llama_adapter.attach import adapters, projected_prompts
from llama_adapter.backbones import attention_windows

SPARE_COLUMNS = 256  # between two moves of all texts to the front


@dataclass
class DecodingStats:
    """What a generation took. Give the same one to several calls to add them up.

    Attributes:
        answers, new_tokens: EOS is counted, as it is computed like any other.
        seconds: wall time, prompts included.
        steps: forward passes for one token of every slot.
        rows: slots computed in these steps, live or not.
        live_rows: those of them that held an unfinished answer.
    """

    answers: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    rows: int = 0
    live_rows: int = 0

    def add(self, other: "DecodingStats") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        speed = self.new_tokens / self.seconds if self.seconds else 0.0
        live = f"; {self.live_rows / self.rows:.0%} of the computed rows were live" if self.rows else ""
        return (
            f"{self.answers:,} answers, {self.new_tokens:,} new tokens in {self.seconds:.1f} s: "
            f"{speed:,.0f} tokens/s{live}."
        )


def can_decode(model: PreTrainedModel) -> bool:
    """Whether one boolean mask serves all layers: their attention takes it, and all have the same window."""
    return len(attention_windows(model)) == 1 and model.config._attn_implementation in ("zero_init", "sdpa")


class SlotCache(Cache):
    """Keys and values of all slots, [slots, G, columns, D] per layer.

    Args:
        layers: of the model.
        slots: rows.
        columns: that are allocated.
        static: whether steps see everything that is allocated.
        device: of the model.

    Attributes:
        end: the column that the next token is written to.
        front: the first column that a step reads, when not static.
        filling: the slots whose prompts are being computed; None in a step.
    """

    def __init__(self, layers: int, *, slots: int, columns: int, static: bool, device: torch.device) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])
        self.slots, self.columns, self.static = slots, columns, static
        self.end = self.front = 0
        self.end_tensor = torch.zeros(1, dtype=torch.long, device=device)  # a compiled step reads this one
        self.filling: Tensor | None = None

    def set_end(self, end: int) -> None:
        self.end = end
        self.end_tensor.fill_(end)

    def move_slot(self, source: int, target: int) -> None:
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[target, :, : self.end] = states[source, :, : self.end]

    def move_to_front(self, shift: int) -> None:
        """Drops the first `shift` columns."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[:, :, : self.end - shift] = states[:, :, shift : self.end].clone()
        self.set_end(self.end - shift)


class _SlotLayer(CacheLayerMixin):
    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shapes = ((self.cache.slots, s.shape[1], self.cache.columns, s.shape[3]) for s in (key_states, value_states))
        # zeros: what was never written is masked, but a weight of 0 times a NaN would be a NaN
        self.keys, self.values = (key_states.new_zeros(shape) for shape in shapes)
        if self.cache.static:  # or a compiled step that writes to them would record no CUDA graph
            for states in (self.keys, self.values):
                torch._dynamo.mark_static_address(states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        cache = self.cache
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stored = ((self.keys, key_states), (self.values, value_states))
        if cache.filling is not None:
            for states, new in stored:
                states[cache.filling] = 0  # a NaN of the slot's last text would come through the mask: 0 x NaN
                states[cache.filling, :, cache.end - new.shape[2] : cache.end] = new
            return key_states, value_states
        if cache.static:
            for states, new in stored:
                states.index_copy_(2, cache.end_tensor, new)
            return self.keys, self.values
        live = len(key_states)
        for states, new in stored:
            states[:live, :, cache.end : cache.end + 1] = new
        return tuple(states[:live, :, cache.front : cache.end + 1] for states, _ in stored)

    def get_seq_length(self) -> int:
        return self.cache.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.end + query_length, 0  # never asked for: the model gets a mask of four dimensions

    def get_max_length(self) -> int:
        return self.cache.columns


class SlotDecoder:
    """Decodes prompts in slots.

    Args:
        model: ready to generate, see `generation`.
        prompts: token ids, not empty.
        slots: answers decoded together at most.
        max_new_tokens: ids of each prompt's answer at most.
        eos_ids: an answer ends before the first of these.
        pad_id: fills shorter prompts; any id.
        choose: the next ids [B] from the logits [B, V].
        context: [N, C], what is added to the adapter's prompts for each of the N texts; None for nothing.
        stream: called with a prompt's index and its next id.
        static: a static cache and, unless `compiled` is False, a compiled step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        slots: int,
        max_new_tokens: Sequence[int],
        eos_ids: Sequence[int],
        pad_id: int,
        choose: Callable[[Tensor], Tensor],
        context: Tensor | None = None,
        stream: Callable[[int, int], None] | None = None,
        static: bool = False,
        compiled: bool = True,
    ) -> None:
        self.model, self.prompts, self.device = model, prompts, model.device
        self.slots = min(slots, len(prompts))
        self.max_new_tokens, self.eos_ids, self.pad_id = max_new_tokens, frozenset(eos_ids), pad_id
        self.choose, self.stream = choose, stream
        (self.window,) = attention_windows(model)
        # The longest first: no later prompt needs more columns, and prompts of similar length are computed together.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True))
        self.longest = len(prompts[self.waiting[0]]) + max(max_new_tokens)
        # Texts that begin later end later: only then are there columns beyond the longest text's.
        columns = self.longest + (SPARE_COLUMNS if len(prompts) > self.slots else 0)
        layers = model.config.num_hidden_layers
        self.cache = SlotCache(layers, slots=self.slots, columns=columns, static=static, device=self.device)
        self.forward = model.forward
        if static and compiled:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"  # the former records CUDA graphs
            # Not fullgraph: past the compiler's limit of graphs (other models, other sizes) a step is then not
            # compiled, where it would end in an error.
            self.forward = torch.compile(model.forward, mode=mode)
        self.owners: list[int | None] = [None] * self.slots  # the prompt that a slot answers; None where it is free
        self.starts = torch.zeros(self.slots, dtype=torch.long, device=self.device)  # column of each text's first token
        self.ids = torch.zeros(self.slots, 1, dtype=torch.long, device=self.device)  # the last token of each text
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.context = context
        self.slot_prompts: list[tuple[Tensor, Tensor]] = []  # by adapted layer, [slots, H, K, D] each
        self.stats = DecodingStats(answers=len(prompts))

    def run(self) -> list[list[int]]:
        """The new ids for each prompt, in their order."""
        started = time.perf_counter()
        while self.waiting or self._live():
            free = [slot for slot, owner in enumerate(self.owners) if owner is None]
            # A pass for a prompt costs as much as a step for all slots: not for a single free slot of many.
            if self.waiting and (len(free) >= max(1, self.slots // 8) or len(free) == self.slots):
                self._fill(free[: len(self.waiting)])
            else:
                self._step()
        self.stats.seconds = time.perf_counter() - started
        return self.answers

    def _live(self) -> int:
        return sum(owner is not None for owner in self.owners)

    def _fill(self, free: list[int]) -> None:
        """Computes the next prompts, [B, T] padded on the left, and chooses their first new ids."""
        taken = [self.waiting.popleft() for _ in free]
        rows = [list(self.prompts[index]) for index in taken]
        longest = max(map(len, rows))
        if not self._live():
            self.cache.set_end(longest)
        padding = torch.tensor([longest - len(row) for row in rows], device=self.device)
        padded = [[self.pad_id] * (longest - len(row)) + row for row in rows]
        columns = torch.arange(longest, device=self.device)
        seen = (columns >= padding[:, None])[:, None] & (columns <= columns[:, None])  # [B, T, T]
        if self.window is not None:
            seen &= columns > columns[:, None] - self.window
        seen |= torch.eye(longest, dtype=torch.bool, device=self.device)  # padding sees itself: no softmax over nothing
        if self.context is not None:
            self._project_prompts(free, taken)
        self.cache.filling = torch.tensor(free, device=self.device)
        logits = self.model.forward(
            input_ids=torch.tensor(padded, device=self.device),
            attention_mask=seen[:, None],
            position_ids=(columns - padding[:, None]).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.starts[self.cache.filling] = self.cache.end - longest + padding
        self.cache.filling = None
        for slot, index in zip(free, taken, strict=True):
            self.owners[slot] = index
        self._accept(free, self.choose(logits))

    def _step(self) -> None:
        """One more id for every live slot."""
        cache = self.cache
        if cache.end == cache.columns:
            self._make_room()
        rows = self.slots if cache.static else self._live()
        starts = self.starts[:rows, None]
        cache.front = 0 if cache.static else int(starts.min())
        columns = torch.arange(cache.front, cache.columns if cache.static else cache.end + 1, device=self.device)
        seen = (columns >= starts) & (columns <= cache.end)  # [B, S]
        if self.window is not None:
            seen &= columns > cache.end - self.window
        self._use_prompts([(key[:rows], value[:rows]) for key, value in self.slot_prompts])
        logits = self.forward(
            input_ids=self.ids[:rows],
            attention_mask=seen[:, None, None],
            position_ids=(cache.end - starts).clamp(max=self.longest),  # free slots of a static cache stay in range
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        cache.set_end(cache.end + 1)
        live = [slot for slot in range(rows) if self.owners[slot] is not None]
        self.stats.steps += 1
        self.stats.rows += rows
        self.stats.live_rows += len(live)
        self._accept(live, self.choose(logits if len(live) == rows else logits[live]))

    def _project_prompts(self, free: list[int], taken: list[int]) -> None:
        """The adapter's prompts of the texts that come into slots, used at once and kept for the steps."""
        states = projected_prompts(self.model, self.context[taken])
        if not self.slot_prompts:
            self.slot_prompts = [tuple(s.new_zeros(self.slots, *s.shape[1:]) for s in pair) for pair in states]
        for kept, new in zip(self.slot_prompts, states, strict=True):
            for target, source in zip(kept, new, strict=True):
                target[free] = source
        self._use_prompts(states)

    def _use_prompts(self, states: list[tuple[Tensor, Tensor]]) -> None:
        if self.context is not None:
            for adapter, pair in zip(adapters(self.model).values(), states, strict=True):
                adapter.projected = pair

    def _accept(self, slots: list[int], ids: Tensor) -> None:
        """Adds each slot's new id to its answer and frees the slots whose answer has ended."""
        self.ids[slots, 0] = ids
        self.stats.new_tokens += len(slots)
        ended = []
        for slot, token in zip(slots, ids.tolist(), strict=True):
            answer = self.answers[self.owners[slot]]
            if token not in self.eos_ids:
                answer.append(token)
                if self.stream is not None:
                    self.stream(self.owners[slot], token)
            if token in self.eos_ids or len(answer) == self.max_new_tokens[self.owners[slot]]:
                ended.append(slot)
        for slot in reversed(ended):
            self._free(slot)

    def _free(self, slot: int) -> None:
        self.owners[slot] = None
        last = self._live()  # live slots stay in front, so that a step is a view of them
        if self.cache.static or slot == last:
            return
        self.cache.move_slot(last, slot)
        self.starts[slot], self.ids[slot] = self.starts[last], self.ids[last]
        for pair in self.slot_prompts:
            for states in pair:
                states[slot] = states[last]
        self.owners[slot], self.owners[last] = self.owners[last], None

    def _make_room(self) -> None:
        """Moves all texts to the front: the one that began first begins at column 0.

        No prompt that waits is longer than it: the longest prompts came first.
        """
        live = [slot for slot, owner in enumerate(self.owners) if owner is not None]
        shift = int(self.starts[live].min())
        self.cache.move_to_front(shift)
        self.starts -= shift
