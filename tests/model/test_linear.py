"""A few rows in fp32 take another road on a CPU, and arrive at the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.model import layers as module
from lit_pretrain.model.layers import FEW, WORTH, Linear, linear


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2 * FEW), st.booleans(), st.booleans(), st.booleans())
def test_it_is_torch_s_product(rows: int, biased: bool, strided: bool, learned: bool) -> None:
    torch.manual_seed(rows)
    x = torch.randn(2 * rows, 1, 512)[:: 2 if strided else 1][:rows]
    weight, bias = torch.randn(1024, 512), torch.randn(1024) if biased else None
    with torch.set_grad_enabled(learned):
        found = linear(x, weight, bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == (rows, 1, 1024)
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=2e-4
    )  # sums of 512 products, of a standard deviation of 23


@pytest.mark.skipif(not module.ONEDNN, reason="this torch is built without oneDNN")
def test_who_takes_the_other_road(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, *others: object) -> torch.Tensor:
        calls.append(x.numel() // x.shape[-1])
        return F.linear(x, weight)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    layer, x = Linear(512, WORTH // 512, bias=False), torch.randn(1, 512)
    layer(x)  # its gradient may be wanted
    with torch.no_grad():
        layer(torch.randn(FEW + 1, 512))
        layer.double()(x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer.float()(x)
        Linear(16, 16)(torch.randn(1, 16))  # too small to be worth it
        assert calls == []
        layer(x)
        layer(torch.randn(2, FEW // 2, 512))
    assert calls == [1, FEW]
