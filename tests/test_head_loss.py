"""The chunked loss against cross entropy over all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llama_adapter.head_loss import CHUNK_BYTES, head_loss


def setting(n: int, *, vocabulary: int = 50, bias: bool = False, dtype: torch.dtype = torch.float32):
    torch.manual_seed(n)
    head = nn.Linear(16, vocabulary, bias=bias, dtype=dtype).requires_grad_(False)
    hidden = (3 * torch.randn(n, 16)).to(dtype).requires_grad_()
    return hidden, head, torch.randint(vocabulary, (n,))


def reference(hidden, head, targets):
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


@pytest.mark.parametrize("chunk_tokens", [1, 7, 21, 100, None])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradient(bias, chunk_tokens):
    hidden, head, targets = setting(21, bias=bias)
    loss, expected = head_loss(hidden, head, targets, chunk_tokens=chunk_tokens), reference(hidden, head, targets)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (ours,) = torch.autograd.grad(2.5 * loss, hidden)  # the gradient of the loss reaches the result
    (theirs,) = torch.autograd.grad(2.5 * expected, hidden)
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_bfloat16_with_a_float32_softmax():
    hidden, head, targets = setting(21, dtype=torch.bfloat16)
    loss, expected = head_loss(hidden, head, targets, chunk_tokens=5), reference(hidden, head, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (ours,), (theirs,) = (torch.autograd.grad(value, hidden) for value in (loss, expected))
    assert ours.dtype == torch.bfloat16
    # Both round the same numbers to bfloat16 (8 bits) before and after one product.
    assert (ours - theirs).float().norm() < 0.005 * theirs.float().norm()


def test_large_logits_do_not_overflow():
    hidden, head, targets = setting(8)
    loss = head_loss(1000 * hidden, head, targets, chunk_tokens=3)
    torch.testing.assert_close(loss, reference(1000 * hidden, head, targets), rtol=1e-6, atol=0)


def test_no_tokens_give_zero_with_a_graph():
    hidden, head, targets = setting(0)
    loss = head_loss(hidden, head, targets)
    assert loss.item() == 0
    loss.backward()
    assert hidden.grad.shape == (0, 16)


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products, and the largest result of one in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.count += 1
            self.largest = max(self.largest, result.numel())
        return result


def test_no_gradient_work_without_gradients():
    hidden, head, targets = setting(21)
    with Products() as training:
        head_loss(hidden, head, targets, chunk_tokens=7)
    with torch.no_grad(), Products() as evaluation:
        loss = head_loss(hidden, head, targets, chunk_tokens=7)
    assert not loss.requires_grad
    assert (training.count, evaluation.count) == (6, 3)
    with Products() as frozen:
        assert not head_loss(hidden.detach(), head, targets, chunk_tokens=7).requires_grad
    assert frozen.count == 3


def test_logits_are_never_larger_than_a_chunk():
    vocabulary = CHUNK_BYTES // 4 // 10
    hidden, head, targets = setting(25, vocabulary=vocabulary)
    with torch.no_grad(), Products() as products:
        head_loss(hidden, head, targets)
    assert products.count == 3
    assert products.largest == 10 * vocabulary <= CHUNK_BYTES // 4


def test_refuses_a_trainable_head():
    hidden, head, targets = setting(3)
    head.requires_grad_(True)
    message = (
        r"The head is trainable, but head_loss gives it no gradient\. "
        r"Freeze it or use F\.cross_entropy\(head\(hidden\)\)\."
    )
    with pytest.raises(ValueError, match=message):
        head_loss(hidden, head, targets)


def test_refuses_another_kind_of_head():
    hidden, _, targets = setting(3)
    message = r"The head is a Sequential\. head_loss takes an nn\.Linear that is not quantised\."
    with pytest.raises(ValueError, match=message):
        head_loss(hidden, nn.Sequential(), targets)


def test_refuses_no_tokens_in_a_chunk():
    with pytest.raises(ValueError, match=r"chunk_tokens must be at least 1, got 0\."):
        head_loss(*setting(3), chunk_tokens=0)
