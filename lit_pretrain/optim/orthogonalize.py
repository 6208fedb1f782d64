"""Orthogonalisation: the polar factor of many matrices at once, by a few matrix products.

Shapes: S stacked matrices of m rows and n >= m columns.

One iteration replaces the singular values x of X by `a x + b x^3 + c x^5`, a polynomial in the Gram matrix: with G = X X^T it is
X <- (a I + b G + c G^2) X. A handful of them drive every singular value that is not tiny into a band around one.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

Method = Literal["polar_express", "newton_schulz"]
Polynomial = tuple[float, float, float]

_NEWTON_SCHULZ: Polynomial = (3.4445, -4.7750, 2.0315)
"""Jordan et al. (2024): one polynomial for all iterations, steep at zero."""

_POLAR_EXPRESS: dict[int, tuple[Polynomial, ...]] = {
    3: ((8.0712, -22.5269, 16.1910), (3.8706, -2.8143, 0.5269), (3.1899, -2.3920, 0.4991)),
    4: ((8.2049, -22.9003, 16.4593), (4.0663, -2.8609, 0.5184), (3.9095, -2.8232, 0.5250), (3.3185, -2.4885, 0.5101)),
    5: (
        (8.2288, -22.9669, 16.5072),
        (4.1034, -2.8703, 0.5170),
        (4.0534, -2.8577, 0.5188),
        (3.8618, -2.8123, 0.5274),
        (3.1623, -2.3711, 0.4968),
    ),
}
"""Amsel et al. (2025): each polynomial is the best one (in the maximum norm) for what the ones before it leave."""


@cache
def polynomials(method: Method, iterations: int) -> tuple[Polynomial, ...]:
    """The coefficients (a, b, c) of each iteration."""
    if method == "newton_schulz":
        return (_NEWTON_SCHULZ,) * iterations
    return _POLAR_EXPRESS[iterations]


def orthogonalize_(x_Smn: Tensor, polynomials: tuple[Polynomial, ...], *, tighten: bool, eps: float = 1e-7) -> Tensor:
    """Drive the singular values of each matrix towards one and keep the singular vectors, in the precision of the input.

    Args:
        x_Smn: Stack of matrices, m <= n; overwritten.
        polynomials: From `polynomials`.
        tighten: Divide by the fourth root of |G^2| instead of by the Frobenius norm |X|. Both bound the largest singular value, but the
            Frobenius norm by up to sqrt(m) times too much, and what it loses the iterations must grow back.
        eps: Smallest norm to divide by, so that a zero matrix stays zero.

    Returns:
        The orthogonalised stack (in the memory of `x_Smn` or of a buffer).
    """
    short, long = x_Smn.shape[-2:]
    x_Smn.div_(torch.linalg.vector_norm(x_Smn, dim=(-2, -1), keepdim=True).clamp_(min=eps))
    y_Smn = torch.empty_like(x_Smn)
    buffers = [x_Smn.new_empty(x_Smn.shape[0], short, short) for _ in range(4)]
    # On wide matrices two iterations share one pass over X: the second Gram matrix is P G P, and Q = P' P is applied once.
    # Rounding errors in G grow by a^2 per iteration, which two iterations bear and three do not (measured in bf16).
    pair = 2 if long > 1.5 * short else 1
    first = len(polynomials) % pair or pair
    for part in [polynomials[:first], *(polynomials[i : i + pair] for i in range(first, len(polynomials), pair))]:
        factor_Smm = _factor(x_Smn, part, buffers, tighten=tighten)
        tighten = False
        torch.bmm(factor_Smm, x_Smn, out=y_Smn)
        x_Smn, y_Smn = y_Smn, x_Smn
    return x_Smn


def _factor(x_Smn: Tensor, polynomials: tuple[Polynomial, ...], buffers: list[Tensor], *, tighten: bool) -> Tensor:
    """The matrix that X is to be multiplied with from the left for one or two iterations."""
    gram, square, spare, factor = buffers
    torch.bmm(x_Smn, x_Smn.mT, out=gram)
    shrink = None
    for index, (a, b, c) in enumerate(polynomials):
        torch.bmm(gram, gram, out=square)
        if tighten and index == 0:
            norm = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True)
            # 1.02: the Gram matrix is rounded, and the polynomials leave their band quickly beyond 1.
            # Rounded once and used as it is for both powers, and in the precision of the matrices: a wider one would copy them.
            shrink = (1.0 / (norm.sqrt() * 1.02**2).clamp(min=1e-7)).to(square.dtype)
            gram.mul_(shrink)
            square.mul_(shrink).mul_(shrink)
        # Adding a I to the factor, instead of a X to the product, saves a pass over X (10 % of the whole).
        target = factor if index == 0 else spare
        torch.mul(square, c, out=target).add_(gram, alpha=b).diagonal(dim1=-2, dim2=-1).add_(a)
        if index + 1 < len(polynomials):
            torch.bmm(target, gram, out=square)
            torch.bmm(square, target, out=gram)
        if index > 0:
            torch.bmm(spare, factor, out=square)
            factor = square
    return factor if shrink is None else factor.mul_(shrink.sqrt())
