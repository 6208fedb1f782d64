"""Adapted linear: a frozen matrix with a low-rank update beside it, and a magnitude per output row if it is DoRA."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nf4_weight import NF4Weight

TENSORS = ("lora_A", "lora_B", "lora_magnitude", "lora_A0", "lora_B0")
"""Names of an adapter's own tensors, beside `weight` and `bias`."""


def is_adapter_tensor(key: str) -> bool:
    """Whether a key of a network's state dict belongs to an adapter."""
    return key.rpartition(".")[2] in TENSORS


class AdaptedLinear(nn.Linear):
    """y = W x + b + s B A x (Hu et al. 2022, LoRA, eq. 3), or with a magnitude m (Liu et al. 2024, DoRA, eq. 5)

    y = m / |W + s B A| (W x + s B A x) + b, with the norm over each output row.

    The norm is a constant to the gradient (DoRA, section 4.3). W and b are the base's own parameters, frozen, under their own names.

    Args:
        base: What is adapted.
        rank: Rows of A and columns of B.
        scale: s.
        dropout: Probability of dropping an input channel of the update.
        dora: Add a magnitude.
        quantize: Keep W as NF4 instead.
        offset: Keep the update's first value and subtract it (PiSSA): the network starts as the base, whatever A and B are.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude: Optional[nn.Parameter]
    lora_A0: Optional[Tensor]
    lora_B0: Optional[Tensor]

    def __init__(
        self, base: nn.Linear, *, rank: int, scale: float, dropout: float, dora: bool = False, quantize: bool = False, offset: bool = False
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would draw a weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scale = scale
        self.enabled = True
        self.dropout = nn.Dropout(dropout)
        if quantize:
            self.register_parameter("weight", None)
        else:
            self.weight = base.weight
        self.bias = base.bias
        self.nf4 = NF4Weight(base.weight) if quantize else None
        new = base.weight.new_empty  # of its device and dtype
        self.lora_A = nn.Parameter(new(rank, base.in_features))
        self.lora_B = nn.Parameter(new(base.out_features, rank))
        self.register_parameter("lora_magnitude", nn.Parameter(new(base.out_features)) if dora else None)
        for name, parameter in (("lora_A0", self.lora_A), ("lora_B0", self.lora_B)):
            self.register_buffer(name, torch.empty_like(parameter, requires_grad=False) if offset else None)

    def base_weight(self) -> Tensor:
        """W (out, in) in fp32, as the network computes with it."""
        return self.weight.detach().float() if self.nf4 is None else self.nf4.dequantize()

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the update; with an offset they have twice the rank."""
        if self.lora_A0 is None or self.lora_B0 is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.lora_A0]), torch.cat([self.lora_B, -self.lora_B0], dim=1)

    def merged(self) -> Tensor:
        """The one matrix (out, in) that does the same, fp32."""
        return merged_weight(self.base_weight(), *self.factors(), scale=self.scale, magnitude=self.lora_magnitude)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if not self.enabled:
            return self._base(x, self.bias)
        drops = self.training and self.dropout.p > 0
        inner = self.dropout(x) if drops else x
        A, B = self.factors()
        update = F.linear(F.linear(inner, A) * self.scale, B)
        if self.lora_magnitude is None:
            return self._base(x, self.bias) + update
        base = self._base(x, None)
        gain = self.lora_magnitude / self._norm(A.detach(), B.detach())
        # As in peft: dropout is for the update alone, so the part of the base that the gain changes counts as update.
        out = gain * (base + update) if not drops else base + (gain - 1) * self._base(inner, None) + gain * update
        out = out.to(base.dtype)
        return out if self.bias is None else out + self.bias.to(base.dtype)

    def _base(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        if self.nf4 is None:
            return F.linear(x, self.weight, bias)
        out = self.nf4.linear(x)
        return out if bias is None else out + bias.to(out.dtype)

    def _norm(self, A: Tensor, B: Tensor) -> Tensor:
        """|W + s B A| of each row (out), fp32, by the binomial: W + s B A itself, as large as W, is never made."""
        with torch.autocast(A.device.type, enabled=False):
            W, A, B = self.base_weight(), A.float(), B.float() * self.scale
            cross = (F.linear(W, A) * B).sum(dim=1)
            square = (F.linear(B, F.linear(A, A)) * B).sum(dim=1)
            norm: Tensor = (torch.linalg.vector_norm(W, dim=1).square() + 2 * cross + square).sqrt()
            return norm

    def extra_repr(self) -> str:
        """Shape and kind."""
        kind = ("dora" if self.lora_magnitude is not None else "lora") + ("" if self.nf4 is None else ", nf4")
        return f"{self.in_features}, {self.out_features}, rank={self.lora_A.shape[0]}, scale={self.scale:g}, {kind}"


@torch.no_grad()
def plain_weights(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of the network without adapters that does the same; adapted matrices in fp32."""
    weights = {key: value for key, value in net.state_dict().items() if not is_adapter_tensor(key)}
    for name, module in net.named_modules():
        if isinstance(module, AdaptedLinear):
            weights[f"{name}.weight"] = module.merged()
    return weights


@torch.no_grad()
def merged_weight(weight: Tensor, A: Tensor, B: Tensor, *, scale: float, magnitude: Optional[Tensor]) -> Tensor:
    """W + s B A, its rows brought to the magnitude if there is one, in fp32.

    Args:
        weight: W (out, in).
        A: (rank, in).
        B: (out, rank).
        scale: s.
        magnitude: Norms of the rows (out), or None.
    """
    merged = weight.float() + scale * (B.float() @ A.float())
    if magnitude is not None:
        merged = merged * (magnitude.float() / torch.linalg.vector_norm(merged, dim=1))[:, None]
    return merged
