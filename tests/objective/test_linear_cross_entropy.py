"""The chunked head against the plain one: values, gradients, precisions, bad input, compiler."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.objective import linear_cross_entropy, linear_logp


def plain_nll(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None
) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX)


def plain(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    total = F.cross_entropy(
        logits, labels, reduction="sum", ignore_index=IGNORE_INDEX, label_smoothing=smoothing
    )
    return total + z_loss * (torch.logsumexp(logits, 1).square() * (labels != IGNORE_INDEX)).sum()


def inputs(
    tokens: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype = torch.float64,
    ignored: float = 0.2,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = (
        torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
        * 2
        / math.sqrt(width)
    )
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORE_INDEX
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=1e-300)).item()


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 70),
    chunk=st.integers(1, 80),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    z_loss=st.sampled_from([0.0, 1e-4, 0.3]),
    smoothing=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 3),
)
def test_equals_plain_in_fp64(
    tokens: int,
    chunk: int,
    width: int,
    vocabulary: int,
    z_loss: float,
    smoothing: float,
    softcap: float | None,
    ignored: float,
    seed: int,
) -> None:
    hidden, weight, labels = inputs(tokens, width, vocabulary, ignored=ignored, seed=seed)
    found, nll = linear_cross_entropy(
        hidden,
        weight,
        labels,
        z_loss=z_loss,
        label_smoothing=smoothing,
        softcap=softcap,
        chunk=chunk,
    )
    expected = plain(hidden, weight, labels, z_loss, smoothing, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        nll, plain_nll(hidden, weight, labels, softcap), rtol=1e-11, atol=1e-12
    )
    upstream = 0.37
    grads = torch.autograd.grad(found * upstream, (hidden, weight))
    for grad, reference in zip(
        grads, torch.autograd.grad(expected * upstream, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(grad, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fp32_agrees_with_fp64_to_1e_6(
    softcap: float | None, z_loss: float, smoothing: float
) -> None:
    hidden, weight, labels = inputs(517, 48, 1003, torch.float32)
    found, _ = linear_cross_entropy(
        hidden, weight, labels, z_loss=z_loss, label_smoothing=smoothing, softcap=softcap, chunk=100
    )
    exact_inputs = (
        hidden.detach().double().requires_grad_(),
        weight.detach().double().requires_grad_(),
    )
    exact = plain(*exact_inputs, labels, z_loss, smoothing, softcap)
    assert relative(found.double(), exact) < 1e-6
    grads = torch.autograd.grad(found, (hidden, weight))
    for grad, reference in zip(grads, torch.autograd.grad(exact, exact_inputs), strict=True):
        assert relative(grad.double(), reference) < 1e-6


def test_autograd_gradcheck() -> None:
    hidden, weight, labels = inputs(11, 4, 7)

    def total(h: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(
            h, w, labels, z_loss=0.1, label_smoothing=0.1, softcap=3.0, chunk=4
        )[0]

    assert torch.autograd.gradcheck(total, (hidden, weight))
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logp(h, w, labels, softcap=3.0, chunk=4), (hidden, weight)
    )


def test_bf16_autocast_is_as_accurate_as_plain_autocast() -> None:
    hidden, weight, labels = inputs(700, 64, 900, torch.float32)
    exact_inputs = (
        hidden.detach().double().requires_grad_(),
        weight.detach().double().requires_grad_(),
    )
    exact = plain(*exact_inputs, labels)
    exact_grads = torch.autograd.grad(exact, exact_inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found, nll = linear_cross_entropy(hidden, weight, labels, chunk=96)
        usual = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
    assert found.dtype == nll.dtype == torch.float32
    grads = torch.autograd.grad(found, (hidden, weight))
    usual_grads = torch.autograd.grad(usual, (hidden, weight))
    assert relative(found.double(), exact) < 1e-4
    for grad, usual_grad, reference in zip(grads, usual_grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (
            relative(grad.double(), reference)
            < 1.1 * relative(usual_grad.double(), reference) + 1e-4
        )


def test_bf16_weights_give_bf16_gradients_and_an_fp32_loss() -> None:
    hidden, weight, labels = inputs(300, 32, 200, torch.bfloat16)
    found, nll = linear_cross_entropy(hidden, weight, labels, chunk=64)
    found.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (found.dtype, nll.dtype, hidden.grad.dtype, weight.grad.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    assert relative(found.double(), plain(hidden.double(), weight.double(), labels)) < 1e-3


def test_nothing_supervised_is_zero_not_nan() -> None:
    hidden, weight, labels = inputs(13, 4, 5, torch.float32, ignored=1.1)
    found, nll = linear_cross_entropy(
        hidden, weight, labels, z_loss=0.1, label_smoothing=0.1, softcap=5.0, chunk=4
    )
    found.backward()
    assert found.item() == 0.0
    for tensor in (nll, hidden.grad, weight.grad):
        assert tensor is not None
        assert torch.count_nonzero(tensor) == 0


def test_no_tokens_at_all() -> None:
    hidden, weight, labels = inputs(0, 4, 5, torch.float32)
    found, nll = linear_cross_entropy(hidden, weight, labels)
    found.backward()
    assert found.item() == 0.0
    assert nll.shape == (0,)
    assert weight.grad is not None
    assert torch.count_nonzero(weight.grad) == 0


@pytest.mark.parametrize(
    ("hidden_grad", "weight_grad"), [(True, False), (False, True), (False, False)]
)
def test_only_asked_gradients(hidden_grad: bool, weight_grad: bool) -> None:
    hidden, weight, labels = inputs(20, 4, 6)
    hidden.requires_grad_(hidden_grad)
    weight.requires_grad_(weight_grad)
    found, _ = linear_cross_entropy(hidden, weight, labels, chunk=7)
    assert found.requires_grad == (hidden_grad or weight_grad)
    wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    if wanted:
        for grad, reference in zip(
            torch.autograd.grad(found, wanted),
            torch.autograd.grad(plain(hidden, weight, labels), wanted),
            strict=True,
        ):
            torch.testing.assert_close(grad, reference)


def test_no_grad_computes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = inputs(20, 4, 6)
    products = []
    original = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *args, **kwargs: products.append(1) or original(*args, **kwargs)
    )
    with torch.no_grad():
        found, _ = linear_cross_entropy(hidden, weight, labels, chunk=10)
    assert not found.requires_grad
    assert len(products) == 2  # the logits of two chunks, and nothing else
    torch.testing.assert_close(found, plain(hidden, weight, labels).detach())


def test_upstream_gradient_and_second_backward() -> None:
    hidden, weight, labels = inputs(20, 4, 6)
    found, _ = linear_cross_entropy(hidden, weight, labels, chunk=7)
    (once,) = torch.autograd.grad(found, weight, retain_graph=True)
    (thrice,) = torch.autograd.grad(3.0 * found, weight)
    torch.testing.assert_close(thrice, 3.0 * once)


@pytest.mark.parametrize("bad", [6, -1, -101, 10**9])
def test_label_outside_the_vocabulary_is_an_error(bad: int) -> None:
    hidden, weight, labels = inputs(20, 4, 6)
    labels[11] = bad
    for head in (linear_cross_entropy, linear_logp):
        with pytest.raises(RuntimeError, match=r"vocabulary \[0, 6\)"):
            head(hidden, weight, labels)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 50),
    softcap=st.sampled_from([None, 4.0]),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 3),
)
def test_logp_equals_plain_with_a_gradient_per_token(
    tokens: int, chunk: int, softcap: float | None, ignored: float, seed: int
) -> None:
    hidden, weight, labels = inputs(tokens, 5, 11, ignored=ignored, seed=seed)
    found = linear_logp(hidden, weight, labels, softcap=softcap, chunk=chunk)
    expected = -plain_nll(hidden, weight, labels, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    upstream = torch.randn(
        tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    grads = torch.autograd.grad(found, (hidden, weight), upstream)
    for grad, reference in zip(
        grads, torch.autograd.grad(expected, (hidden, weight), upstream), strict=True
    ):
        torch.testing.assert_close(grad, reference, rtol=1e-10, atol=1e-12)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    labels = torch.tensor([2, 2, 0])
    found, nll = linear_cross_entropy(hidden, weight, labels)
    found.backward()
    torch.testing.assert_close(nll, torch.tensor([2e4, 0.0, math.log(3.0)]))
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_compiles_without_a_graph_break_and_computes_the_head_once() -> None:
    hidden, weight, labels = inputs(50, 8, 20, torch.float32)
    body = torch.nn.Linear(8, 8)

    def loss(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return linear_cross_entropy(body(h), w, y, z_loss=1e-3, chunk=16)[0] / 7

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = loss(hidden, weight, labels)
    references = torch.autograd.grad(expected, (hidden, weight))
    compiled(hidden, weight, labels).backward()
    with torch.profiler.profile() as profile:
        found = compiled(hidden, weight, labels)
        grads = torch.autograd.grad(found, (hidden, weight))
    torch.testing.assert_close(found, expected)
    for grad, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(grad, reference)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert (
        calls["lit_pretrain::linear_cross_entropy"] == 1
    )  # the partitioner does not recompute it in the backward pass


def test_compiled_chunk_body_equals_the_eager_one() -> None:
    """The route taken on CUDA, where pointwise kernels are compiled, run here on the CPU."""
    from lit_pretrain.objective.linear_cross_entropy import _op

    hidden, weight, labels = inputs(50, 8, 20, torch.float32)
    scale = (labels != IGNORE_INDEX).float()
    config = 1e-3, 0.1, 5.0, 25, None, 1, 0
    arguments = (hidden.detach(), weight.detach(), labels, scale, *config, True, True)
    for found, expected in zip(_op(*arguments, True), _op(*arguments, False), strict=True):
        torch.testing.assert_close(found, expected)
