"""The loss of a frozen head, without ever holding the logits of all tokens.

With LLaMA's vocabulary of 32000 a token's logits are 8 times its hidden state for C = 4096, and autograd keeps several
copies. A frozen head needs no gradient of its own, so the gradient to its input is known as soon as the loss is: it is
computed in the forward pass, chunk by chunk, and [n, C] numbers are kept instead of [n, vocabulary].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule

CHUNK_BYTES = 32 * 2**20  # of float32 logits


def head_loss(hidden: Tensor, head: nn.Linear, targets: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Cross entropy summed over tokens: `F.cross_entropy(head(hidden).float(), targets, reduction="sum")`.

    Args:
        hidden: [n, C], the states of the trained tokens only; n may be 0.
        head: frozen, C to the vocabulary.
        targets: [n], ids; no -100.
        chunk_tokens: tokens whose logits are held at once; by default as many as fill 32 MB in float32.

    Returns:
        A scalar in float32, in nats. Only `hidden` gets a gradient.

    Raises:
        ValueError: the head is trainable or not a plain linear layer, or `chunk_tokens` is below 1.
    """
    if type(head) is not nn.Linear and not isinstance(head, FSDPModule):  # which is a Linear of a type of its own
        raise ValueError(f"The head is a {type(head).__name__}. head_loss takes an nn.Linear that is not quantised.")
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError(
            "The head is trainable, but head_loss gives it no gradient. Freeze it or use F.cross_entropy(head(hidden))."
        )
    if chunk_tokens is None:
        chunk_tokens = max(1, CHUNK_BYTES // (4 * head.out_features))
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")
    differentiate = hidden.requires_grad and torch.is_grad_enabled()
    return _HeadLoss.apply(hidden, head.weight, head.bias, targets, chunk_tokens, differentiate)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_tokens: int,
        differentiate: bool,
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if differentiate else None
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = F.linear(hidden[part], weight, bias).float()  # [chunk, vocabulary]
            target = targets[part]  # [chunk]
            of_target = logits.gather(-1, target[:, None])
            largest = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()  # in the memory of the logits, which are read for the last time
            total = exponentials.sum(dim=-1, keepdim=True)
            loss += (total.log() + largest - of_target).sum()
            if differentiate:
                # (softmax - one-hot) @ weight, divided after the product: a chunk x C division, not chunk x vocabulary
                product = exponentials.to(weight.dtype) @ weight
                gradient[part] = product.float().div_(total).sub_(weight[target]).to(weight.dtype)
            del logits, exponentials  # or the next chunk's would be made beside them
        if differentiate:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss: Tensor):
        (gradient,) = ctx.saved_tensors
        return (gradient * of_loss).to(gradient.dtype), None, None, None, None, None
