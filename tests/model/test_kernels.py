"""The kernels: one rule, the same numbers, documents as if they were alone."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.kernels import (
    VarlenKernel,
    choose_kernel,
    document_offsets,
    document_starts,
    first_visible,
    make_kernel,
    softcap,
)
from lit_pretrain.model.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SMALL: dict[str, Any] = {
    "vocab_size": 23,
    "n_layer": 2,
    "width": 16,
    "n_head": 4,
    "max_seq_len": 160,
    "init_std": 0.5,
}
CPU_KERNELS = ("sdpa", "matmul", "tiled", "flex")


def hidden(
    model: Transformer, kernel: str, tokens_BT: Tensor, doc_BT: Tensor | None = None
) -> Tensor:
    """Run the model with the named kernel."""
    model.config = dataclasses.replace(model.config, attention=kernel)
    with torch.set_grad_enabled(kernel != "flex"):  # flex has no backward pass on CPU
        out: Tensor = model(tokens_BT, doc_BT)
    return out


@st.composite
def packed_rows(draw: st.DrawFn) -> list[list[int]]:
    """Lengths of the documents of each row; all rows are equally long."""
    T = draw(st.integers(1, 150))
    rows = []
    for _ in range(draw(st.integers(1, 2))):
        cuts = sorted(draw(st.sets(st.integers(1, T), max_size=5)) | {T})
        rows.append([b - a for a, b in zip([0, *cuts[:-1]], cuts, strict=True)])
    return rows


@st.composite
def networks(draw: st.DrawFn) -> ModelConfig:
    window = draw(st.sampled_from([None, 1, 4, 40]))
    return ModelConfig(
        **SMALL,
        n_kv_head=draw(st.sampled_from([1, 2, 4])),
        position=draw(st.sampled_from(["rope", "learned", "none"])),
        qk_norm=draw(st.booleans()),
        sliding_window=window,
        window_pattern=draw(st.sampled_from(["S", "SL"])) if window else "L",
        value_embeddings="none",
        residual_scalars=draw(st.booleans()),
    )


@settings(max_examples=25)
@given(networks(), packed_rows(), st.sampled_from(CPU_KERNELS), st.integers(0, 2**32))
def test_a_packed_row_equals_its_documents_one_by_one(
    config: ModelConfig, rows: list[list[int]], kernel: str, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Transformer(config).double()
    tokens_BT = torch.randint(config.vocab_size, (len(rows), sum(rows[0])))
    doc_BT = torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows]
    ).int()
    packed_BTD = hidden(model, kernel, tokens_BT, doc_BT)
    for b, row in enumerate(rows):
        start = 0
        for length in row:
            alone = hidden(model, kernel, tokens_BT[b : b + 1, start : start + length])
            torch.testing.assert_close(
                packed_BTD[b, start : start + length], alone[0], rtol=0, atol=1e-10
            )
            start += length


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 30, 500])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("documents", [True, False])
def test_kernels_agree_forward_and_backward(
    kv_heads: int, window: int | None, cap: float | None, documents: bool
) -> None:
    pattern = "L" if window is None else "SL"
    torch.manual_seed(0)
    config = ModelConfig(
        **SMALL,
        n_kv_head=kv_heads,
        sliding_window=window,
        window_pattern=pattern,
        attn_softcap=cap,
        attention="matmul",
    )
    model = Transformer(config).double()
    tokens_BT = torch.randint(23, (2, 150))
    doc_BT = torch.randint(0, 4, (2, 150)).sort().values if documents else None
    outputs, gradients = {}, {}
    for kernel in CPU_KERNELS if cap is None else ("matmul", "flex"):
        outputs[kernel] = hidden(model, kernel, tokens_BT, doc_BT)
        if kernel != "flex":
            model.zero_grad()
            (outputs[kernel] * torch.linspace(-1, 1, 16)).sum().backward()
            gradients[kernel] = torch.cat(
                [p.grad.flatten() for p in model.blocks.parameters() if p.grad is not None]
            )
    for out in outputs.values():
        torch.testing.assert_close(out, outputs["matmul"], rtol=0, atol=1e-10)
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, gradients["matmul"], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_no_position_sees_the_future_or_another_document_or_beyond_its_window(kernel: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        **{**SMALL, "n_layer": 1}, sliding_window=5, window_pattern="S", position="none"
    )
    model = Transformer(config).double()
    tokens_1T, doc_1T = torch.randint(23, (1, 30)), torch.tensor([[0] * 12 + [1] * 18])
    before = hidden(model, kernel, tokens_1T, doc_1T)
    changed = tokens_1T.clone()
    changed[0, 14] = (changed[0, 14] + 1) % 23
    moved = (hidden(model, kernel, changed, doc_1T) - before).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [
        14,
        15,
        16,
        17,
        18,
    ]  # itself and the four that still see it
    changed[0, 14], changed[0, 10] = tokens_1T[0, 14], (tokens_1T[0, 10] + 1) % 23
    moved = (hidden(model, kernel, changed, doc_1T) - before).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [10, 11]  # the document ends


def test_where_documents_start() -> None:
    doc_BT = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 3, 3]])
    assert document_starts(doc_BT).tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]
    assert first_visible(document_starts(doc_BT), 2).tolist() == [
        [0, 0, 2, 2, 3, 5],
        [0, 0, 1, 2, 3, 4],
    ]
    assert document_offsets(doc_BT).tolist() == [0, 2, 5, 6, 12]
    assert document_offsets(doc_BT).dtype == torch.int32


def test_softcap() -> None:
    x = torch.linspace(-100, 100, 999, dtype=torch.float64)
    y = softcap(x, 5.0)
    assert y.abs().max() <= 5
    assert (y.diff() >= 0).all()
    torch.testing.assert_close(softcap(x / 1e6, 5.0), x / 1e6, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("changes", "device", "documents", "kernel"),
    [
        ({}, "cpu", True, "tiled"),
        ({}, "cpu", False, "tiled"),
        ({"attn_softcap": 50.0}, "cpu", True, "matmul"),
        ({}, "mps", True, "sdpa"),
        ({}, "meta", True, "sdpa"),
        ({}, "cuda", False, "sdpa"),
        ({}, "cuda", True, "flex"),
        ({"sliding_window": 8, "window_pattern": "S"}, "cuda", False, "flex"),
        ({"attn_softcap": 50.0}, "cuda", False, "flex"),
        ({"attention": "sdpa"}, "cuda", True, "sdpa"),
        ({"attention": "varlen"}, "cuda", True, "varlen"),
        ({"attention": "matmul"}, "cpu", True, "matmul"),
    ],
)
def test_the_kernel_that_is_chosen(
    changes: dict[str, Any], device: str, documents: bool, kernel: str
) -> None:
    assert choose_kernel(ModelConfig(**changes), device, torch.bfloat16, documents) == kernel


@pytest.mark.parametrize(
    ("kernel", "device", "dtype"),
    [
        ("tiled", "cuda", torch.bfloat16),
        ("varlen", "cpu", torch.bfloat16),
        ("varlen", "cuda", torch.float32),
        ("flex", "cpu", torch.float32),
    ],
)
def test_a_kernel_that_does_not_run_here_is_refused(
    kernel: Any, device: str, dtype: torch.dtype
) -> None:
    with pytest.raises(UserError, match=f"{kernel}.*auto"):
        choose_kernel(ModelConfig(attention=kernel), device, dtype, True)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("documents", [True, False])
def test_varlen_is_called_with_the_documents_and_the_window(
    monkeypatch: pytest.MonkeyPatch, documents: bool, window: int | None
) -> None:
    """The flash kernel needs a GPU: in its place stands the loop over documents that its
    documentation describes.
    """

    def varlen_attn(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int],
    ) -> Tensor:
        assert q.shape == k.shape == v.shape
        assert max_q >= int(cu_q.diff().max())
        outs = []
        for start, stop in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            behind = torch.arange(stop - start)[:, None] - torch.arange(
                stop - start
            )  # the query's place minus the key's
            before, after = window_size
            seen = (behind >= -after) & ((behind <= before) if before >= 0 else True)
            scores = torch.einsum("thk,shk->hts", q[start:stop], k[start:stop]) / q.shape[-1] ** 0.5
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            outs.append(torch.einsum("hts,shk->thk", weights, v[start:stop]))
        return torch.cat(outs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    q, k, v = torch.randn(2, 30, 4, 6), torch.randn(2, 30, 2, 6), torch.randn(2, 30, 2, 6)
    doc_BT = torch.randint(0, 4, (2, 30)).sort().values
    config = ModelConfig(
        **SMALL, sliding_window=window, window_pattern="S" if window else "L", attention="sdpa"
    )
    expected = make_kernel(config, doc_BT, doc_BT if documents else None, torch.float32)(
        q, k, v, window
    )
    ours = VarlenKernel(doc_BT, one_document=not documents)(q, k, v, window)
    torch.testing.assert_close(ours, expected)
