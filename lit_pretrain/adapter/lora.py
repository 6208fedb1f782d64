"""LoRA: which matrices get a low-rank update, of what size, and how it begins; with the switches for DoRA, rsLoRA, PiSSA and QLoRA."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Optional

import torch
from torch import nn

from lit_pretrain.errors import UserError

from .linear import AdaptedLinear
from .match import matching


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2022): the network is frozen, and each target matrix W becomes W + scale B A with A and B trained."""

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """The update is multiplied by alpha / rank, or with rslora by alpha / sqrt(rank)."""
    dropout: float = 0.0
    """Probability of dropping an input channel of the update."""
    targets: tuple[str, ...] = (r"attention\.(q|k|v|out)_proj$", r"feed_forward\.(gate|up|down)_proj$")
    """Regular expressions, searched for in the names of matrices such as blocks.0.attention.q_proj. Default: all of attention and
    feed-forward, which is what matches full fine-tuning best (Dettmers et al. 2023, figure 2)."""
    init: Literal["kaiming", "gaussian", "pissa"] = "kaiming"
    """A at first: kaiming is uniform within 1/sqrt(in), gaussian has deviation 1/rank; B is zero. pissa: A and B are the leading singular
    directions of W, and the update counts from there (Meng et al. 2024). The network starts as the base in every case."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks learning (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the norm of every output row besides, and the update for its direction alone (Liu et al. 2024)."""
    quantize: Optional[Literal["nf4"]] = None
    """nf4: keep the target matrices in four bits (Dettmers et al. 2023, QLoRA). The rest of the network stays as it is."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"model.adapter.rank={self.rank} must be positive")
        if not self.alpha > 0:
            raise UserError(f"model.adapter.alpha={self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.adapter.dropout={self.dropout} must lie in [0, 1)")
        if not self.targets:
            raise UserError("model.adapter.targets is empty: name at least one matrix")

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def select(self, net: nn.Module) -> list[str]:
        """Names of the matrices that the targets mean.

        Raises:
            UserError: A target is found in no name, or means the head.
        """
        head = getattr(net, "head", None)
        linears = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
        found = matching(self.targets, linears, setting="model.adapter.targets", what="matrix")
        if any(linears[name] is head for name in found):
            raise UserError(
                f"model.adapter.targets={list(self.targets)} means the head, which the loss reads as a matrix and which cannot be adapted; "
                "name matrices of the blocks"
            )
        return found

    def apply(self, net: nn.Module, generator: Optional[torch.Generator] = None) -> list[str]:
        """Freeze a network and put adapters beside its matrices, in place.

        The output stays what it was, but for the quantisation of NF4. On the meta device nothing is drawn.

        Args:
            net: A network with its base weights; parameters keep their names.
            generator: Source of randomness for A; torch's default one if None.

        Returns:
            Names of the adapted matrices.
        """
        names = self.select(net)
        if any(isinstance(module, AdaptedLinear) for module in net.modules()):
            raise UserError("this network carries an adapter already: merge it first")
        net.requires_grad_(False)
        for name in names:
            base = net.get_submodule(name)
            assert isinstance(base, nn.Linear)
            if self.init == "pissa" and self.rank > min(base.weight.shape):
                raise UserError(
                    f"model.adapter.rank={self.rank} is more than {name} of shape {tuple(base.weight.shape)} has singular directions"
                )
            if self.quantize and base.weight.is_meta:
                raise UserError("model.adapter.quantize=nf4 cannot be sharded (strategy fsdp); use strategy ddp, or quantize: null")
            adapted = AdaptedLinear(
                base,
                rank=self.rank,
                scale=self.scale,
                dropout=self.dropout,
                dora=self.dora,
                quantize=self.quantize is not None,
                offset=self.init == "pissa",
            )
            if not base.weight.is_meta:
                self._reset(adapted, base, generator)
            _replace(net, name, adapted.train(base.training))
        return names

    @torch.no_grad()
    def _reset(self, adapted: AdaptedLinear, base: nn.Linear, generator: Optional[torch.Generator]) -> None:
        if self.init == "pissa":
            left, values, right = torch.linalg.svd(base.weight.float(), full_matrices=False)
            root = (values[: self.rank] / self.scale).sqrt()
            adapted.lora_A.copy_(root[:, None] * right[: self.rank])
            adapted.lora_B.copy_(left[:, : self.rank] * root)
            assert adapted.lora_A0 is not None
            assert adapted.lora_B0 is not None
            adapted.lora_A0.copy_(adapted.lora_A)
            adapted.lora_B0.copy_(adapted.lora_B)
        else:
            if self.init == "gaussian":
                adapted.lora_A.normal_(0.0, 1 / self.rank, generator=generator)
            else:
                nn.init.kaiming_uniform_(adapted.lora_A, a=math.sqrt(5), generator=generator)
            adapted.lora_B.zero_()
        if adapted.lora_magnitude is not None:
            adapted.lora_magnitude.copy_(torch.linalg.vector_norm(adapted.base_weight(), dim=1))

    @contextmanager
    def disabled(self, net: nn.Module) -> Iterator[None]:
        """Within this context the network computes what its base does, to the bit."""
        adapted = [module for module in net.modules() if isinstance(module, AdaptedLinear)]
        before = [module.enabled for module in adapted]
        for module in adapted:
            module.enabled = False
        try:
            yield
        finally:
            for module, enabled in zip(adapted, before, strict=True):
                module.enabled = enabled

    def merge(self, net: nn.Module) -> None:
        """Put the updates into the matrices, in fp32, then in the dtype of the base; a plain network is left, frozen."""
        for name, module in list(net.named_modules()):
            if isinstance(module, AdaptedLinear):
                dtype = module.lora_A.dtype if module.weight is None else module.weight.dtype
                with torch.device("meta"):
                    plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
                plain.weight = nn.Parameter(module.merged().to(dtype), requires_grad=False)
                plain.bias = module.bias
                _replace(net, name, plain.train(module.training))


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
