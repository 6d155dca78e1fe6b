"""What a model puts out, and the loss of it: the next token, the class of an image, or a span of a text.

`task.head` names an entry of `HEADS`. The head itself is transformers' own: a decoder's is frozen with the rest, an
encoder's is new, trained beside the prompts and stored with them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    PreTrainedModel,
)

from llama_adapter.examples import IGNORED
from llama_adapter.flat_batches import flat_model_inputs
from llama_adapter.frozen_states import frozen_layers_skipped
from llama_adapter.head_loss import head_loss
from llama_adapter.sharding import gathered
from llama_adapter.tokenizer import load_fast_tokenizer, load_tokenizer
from llama_adapter.vision import prompt_context


def response_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the trained tokens of a batch, in nats, and their number.

    Args:
        model: a causal LM from `attach`.
        batch: of a `PaddedCollator`, `input_ids` and `labels`, [B, T] each; or of a `FlatCollator`; with images, for a
            model that takes them; or with `states`, for which the frozen lower layers are left out. The output at t
            predicts the label at t + 1, in a flat row too: the first token of a document is never trained.

    Returns:
        Two scalars; the loss in float32. The head runs at the trained positions only.
    """
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # [B, T], the label each output predicts
    trained = targets != IGNORED
    head = model.get_output_embeddings()
    context = prompt_context(model, batch)
    layers = frozen_layers_skipped(model) if "states" in batch else nullcontext()
    if "cu_seqlens" in batch:
        with layers:
            hidden = model.base_model(**flat_model_inputs(batch, context)).last_hidden_state[trained]  # [trained, C]
        with gathered(head):
            return head_loss(hidden, head, targets[trained]), trained.sum()
    # The plain path, which the flat one is compared with. No attention_mask: padding is on the right, where causal
    # attention never looks, and the kernel stays `is_causal`.
    given = {"inputs_embeds": batch["states"]} if "states" in batch else {"input_ids": batch["input_ids"]}
    images = {} if context is None else {"prompt_context": context}
    with layers:
        output = model.base_model(**given, use_cache=False, **images)
    hidden = output.last_hidden_state[trained]  # [trained, C]
    return F.cross_entropy(head(hidden).float(), targets[trained], reduction="sum"), trained.sum()


def class_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy of images' classes summed over a batch, in nats, and the number of images.

    Args:
        model: with a classification head, from `attach`.
        batch: `pixel_values` [B, 3, height, width] and `labels` [B]; a label of -100 is not trained.
    """
    labels = batch["labels"]
    logits = model(pixel_values=batch["pixel_values"]).logits.float()  # [B, classes]
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"), (labels != IGNORED).sum()


SPAN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def span_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of the cross entropies of start and end, summed over a batch, in nats, and the number of windows.

    Padding is no candidate: its logits are left out, as in decoding (transformers' own loss lets it compete).

    Args:
        model: with a span head, from `attach`.
        batch: `input_ids` and `attention_mask` [B, T], `token_type_ids` where the tokenizer makes them,
            `start_positions` and `end_positions` [B]; a window without an answer has 0, -100 is not trained.
    """
    output = model(**{name: batch[name] for name in SPAN_INPUTS if name in batch})
    padding = batch["attention_mask"] == 0
    starts, ends = (
        F.cross_entropy(logits.float().masked_fill(padding, -torch.inf), target, ignore_index=IGNORED, reduction="sum")
        for logits, target in (
            (output.start_logits, batch["start_positions"]),
            (output.end_logits, batch["end_positions"]),
        )
    )
    return (starts + ends) / 2, (batch["start_positions"] != IGNORED).sum()


@dataclass(frozen=True)
class Head:
    """A kind of output.

    Args:
        model_class: transformers' class for a model with it.
        load_tokenizer: from a path; None for images.
        loss: of a model and a batch: the sum over what is trained, and how many that is.
        counted: what is trained, as the rows of metrics call it.
        targets: the column of a batch that says what is trained.
        perplexity: whether exp(loss) means something.
    """

    model_class: type
    load_tokenizer: Callable | None
    loss: Callable[[PreTrainedModel, dict[str, Tensor]], tuple[Tensor, Tensor]]
    counted: str
    targets: str
    perplexity: bool = False

    def trained(self, batch: dict[str, Tensor]) -> int:
        """How many of what is counted a batch trains."""
        return int((batch[self.targets] != IGNORED).sum())


HEADS = {
    "language": Head(AutoModelForCausalLM, load_tokenizer, response_loss, "response_tokens", "labels", perplexity=True),
    "classification": Head(AutoModelForImageClassification, None, class_loss, "images", "labels"),
    "span": Head(AutoModelForQuestionAnswering, load_fast_tokenizer, span_loss, "windows", "start_positions"),
}


def head_of(name: str) -> Head:
    """The entry of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in HEADS:
        raise ValueError(f"task.head is {name!r}. Choose {', '.join(HEADS)}.")
    return HEADS[name]
