"""The operator against attention written out with one dense mask, and the glue of the kernel that needs a GPU."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import varlen

from llama_adapter import flat_attention as module
from llama_adapter.attach import zero_init_attention
from llama_adapter.flat_attention import NO_MASK, flat_attention, varlen_layout
from llama_adapter.flat_segment import MASK_STEP, PLAIN, read_segments

# name: starts of the segments and the end, the segment in front of each
ROWS = {
    "one_document": ([0, 7], [-1]),
    "documents": ([0, 5, 6, 14], [-1, -1, -1]),
    "prefix": ([0, 6, 9, 10, 17], [-1, 0, 0, 0]),
    "two_prefixes_and_a_document": ([0, 4, 9, 13, 15, 22, 23, 31], [-1, 0, -1, -1, 3, 3, 0]),
}
HEADS, SIZE = 4, 8


def row(name: str, *, groups: int, dtype: torch.dtype = torch.float32, device: str = "cpu", sentinel: int = 1):
    starts, prefix = ROWS[name]
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, heads, starts[-1], SIZE) for heads in (HEADS, groups, groups)]
    # twice the usual size: weights far from uniform, in which a wrong mask would show
    tensors = [(2 * torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_() for shape in shapes]
    cu_seqlens = torch.tensor(starts, dtype=torch.int32)
    return tensors, {"cu_seqlens": cu_seqlens, "prefix": torch.tensor(prefix + [-1] * sentinel, dtype=torch.int32)}


def dense(query, key, value, name: str, *, scaling: float, window: int | None = None) -> torch.Tensor:
    """Softmax over one T x T mask: a token sees earlier positions of its own segment and all of its prefix."""
    starts, prefix = ROWS[name]
    segments = [number for number, (start, end) in enumerate(pairwise(starts)) for _ in range(start, end)]
    lengths = [end - start for start, end in pairwise(starts)]
    position = [
        token - starts[segment] + (lengths[prefix[segment]] if prefix[segment] >= 0 else 0)
        for token, segment in enumerate(segments)
    ]
    mask = torch.zeros(len(segments), len(segments), dtype=torch.bool)
    for i, own in enumerate(segments):
        for j, other in enumerate(segments):
            near = window is None or position[i] - position[j] < window
            mask[i, j] = other in (own, prefix[own]) and position[j] <= position[i] and near
    key, value = (states.repeat_interleave(HEADS // states.shape[1], dim=1) for states in (key, value))
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~mask.to(query.device), -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def gradients(output: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(output.device, output.dtype)
    return torch.autograd.grad(output, tensors, weights)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("name", ROWS)
def test_output_and_gradients_of_every_row(name, groups, window, kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(module, "CPU", PLAIN)
    tensors, segments = row(name, groups=groups)
    output = flat_attention(*tensors, **segments, scaling=0.3, window=window)
    expected = dense(*tensors, name, scaling=0.3, window=window)
    assert output.shape == expected.shape == (1, ROWS[name][0][-1], HEADS, SIZE)
    # float32 rounding of sums over at most 31 keys
    assert relative(output, expected) < 1e-6
    for ours, theirs in zip(gradients(output, tensors), gradients(expected, tensors), strict=True):
        assert relative(ours, theirs) < 2e-6


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("groups", [4, 1])
def test_bfloat16(groups, kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(module, "CPU", PLAIN)
    name = "two_prefixes_and_a_document"
    tensors, segments = row(name, groups=groups, dtype=torch.bfloat16)
    output = flat_attention(*tensors, **segments, scaling=0.3)
    assert output.dtype == torch.bfloat16
    exact = [states.detach().double().requires_grad_() for states in tensors]
    expected = dense(*exact, name, scaling=0.3)
    # bfloat16 has 8 bits: 0.2 % for each rounding of weights, scores and result
    assert relative(output.double(), expected) < 0.01
    for ours, theirs in zip(gradients(output, tensors), gradients(expected, exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert relative(ours.double(), theirs) < 0.01


def test_a_prefix_adds_its_documents_gradients_in_float32():
    # One document brings a gradient of 1 and 256 others each 1/256: in bfloat16, 1 + 1/256 is 1.
    documents = 257
    starts = [0, 1, *range(2, documents + 2)]
    shape = (1, 1, documents + 1, SIZE)
    query, key = (torch.zeros(shape, dtype=torch.bfloat16) for _ in "qk")
    value = torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
    output = flat_attention(
        query,
        key,
        value,
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        prefix=torch.tensor([-1] + [0] * documents, dtype=torch.int32),
        scaling=1.0,
    )
    gradient = torch.full(output.shape, 1 / 128, dtype=torch.bfloat16)  # every weight is a half
    gradient[:, 0] = 0
    gradient[:, 1] = 2
    (of_value,) = torch.autograd.grad(output, value, gradient)
    assert of_value[0, 0, 0].tolist() == [2.0] * SIZE


@pytest.mark.parametrize("window", [None, 2])
def test_float64_derivative(window):
    tensors, segments = row("prefix", groups=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *states: flat_attention(*states, **segments, scaling=0.3, window=window), tensors, fast_mode=True
    )


def test_operator_is_registered_for_compile():
    tensors, segments = row("prefix", groups=2)
    # Forward and backward with fake tensors of dynamic shapes, strides included.
    torch.library.opcheck(torch.ops.llama_adapter.flat_attention, (*tensors, *segments.values(), 0.3, None))
    detached = [states.detach() for states in tensors]
    output, lse = torch.ops.llama_adapter.flat_attention(*detached, *segments.values(), 0.3, None)
    saved = (torch.randn_like(output), *detached, output, lse, *segments.values(), 0.3, None)
    torch.library.opcheck(torch.ops.llama_adapter.flat_attention_backward, saved)


def test_masks_longer_than_one_step_of_the_matrix():
    length = MASK_STEP + 40
    starts = torch.tensor([0, 30, 30 + length], dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 30 + length, SIZE, generator=generator) for _ in "qkv")
    prefix = torch.tensor([-1, 0], dtype=torch.int32)
    output = flat_attention(query, key, value, cu_seqlens=starts, prefix=prefix, scaling=0.3)
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    assert relative(output, whole.transpose(1, 2)) < 1e-6


@pytest.mark.parametrize("sentinel", [0, 1])
def test_what_follows_the_segments_in_prefix_is_not_read(sentinel):
    tensors, segments = row("prefix", groups=4, sentinel=sentinel)
    output = flat_attention(*tensors, **segments, scaling=0.3)
    assert relative(output, dense(*tensors, "prefix", scaling=0.3)) < 1e-6


def test_without_prefixes():
    tensors, segments = row("documents", groups=4)
    output = flat_attention(*tensors, **segments | {"prefix": None}, scaling=0.3)
    assert torch.equal(output, flat_attention(*tensors, **segments, scaling=0.3))


def test_other_documents_do_not_matter_at_all():
    tensors, segments = row("prefix", groups=2)
    before = flat_attention(*tensors, **segments, scaling=0.3)
    for states in tensors:
        states.data[:, :, 9:10] += 1  # the second document
    after = flat_attention(*tensors, **segments, scaling=0.3)
    same = [torch.equal(before[:, start:end], after[:, start:end]) for start, end in pairwise([0, 6, 9, 10, 17])]
    assert same == [True, True, False, True]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_refuses_two_rows():
    states = torch.zeros(2, HEADS, 7, SIZE)
    with pytest.raises(ValueError, match=r"A flat batch is one row, got 2\. Put all documents into it, end to end\."):
        flat_attention(states, states, states, cu_seqlens=torch.tensor([0, 7]), prefix=None, scaling=1.0)


def test_refuses_a_cache():
    states = torch.zeros(1, HEADS, 7, SIZE)
    longer = torch.zeros(1, HEADS, 9, SIZE)
    message = r"A flat row of 7 tokens was given 9 keys\. Call the model with use_cache=False\."
    with pytest.raises(ValueError, match=message):
        flat_attention(states, longer, longer, cu_seqlens=torch.tensor([0, 7]), prefix=None, scaling=1.0)


@pytest.mark.parametrize(("prefix", "number", "front"), [([-1, 1, -1], 1, 1), ([-1, 2, -1], 1, 2), ([-1, 0, 1], 2, 1)])
def test_refuses_a_prefix_that_is_none(prefix, number, front):
    message = (
        rf"Segment {number} has segment {front} as its prefix\. "
        r"A prefix must be an earlier segment without a prefix of its own\."
    )
    with pytest.raises(ValueError, match=message):
        read_segments(torch.tensor([0, 2, 5, 7]), torch.tensor(prefix))


def attention_call(**options):
    states = torch.zeros(1, HEADS, 7, SIZE)
    return zero_init_attention(torch.nn.Module(), states, states, states, NO_MASK, scaling=1.0, **options)


def test_refuses_the_flat_mask_without_segments():
    message = r"The mask of a flat row came without cu_seqlens\. Call the model with flat_model_inputs\(batch\)\."
    with pytest.raises(ValueError, match=message):
        attention_call()


def test_refuses_dropout():
    message = r"A flat row has no attention dropout, but it is 0\.1\. Call model\.eval\(\) or set it to 0\."
    with pytest.raises(ValueError, match=message):
        attention_call(cu_seqlens=torch.tensor([0, 7]), dropout=0.1)


def test_attention_function_honours_the_sliding_window():
    tensors, segments = row("prefix", groups=4)
    output, weights = zero_init_attention(
        torch.nn.Module(), *tensors, NO_MASK, scaling=0.3, sliding_window=3, **segments
    )
    assert weights is None
    assert relative(output, dense(*tensors, "prefix", scaling=0.3, window=3)) < 1e-6


# --- the kernel for the GPU -------------------------------------------------------------------------------------------


def test_varlen_layout():
    starts, prefix = ROWS["prefix"]
    segments = read_segments(torch.tensor(starts), torch.tensor(prefix))
    rows, (cu_query, cu_key, longest_query, longest_key) = varlen_layout(segments, torch.device("cpu"))
    front = list(range(6))
    assert rows.tolist() == [*front, *front, 6, 7, 8, *front, 9, *front, *range(10, 17)]
    assert cu_query.tolist() == starts
    assert cu_key.tolist() == [0, 6, 15, 22, 35]
    assert cu_query.dtype == cu_key.dtype == torch.int32
    assert (longest_query, longest_key) == (7, 13)


class VarlenOnTheCPU:
    """torch's two operators as its documentation describes them, with the names of their arguments from torch."""

    @staticmethod
    def bind(operator, arguments) -> dict:
        names = [argument.name for argument in operator._schema.arguments]
        given = dict(zip(names, arguments, strict=False))
        assert given["window_size"][1] == 0
        assert given["is_causal"] == (given["window_size"] == [-1, 0]), "torch's varlen_attn derives the one so"
        return given

    @staticmethod
    def attend(query, key, value, given):
        outputs, sums = [], []
        bounds = [pairwise(given[name].tolist()) for name in ("cu_seq_q", "cu_seq_k")]
        for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
            assert q1 - q0 <= given["max_q"]
            assert k1 - k0 <= given["max_k"]
            keys, values = (s[k0:k1].repeat_interleave(HEADS // s.shape[1], dim=1) for s in (key, value))
            scores = torch.einsum("qhd,khd->hqk", query[q0:q1], keys) * given["scale"]
            last = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)  # bottom-right: the last sees the last
            distance = last - torch.arange(k1 - k0)
            left = given["window_size"][0]
            scores = scores.masked_fill((distance < 0) | ((left >= 0) & (distance > left)), -math.inf)
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
            sums.append(scores.logsumexp(-1))
        return torch.cat(outputs), torch.cat(sums, dim=-1)

    def __init__(self) -> None:
        self.operators = torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_backward

    def forward(self, *arguments):
        given = self.bind(self.operators[0].default, arguments)
        query, key, value = (given[name] for name in ("query", "key", "value"))
        assert given["enable_gqa"] == (query.shape[1] != key.shape[1])
        return *self.attend(query, key, value, given), torch.zeros(2, dtype=torch.uint64)

    def backward(self, *arguments):
        given = self.bind(self.operators[1].default, arguments)
        assert given["rng_state"].dtype == torch.uint64
        # Below autograd, where operators run, nothing is recorded: derive through torch.func instead.
        inputs = tuple(given[name] for name in ("query", "key", "value"))
        output, derive = torch.func.vjp(lambda *states: self.attend(*states, given)[0], *inputs)
        torch.testing.assert_close(output, given["out"])
        return derive(given["grad_out"])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("name", ROWS)
def test_varlen_is_called_as_torch_describes_it(name, groups, window, monkeypatch):
    """The gathered keys, the arguments and the added gradients; not the kernel itself."""
    assert varlen.varlen_attn  # torch has it
    kernel = VarlenOnTheCPU()
    tensors, segments = row(name, groups=groups)
    rows = read_segments(*segments.values())
    detached = [states.detach() for states in tensors]
    expected = dense(*tensors, name, scaling=0.3, window=window)
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn", kernel.forward)
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn_backward", kernel.backward)
    output, lse = module._varlen_forward(*detached, rows, 0.3, window)
    assert relative(output.transpose(1, 2), expected) < 1e-6
    fake = module._empty_output(detached[0])
    # What compiled code is promised. The stride of the one row does not matter.
    assert [t.stride()[1:] for t in (output, lse)] == [t.stride()[1:] for t in fake]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)).transpose(1, 2)
    ours = module._varlen_backward(weights, *detached, output, lse, rows, 0.3, window)
    for gradient, states, theirs in zip(ours, detached, gradients(expected, tensors), strict=True):
        assert relative(gradient, theirs) < 2e-6
        assert gradient.stride()[1:] == module._empty_like(states).stride()[1:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("groups", [4, 1])
def test_on_a_gpu(groups, window, dtype):
    """bfloat16 takes torch's varlen kernel, which would be wrong with a mask aligned at the upper left."""
    name = "two_prefixes_and_a_document"
    tensors, segments = row(name, groups=groups, dtype=dtype, device="cuda")
    assert module.has_varlen(tensors[0]) == (dtype == torch.bfloat16)
    output = flat_attention(*tensors, **segments, scaling=0.3, window=window)
    exact = [states.detach().double().requires_grad_() for states in tensors]
    expected = dense(*exact, name, scaling=0.3, window=window)
    tolerance = 0.01 if dtype == torch.bfloat16 else 1e-5  # as on the CPU; GPUs may multiply in another order
    assert relative(output.double(), expected) < tolerance
    for ours, theirs in zip(gradients(output, tensors), gradients(expected, exact), strict=True):
        assert relative(ours.double(), theirs) < tolerance
