"""Linear: a matrix times the hidden states, as torch does it, but for a few rows in fp32 on a CPU, as when text is generated."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
"""Whether this torch has oneDNN's product, which its own compiler calls, too."""
WORTH = 2**18
"""Multiplications below which its 18 µs a call, for 3, are not made up."""
FEW = 16
"""Rows, at most: it compiles code for each number of them, which texts of every length would ask of it again and again."""


class Linear(nn.Linear):
    """torch's, with `linear` for its product."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """The product x @ weight.T + bias.

    In fp32 on a CPU torch asks MKL, which computes a product with one row on one thread, whatever the processor, and on those of AMD is
    slow for a few, too. Here oneDNN is asked for them (docs/experiments.md), where no gradient is wanted, which its product has not.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if (
        ONEDNN
        and not torch.compiler.is_compiling()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and WORTH <= x.numel() * weight.shape[0] <= FEW * weight.numel()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)
