"""Flat batches: the examples of a batch end to end in one row, with every shared beginning held once.

    [prefix A][doc 4][doc 3][doc 7][prefix B][doc 1]...      input_ids [1, T]; a prefix is a segment of its own
    0..p-1    p..    p..    p..    0..q-1    q..             position_ids: a document continues its prefix

Causal attention gives equal beginnings equal hidden states, so a prefix computed once is exact; its gradients are sums
over its documents. All that goes into those states must be equal: documents whose adapter prompts differ (by an image,
or in a bank of adapters) must not share a prefix.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from llama_adapter.examples import IGNORED, Example, TokenCounts, has_image, image_columns
from llama_adapter.flat_attention import NO_MASK

MIN_PREFIX = 8  # tokens; below that the copies of its keys and one more segment cost what it saves


class Group(NamedTuple):
    """Examples, by index, that share their first `prefix_length` tokens; 0 of them share nothing."""

    prefix_length: int
    members: list[int]


def shared_prefixes(examples: Sequence[Example], *, min_length: int = MIN_PREFIX) -> list[Group]:
    """Groups the examples so that prefixes save the most tokens, from their token ids alone.

    A prefix ends before the last prompt token at the latest: that one predicts the first trained token, which differs
    from document to document, so each keeps its own. An example cut off before its answer keeps its last token.
    Examples with images share nothing: their prompts differ, and so do all their hidden states.

    Args:
        examples: dicts with `input_ids` and `labels`, [T] each.
        min_length: shorter prefixes are not shared.

    Returns:
        Groups that hold every example once. Their order depends on the prompts, never on the trained tokens.
    """
    prompts = [example["input_ids"][: _longest_prefix(example)].tolist() for example in examples]
    alone = [Group(0, [index]) for index, example in enumerate(examples) if has_image(example)]
    plain = (index for index, example in enumerate(examples) if not has_image(example))
    order = sorted(plain, key=lambda index: prompts[index])
    common = [_common_length(prompts[left], prompts[right]) for left, right in pairwise(order)]
    # Equal beginnings are neighbours now, so a group is a run. saved[end] is the most that examples order[:end] can
    # save, and cut[end] where their last run starts.
    saved, cut = [0], [0]
    for end in range(1, len(order) + 1):
        best, start, length = saved[end - 1], end - 1, None
        for first in range(end - 2, -1, -1):
            length = common[first] if length is None else min(length, common[first])
            if length < min_length:
                break
            if saved[first] + length * (end - first - 1) > best:
                best, start = saved[first] + length * (end - first - 1), first
        saved.append(best)
        cut.append(start)
    groups: list[Group] = []
    end = len(order)
    while end:
        start = cut[end]
        groups.append(Group(min(common[start : end - 1], default=0), order[start:end]))
        end = start
    return groups[::-1] + alone


def _longest_prefix(example: Example) -> int:
    """Tokens of an example that may be shared."""
    trained = (example["labels"] != IGNORED).nonzero()
    response_start = int(trained[0]) if len(trained) else len(example["labels"])
    return max(response_start - 1, 0)


def _common_length(left: list[int], right: list[int]) -> int:
    return next(
        (length for length, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


class FlatCollator:
    """One flat row per batch.

    Args:
        pad_id: fills the row of a batch without examples, and the padding to a multiple.
        share_prefixes: whether equal beginnings are held once.
        multiple: the row's length is padded to a multiple of it, with a document that trains nothing; for kernels
            that are compiled for lengths.
    """

    def __init__(self, pad_id: int, *, share_prefixes: bool = True, multiple: int = 1) -> None:
        if multiple < 1:
            raise ValueError(f"The multiple of a flat row's length must be at least 1, got {multiple}.")
        self.pad_id = pad_id
        self.share_prefixes = share_prefixes
        self.multiple = multiple

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | TokenCounts]:
        """The row of the examples; a device without examples computes a row of padding, which trains nothing.

        Returns:
            `input_ids`, `labels`, `position_ids`: [1, T]. `labels` are -100 on prefixes and wherever nothing is
                trained, the first token of a segment included: the model's output at t predicts the label at t + 1.
            `cu_seqlens`, `prefix`: [S + 1] int32 each, as `flat_attention` takes them; `prefix` ends with a -1.
            `counts`: a `TokenCounts`.
            `states`: [1, T, C], of examples that have them.
            And of examples with images what `image_columns` gives, and `context_of`: [S + 1] int32, the example whose
                image a segment's prompts have, or -1; it ends with a -1.

        Raises:
            ValueError: an example has no tokens or trains its first one, which nothing predicts.
        """
        for index, example in enumerate(examples):
            if not len(example["input_ids"]):
                raise ValueError(f"Example {index} of the batch has no tokens. Leave it out.")
            if example["labels"][0] != IGNORED:
                raise ValueError(
                    f"Example {index} of the batch trains its first token, which nothing predicts. "
                    f"Begin it with a prompt or set its first label to {IGNORED}."
                )
        row = _Row()
        if self.share_prefixes:
            groups = shared_prefixes(examples)
        else:
            groups = [Group(0, [index]) for index in range(len(examples))]
        for length, members in groups:
            front = -1
            if length:
                first = examples[members[0]]
                # What follows a prefix does not change its states: those of any member will do.
                front = row.add(first["input_ids"][:length], states=_slice(first, slice(length)))
            for index in members:
                example = examples[index]
                row.add(
                    example["input_ids"][length:],
                    example["labels"][length:],
                    position=length,
                    prefix=front,
                    context=index if has_image(example) else -1,
                    states=_slice(example, slice(length, None)),
                )
        # A query at position p sees p + 1 keys.
        attended = sum(int(positions.sum()) for positions in row.positions) + row.length
        padding = -row.length % self.multiple if examples else max(2, self.multiple)
        if padding:
            ids = torch.full((padding,), self.pad_id)
            row.add(ids, states=row.states[0].new_zeros(padding, row.states[0].shape[-1]) if row.states else None)
        useful = sum(len(example["input_ids"]) for example in examples)
        batch = row.batch() | {"counts": TokenCounts(useful, row.length, padding, attended)}
        images = image_columns(examples)
        return batch | images | ({"context_of": row.context_of()} if images else {})


def _slice(example: Example, tokens: slice) -> Tensor | None:
    return example["states"][tokens] if "states" in example else None


class _Row:
    """A row that grows by segments."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.starts = [0]
        self.prefixes: list[int] = []
        self.contexts: list[int] = []
        self.states: list[Tensor] = []

    @property
    def length(self) -> int:
        return self.starts[-1]

    def add(
        self,
        ids: Tensor,
        labels: Tensor | None = None,
        *,
        position: int = 0,
        prefix: int = -1,
        context: int = -1,
        states: Tensor | None = None,
    ) -> int:
        """Appends a segment and returns its number; without labels nothing in it is trained."""
        self.ids.append(ids)
        self.labels.append(torch.full_like(ids, IGNORED) if labels is None else labels)
        self.positions.append(torch.arange(position, position + len(ids)))
        self.starts.append(self.length + len(ids))
        self.prefixes.append(prefix)
        self.contexts.append(context)
        self.states += [] if states is None else [states]
        return len(self.prefixes) - 1

    def batch(self) -> dict[str, Tensor]:
        states = {"states": torch.cat(self.states)[None]} if self.states else {}
        return states | {
            "input_ids": torch.cat(self.ids)[None],
            "labels": torch.cat(self.labels)[None],
            "position_ids": torch.cat(self.positions)[None],
            "cu_seqlens": torch.tensor(self.starts, dtype=torch.int32),
            "prefix": torch.tensor([*self.prefixes, -1], dtype=torch.int32),
        }

    def context_of(self) -> Tensor:
        return torch.tensor([*self.contexts, -1], dtype=torch.int32)


def flat_model_inputs(batch: dict[str, Tensor], prompt_context: Tensor | None = None) -> dict[str, object]:
    """The keywords of the call of a model from `attach`, for a batch of a `FlatCollator`.

    Args:
        batch: of the collator.
        prompt_context: [N, C] of its N examples, where they have images.
    """
    given = {"inputs_embeds": batch["states"]} if "states" in batch else {"input_ids": batch["input_ids"]}
    if prompt_context is not None:
        given |= {"prompt_context": prompt_context, "context_of": batch["context_of"].cpu()}
    return given | {
        "position_ids": batch["position_ids"],
        "attention_mask": NO_MASK.to(batch["input_ids"].device),
        # Read on the host by every layer: on the CPU, so that a GPU is waited for once and not in each of them.
        "cu_seqlens": batch["cu_seqlens"].cpu(),
        "prefix": batch["prefix"].cpu(),
        "use_cache": False,
    }
