"""The CPU kernel against the formula written out in float64."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_pretrain.model import tiled_attention as tiled
from lit_pretrain.model.tiled_attention import tiled_attention


def by_the_formula(q: Tensor, k: Tensor, v: Tensor, first_BT: Tensor) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    column = torch.arange(q.shape[1])
    seen = (column >= first_BT[:, :, None]) & (column <= column[:, None])
    scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshk->bthk", weights, v)


def inputs(
    B: int, T: int, H: int, G: int, dtype: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    q, k, v = (
        torch.randn(B, T, heads, 6, generator=generator, dtype=torch.float64) for heads in (H, G, G)
    )
    return (q * scale).to(dtype), k.to(dtype), v.to(dtype)


@st.composite
def boundaries(draw: st.DrawFn) -> Tensor:
    """Columns of the first key seen: documents and, in half of the cases, a window."""
    B, T = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 63, 64, 65, 127, 130, 200]))
    rows = []
    for _ in range(B):
        cuts = sorted(draw(st.sets(st.integers(0, T - 1), max_size=6)) | {0})
        lengths = [b - a for a, b in zip(cuts, [*cuts[1:], T], strict=True)]
        rows.append(torch.tensor(cuts).repeat_interleave(torch.tensor(lengths)))
    first_BT = torch.stack(rows)
    window = draw(st.sampled_from([None, None, 1, 5, 70]))
    return first_BT if window is None else torch.maximum(first_BT, torch.arange(T) - window + 1)


@given(boundaries(), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]))
def test_output_and_gradients_follow_the_formula(first_BT: Tensor, heads: tuple[int, int]) -> None:
    leaves = [x.requires_grad_() for x in inputs(*first_BT.shape, *heads, torch.float64)]
    results = []
    for attend in (tiled_attention, by_the_formula):
        out = attend(*leaves, first_BT)
        grads = torch.autograd.grad(
            (out * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)).sum(),
            leaves,
        )
        results.append([out, *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_gradients_are_the_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiled.TILE, torch.float64, 3)
    first_BT = torch.tensor([[0, 0, 0, 3, 3, 5, 5]])
    leaves = tuple(x.requires_grad_() for x in inputs(1, 7, 4, 2, torch.float64))
    assert torch.autograd.gradcheck(tiled_attention, (*leaves, first_BT))


def test_tiles_of_any_size_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    first_BT = torch.tensor([0] * 30 + [30] * 40).expand(2, 70)
    arguments = (*inputs(2, 70, 4, 2, torch.float32), first_BT)
    whole = tiled_attention(*arguments)
    for size in (1, 7, 128):
        monkeypatch.setitem(tiled.TILE, torch.float32, size)
        torch.testing.assert_close(tiled_attention(*arguments), whole)


def test_scores_are_not_rounded_to_bf16() -> None:
    q, k, v = inputs(2, 200, 4, 4, torch.bfloat16, scale=8.0)
    first_BT = torch.zeros(2, 200, dtype=torch.int64)
    truth = by_the_formula(q.double(), k.double(), v.double(), first_BT)
    fused = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    for autocast in (False, True):  # autocast must not reach into the kernel
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours = tiled_attention(q, k, v, first_BT)
        assert ours.dtype == torch.bfloat16
        assert (ours - truth).norm() < 1.5 * (fused - truth).norm()


def test_half_precision_gradients_are_as_good_as_the_fused_ones() -> None:
    """A key is seen from many tiles: the sum over them must not be rounded as it grows."""
    first_BT = torch.zeros(1, 600, dtype=torch.int64)
    exact = [x.requires_grad_() for x in inputs(1, 600, 2, 2, torch.float64, scale=2.0)]
    truth = torch.autograd.grad(by_the_formula(*exact, first_BT).sum(), exact)
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    ours = torch.autograd.grad(tiled_attention(*half, first_BT).sum(), half)
    fused = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in half), is_causal=True)
    theirs = torch.autograd.grad(fused.sum(), half)
    for a, b, t in zip(ours, theirs, truth, strict=True):
        assert (a - t).norm() < 1.5 * (b - t).norm()


def test_it_is_a_proper_operation_for_the_compiler() -> None:
    first_BT = torch.tensor([[0, 0, 2, 2, 2]])
    arguments = (*(x.requires_grad_() for x in inputs(1, 5, 4, 2, torch.float32)), first_BT)
    torch.library.opcheck(torch.ops.lit_pretrain.tiled_attention.default, (*arguments, 0))


@pytest.mark.parametrize(("begin", "end"), [(0, 70), (70, 150), (137, 150)])
def test_queries_at_the_end_of_more_keys(begin: int, end: int) -> None:
    """A chunk of a row gets what the whole row gets there, gradients too."""
    q, k, v = (x.requires_grad_() for x in inputs(2, 150, 4, 2, torch.float64))
    first_BT = torch.where(torch.arange(150) < 90, 0, 90).expand(2, -1).contiguous()
    whole = tiled_attention(q, k, v, first_BT)[:, begin:end]
    chunk = tiled_attention(q[:, begin:end], k[:, :end], v[:, :end], first_BT[:, begin:end], begin)
    torch.testing.assert_close(chunk, whole)
    weights = torch.randn(whole.shape, dtype=torch.float64)
    found = torch.autograd.grad((chunk * weights).sum(), (q, k, v))
    for a, b in zip(found, torch.autograd.grad((whole * weights).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


def test_strided_inputs() -> None:
    q, k, v = inputs(2, 40, 4, 4, torch.float64)
    first_BT = torch.zeros(2, 40, dtype=torch.int64)
    expected = tiled_attention(q, k, v, first_BT)
    strided = tiled_attention(
        *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), first_BT
    )
    torch.testing.assert_close(strided, expected)
    grouped = tiled_attention(
        q.transpose(1, 2).contiguous().transpose(1, 2), k[:, :, :2], v[:, :, :2], first_BT
    )
    torch.testing.assert_close(
        grouped, tiled_attention(q, k[:, :, :2].contiguous(), v[:, :, :2].contiguous(), first_BT)
    )


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_restored")
def test_its_threads_work_alone() -> None:
    """A thread of the pool that had threads of its own would take the processors from torch's,
    which then sleep at every barrier.
    """
    torch.set_num_threads(3)
    tiled_attention(*inputs(2, 150, 6, 2, torch.float32), torch.zeros(2, 150, dtype=torch.long))
    pool = tiled._pool(os.getpid(), 3)
    together = threading.Barrier(3)  # each of the three takes one task
    assert (
        list(pool.map(lambda _: (together.wait(60) < 3, torch.get_num_threads()), range(3)))
        == [(True, 1)] * 3
    )
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("B", [1, 5])
@pytest.mark.usefixtures("threads_restored")
def test_any_number_of_threads_gives_the_same(
    B: int, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    """Rows and heads are divided among threads, none of which knows what the caller has
    switched on or off.
    """
    first_BT = torch.zeros(B, 150, dtype=torch.long)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            leaves = [
                x.requires_grad_(mode is torch.enable_grad)
                for x in inputs(B, 150, 6, 2, torch.float32)
            ]
            out = tiled_attention(*leaves, first_BT)
        assert torch.get_num_threads() == threads
        grads = torch.autograd.grad(out.square().sum(), leaves) if mode is torch.enable_grad else ()
        results.append((out, *grads))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
