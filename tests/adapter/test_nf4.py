"""NF4: what is stored is small, what comes back is near, and gradients pass through it as
through the matrix that comes back.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.adapter import nf4
from lit_pretrain.adapter.nf4 import NF4Weight


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    seed=st.integers(0, 1000),
    exponent=st.integers(-20, 20),
)
def test_what_comes_back_is_within_half_a_level_of_the_block(
    rows: int, columns: int, seed: int, exponent: int
) -> None:
    matrix = (
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    )
    again = nf4.dequantize_torch(nf4.quantize(matrix), (rows, columns))
    flat, found = matrix.flatten(), again.flatten()
    for block in range(0, flat.numel(), nf4.BLOCK):
        part = flat[block : block + nf4.BLOCK]
        # Half the widest gap between levels, (1 - 0.696) / 2, plus what rounding the scales costs:
        # these differ from their mean by at most the largest of all, and a code of that decade is
        # 0.9 / 64 / 2 of it off.
        bound = 0.1520 * part.abs().max() + 0.0072 * 1.01 * flat.abs().max()
        assert (part - found[block : block + nf4.BLOCK]).abs().max() <= bound


def test_levels_are_kept_exactly() -> None:
    matrix = torch.tensor(nf4.LEVELS).repeat(16, 4)
    assert torch.equal(nf4.dequantize_torch(nf4.quantize(matrix), (16, 64)), matrix)


def test_a_weight_costs_little_more_than_four_bits() -> None:
    weight = NF4Weight(torch.randn(512, 512))
    stored = sum(buffer.numel() * buffer.element_size() for buffer in weight.buffers())
    assert stored * 8 / 512**2 == pytest.approx(4.127, abs=1e-3)
    assert not weight.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_multiplies_and_differentiates_as_the_matrix_that_comes_back(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = NF4Weight(torch.randn(24, 40))
    plain = weight.dequantize(dtype)
    x = torch.randn(3, 40, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, expected = weight.linear(x), torch.nn.functional.linear(y, plain)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(out, expected)
    torch.testing.assert_close(x.grad, y.grad)


def test_autocast_decides_its_dtype_as_it_does_for_a_linear_layer() -> None:
    weight = NF4Weight(torch.randn(24, 40))
    x = torch.randn(3, 40, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = weight.linear(x)
        expected = torch.nn.functional.linear(x, weight.dequantize())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_cast_of_the_network_leaves_it_alone() -> None:
    weight = NF4Weight(torch.randn(24, 40))
    before = weight.dequantize()
    assert torch.equal(weight.to(torch.bfloat16).dequantize(), before)
