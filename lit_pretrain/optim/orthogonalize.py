"""Orthogonalisation: the polar factor of many matrices at once, by a few matrix products.

Shapes: S stacked matrices of m rows and n >= m columns.
"""

from typing import Literal

import torch
from torch import Tensor

Method = Literal["newton_schulz", "polar_express"]
Coefficients = tuple[tuple[float, float, float], ...]

_JORDAN = (3.4445, -4.7750, 2.0315)


def coefficients(method: Method, iterations: int) -> Coefficients:
    """The polynomials `a x + b x^3 + c x^5` to apply one after the other to the singular values."""
    if method == "newton_schulz":
        return (_JORDAN,) * iterations
    return _POLAR_EXPRESS[iterations]


_POLAR_EXPRESS: dict[int, Coefficients] = {
    3: ((7.6068, -21.2308, 15.2594), (3.1862, -2.3423, 0.4772), (2.2204, -1.5959, 0.411)),
    4: ((8.1375, -22.7121, 16.324), (3.9651, -2.8362, 0.5224), (3.4887, -2.5622, 0.5016), (2.5116, -1.8525, 0.4388)),
    5: (
        (8.2049, -22.9003, 16.4593),
        (4.0663, -2.8609, 0.5184),
        (3.9095, -2.8232, 0.525),
        (3.2856, -2.4153, 0.4853),
        (2.3007, -1.6689, 0.4188),
    ),
}


def orthogonalize_(x_Smn: Tensor, polynomials: Coefficients, *, eps: float = 1e-7) -> Tensor:
    """Push the singular values of each matrix towards one, in the precision of `x_Smn` (bf16 suffices).

    Args:
        x_Smn: Stack of matrices with m <= n, contiguous; overwritten.
        polynomials: From `coefficients`.
        eps: Least norm to divide by.

    Returns:
        The orthogonalised stack, in the memory of `x_Smn` or a buffer.
    """
    x_Smn.div_(torch.linalg.vector_norm(x_Smn, dim=(-2, -1), keepdim=True).clamp_(min=eps))
    gram_Smm = x_Smn.new_empty(*x_Smn.shape[:-1], x_Smn.shape[-2])
    inner_Smm, outer_Smm = torch.empty_like(gram_Smm), torch.empty_like(gram_Smm)
    y_Smn = torch.empty_like(x_Smn)
    for a, b, c in polynomials:
        # X <- (a I + (b I + c G) G) X with G = X X^T. Adding multiples of I to the factors spares the two passes over the
        # larger matrices that beta * input would cost in baddbmm: 10 % less time on two CPU cores.
        torch.bmm(x_Smn, x_Smn.mT, out=gram_Smm)
        torch.mul(gram_Smm, c, out=inner_Smm).diagonal(dim1=-2, dim2=-1).add_(b)
        torch.bmm(inner_Smm, gram_Smm, out=outer_Smm).diagonal(dim1=-2, dim2=-1).add_(a)
        torch.bmm(outer_Smm, x_Smn, out=y_Smn)
        x_Smn, y_Smn = y_Smn, x_Smn
    return x_Smn
