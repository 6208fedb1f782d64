"""LoRA: a low-rank update beside frozen matrices, with DoRA, rsLoRA, PiSSA and QLoRA; freezing.

A is (rank, in), B (out, rank) and W (out, in), as in the papers.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.adapter.new_tokens import has_token_rows
from lit_pretrain.adapter.nf4 import NF4Weight
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.roles import Role


def matching(
    patterns: Sequence[str], names: Iterable[str], *, setting: str, what: str
) -> list[str]:
    """Return the names in which at least one pattern is found, in their own order.

    Args:
        patterns: Regular expressions; each is searched for anywhere in a name.
        names: Dotted names.
        setting: Where the patterns come from, for the message.
        what: What is named, for the message: "matrix", "parameter".

    Raises:
        UserError: A pattern is not a regular expression, or is found in no name; near names are
            given.
    """
    all_names, found = list(names), set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{setting}: {pattern!r} is not a regular expression ({error})"
            ) from None
        hits = [name for name in all_names if regex.search(name)]
        if not hits:
            near = _near(pattern, all_names)
            raise UserError(
                f"{setting}: {pattern!r} is found in the name of no {what}; there are"
                f" {', '.join(near)}"
            )
        found.update(hits)
    return [name for name in all_names if name in found]


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the kinds of names nearest to a pattern, else the first few; no layer numbers."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    plain = re.sub(r"\\(.)", r"\1", pattern)
    # A pattern may name the whole, the end or one part of a name.
    parts: dict[str, list[str]] = {}
    for kind in kinds:
        pieces = kind.split(".")
        for part in {kind, *pieces, *(".".join(pieces[i:]) for i in range(1, len(pieces)))}:
            parts.setdefault(part, []).append(kind)
    close = nearest(plain, parts, limit=3)
    return list(dict.fromkeys(kind for part in close for kind in parts[part]))[:6] or kinds[:8]


def freeze_(net: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze the parameters in whose names a pattern is found, and return those names.

    Args:
        net: The network; changed in place.
        patterns: Regular expressions over names such as `blocks.0.attention.q_proj.weight`.

    Raises:
        UserError: A pattern is found in no name, or nothing would be left to train.
    """
    parameters = dict(net.named_parameters())
    frozen = matching(patterns, parameters, setting="model.freeze", what="parameter")
    if len(frozen) == len(parameters):
        raise UserError(
            f"model.freeze={list(patterns)} freezes every parameter: nothing is left to train"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


ROWS, FIRST_ROW = "lora_rows", "lora_first_row"
"""Names of the rows of new tokens, and of the number of the first of them."""
TENSORS = ("lora_A", "lora_B", "lora_magnitude", "lora_A0", "lora_B0", ROWS, FIRST_ROW)
"""Names of an adapter's own tensors, beside `weight` and `bias`."""


def is_adapter_tensor(key: str) -> bool:
    """Tell whether a key of a network's state dict belongs to an adapter."""
    return key.rpartition(".")[2] in TENSORS


class AdaptedLinear(nn.Linear):
    """Compute y = W x + b + s B A x (Hu et al. 2022, LoRA, eq. 3).

    With a magnitude m it is eq. 5 of DoRA (Liu et al. 2024):

    y = m / |W + s B A| (W x + s B A x) + b, with the norm over each output row.

    The norm is a constant to the gradient (DoRA, section 4.3). W and b are the base's own
    parameters, frozen, under their own names.

    Args:
        base: What is adapted.
        rank: Rows of A and columns of B.
        scale: s.
        dropout: Probability of dropping an input channel of the update.
        dora: Add a magnitude.
        quantize: Keep W as NF4 instead.
        offset: Keep the update's first value and subtract it (PiSSA): the network starts as the
            base, whatever A and B are.
    """

    roles: ClassVar[dict[str, Role]] = {
        "weight": "matrix",
        "bias": "vector",
        "lora_A": "adapter",
        "lora_B": "adapter",
        "lora_magnitude": "vector",
    }

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude: nn.Parameter | None
    lora_A0: Tensor | None
    lora_B0: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        scale: float,
        dropout: float,
        dora: bool = False,
        quantize: bool = False,
        offset: bool = False,
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
        self.register_parameter(
            "lora_magnitude", nn.Parameter(new(base.out_features)) if dora else None
        )
        for name, parameter in (("lora_A0", self.lora_A), ("lora_B0", self.lora_B)):
            self.register_buffer(
                name, torch.empty_like(parameter, requires_grad=False) if offset else None
            )

    def base_weight(self) -> Tensor:
        """Return W (out, in) in fp32, as the network computes with it."""
        return self.weight.detach().float() if self.nf4 is None else self.nf4.dequantize()

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B of the update; with an offset they have twice the rank."""
        if self.lora_A0 is None or self.lora_B0 is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.lora_A0]), torch.cat(
            [self.lora_B, -self.lora_B0], dim=1
        )

    def merged(self) -> Tensor:
        """Compute the one matrix (out, in) that does the same, in fp32."""
        return merged_weight(
            self.base_weight(), *self.factors(), scale=self.scale, magnitude=self.lora_magnitude
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if not self.enabled:
            return self._base(x, self.bias)
        drops = self.training and self.dropout.p > 0
        inner = self.dropout(x) if drops else x
        A, B = self.factors()
        # Through the rank, so that B A, as large as W, is never made.
        update = F.linear(F.linear(inner, A) * self.scale, B)
        if self.lora_magnitude is None:
            return self._base(x, self.bias) + update
        base = self._base(x, None)
        gain = self.lora_magnitude / self._norm(A.detach(), B.detach())
        # As in peft: dropout is for the update alone, so the part of the base that the gain changes
        # counts as update.
        out = (
            gain * (base + update)
            if not drops
            else base + (gain - 1) * self._base(inner, None) + gain * update
        )
        out = out.to(base.dtype)
        return out if self.bias is None else out + self.bias.to(base.dtype)

    def _base(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.nf4 is None:
            return F.linear(x, self.weight, bias)
        out = self.nf4.linear(x)
        return out if bias is None else out + bias.to(out.dtype)

    def _norm(self, A: Tensor, B: Tensor) -> Tensor:
        """Compute |W + s B A| of each row (out), fp32.

        By the binomial, so that W + s B A itself, as large as W, is never made.
        """
        with torch.autocast(A.device.type, enabled=False):
            W, A, B = self.base_weight(), A.float(), B.float() * self.scale
            cross = (F.linear(W, A) * B).sum(dim=1)
            square = (F.linear(B, F.linear(A, A)) * B).sum(dim=1)
            norm: Tensor = (torch.linalg.vector_norm(W, dim=1).square() + 2 * cross + square).sqrt()
            return norm

    def extra_repr(self) -> str:
        """Describe shape and kind, for `print(net)`."""
        kind = ("dora" if self.lora_magnitude is not None else "lora") + (
            "" if self.nf4 is None else ", nf4"
        )
        return (
            f"{self.in_features}, {self.out_features}, rank={self.lora_A.shape[0]},"
            f" scale={self.scale:g}, {kind}"
        )


class TrainedRows:
    """Train some rows of a matrix beside its frozen weight: those of new tokens.

    The weight keeps the rows' first values, so that the base is there when the adapter is switched
    off. A subclass is an `nn.Embedding` or `nn.Linear` as well.
    """

    roles: ClassVar[dict[str, Role]] = {"weight": "matrix", ROWS: "adapter"}

    weight: Tensor
    lora_rows: nn.Parameter
    lora_first_row: Tensor
    enabled: bool

    def weight_with_rows(self) -> Tensor:
        """Return the matrix with the trained rows in it."""
        if not self.enabled:
            return self.weight
        first, count = self._first, len(self.lora_rows)
        rows = self.lora_rows.to(self.weight.dtype)
        return torch.cat([self.weight[:first], rows, self.weight[first + count :]])

    def without_rows(self) -> nn.Module:
        """Return the plain module that does the same."""
        merged = self.weight_with_rows().detach()
        rows, width = merged.shape
        with torch.device("meta"):
            plain = (
                nn.Embedding(rows, width)
                if isinstance(self, nn.Embedding)
                else nn.Linear(width, rows, bias=False)
            )
        plain.weight = nn.Parameter(merged, requires_grad=False)
        return plain

    def _take(self, module: nn.Module, first: int, count: int) -> None:
        """Copy what a module holds, with some of its rows as a parameter."""
        nn.Module.__init__(self)  # type: ignore[arg-type]  # a subclass is a module
        for name, value in vars(module).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        self.weight = weight
        self.enabled = True
        self._first = first
        self.lora_rows = nn.Parameter(weight.detach()[first : first + count].clone())
        first_row = torch.tensor(first)
        self.register_buffer(FIRST_ROW, first_row)  # type: ignore[attr-defined]  # the same


class EmbeddingWithRows(TrainedRows, nn.Embedding):
    """An embedding of which the rows of new tokens are trained."""

    def __init__(self, base: nn.Embedding, first: int, count: int) -> None:
        self._take(base, first, count)

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids up."""
        found = F.embedding(ids, self.weight)
        if not self.enabled:
            return found
        number = ids - self._first
        is_new = (number >= 0) & (number < len(self.lora_rows))
        # Of all ids and not of the new ones alone, whose number only the device knows.
        rows = F.embedding(number.clamp(0, len(self.lora_rows) - 1), self.lora_rows)
        return torch.where(is_new[..., None], rows.to(found.dtype), found)


class HeadWithRows(TrainedRows, nn.Linear):
    """A head of which the rows of new tokens are trained; the loss reads its matrix."""

    def __init__(self, base: nn.Linear, first: int, count: int) -> None:
        self._take(base, first, count)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        return F.linear(x, self.weight_with_rows())


def train_rows_(net: nn.Module, first: int, count: int) -> None:
    """Train the rows of new tokens in a network that carries an adapter, in place."""
    for name, module in list(net.named_modules()):
        if has_token_rows(f"{name}.weight"):
            kind = EmbeddingWithRows if isinstance(module, nn.Embedding) else HeadWithRows
            _replace(net, name, kind(module, first, count).train(module.training))


@torch.no_grad()
def plain_weights(net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the plain network that does the same; merged matrices in fp32."""
    weights = {key: value for key, value in net.state_dict().items() if not is_adapter_tensor(key)}
    for name, module in net.named_modules():
        if isinstance(module, AdaptedLinear):
            weights[f"{name}.weight"] = module.merged()
        elif isinstance(module, TrainedRows):
            weights[f"{name}.weight"] = module.weight_with_rows()
    return weights


def stored_factors(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A and B of one matrix in fp32, from what a checkpoint holds of its adapter.

    Args:
        tensors: The tensors by the last part of their names.
    """
    A, B = tensors["lora_A"].float(), tensors["lora_B"].float()
    if "lora_A0" not in tensors:
        return A, B
    # PiSSA subtracts its first update: W + BA - B₀A₀ is one product of twice the rank.
    A0, B0 = tensors["lora_A0"].float(), tensors["lora_B0"].float()
    return torch.cat([A, A0]), torch.cat([B, -B0], dim=1)


@torch.no_grad()
def merged_weight(
    weight: Tensor, A: Tensor, B: Tensor, *, scale: float, magnitude: Tensor | None
) -> Tensor:
    """Compute W + s B A in fp32, its rows brought to the magnitude if there is one.

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


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2022) of a frozen network.

    Each target matrix W becomes W + scale B A, with A and B trained.
    """

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """The update is multiplied by alpha / rank, or with rslora by alpha / sqrt(rank)."""
    dropout: float = 0.0
    """Probability of dropping an input channel of the update."""
    targets: tuple[str, ...] = (
        r"attention\.(q|k|v|out)_proj$",
        r"feed_forward\.(gate|up|down)_proj$",
    )
    """Regular expressions, searched for in the names of matrices such as blocks.0.attention.q_proj.
    Default: all of attention and feed-forward, which is what matches full fine-tuning best
    (Dettmers et al. 2023, figure 2).
    """
    init: Literal["kaiming", "gaussian", "pissa"] = "kaiming"
    """A at first: kaiming is uniform within 1/sqrt(in), gaussian has deviation 1/rank; B is zero.
    pissa: A and B are the leading singular directions of W, and the update counts from there (Meng
    et al. 2024). The network starts as the base in every case.
    """
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks learning (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the norm of every output row besides, and the update for its direction alone (Liu
    et al. 2024).
    """
    quantize: Literal["nf4"] | None = None
    """nf4: keep the target matrices in four bits (Dettmers et al. 2023, QLoRA). The rest of the
    network stays as it is.
    """

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
        """Return the factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def whole(self) -> str | None:
        """Name the setting that needs whole matrices; None where they may be split over devices."""
        needed = {
            "dropout": self.dropout > 0,  # devices would drop different channels of the same input
            "init": self.init == "pissa",
            "dora": self.dora,
            "quantize": self.quantize is not None,
        }
        return next(
            (f"{name}={getattr(self, name)}" for name, is_set in needed.items() if is_set), None
        )

    def select(self, net: nn.Module) -> list[str]:
        """Find the names of the matrices that the targets mean.

        Raises:
            UserError: A target is found in no name, or means the head.
        """
        head = getattr(net, "head", None)
        linears = {
            name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)
        }
        found = matching(self.targets, linears, setting="model.adapter.targets", what="matrix")
        if any(linears[name] is head for name in found):
            raise UserError(
                f"model.adapter.targets={list(self.targets)} means the head, which the loss reads"
                " as a matrix and which cannot be adapted; name matrices of the blocks"
            )
        return found

    def apply(self, net: nn.Module, generator: torch.Generator | None = None) -> list[str]:
        """Freeze a network and put adapters beside its matrices, in place.

        The output stays what it was, but for the quantisation of NF4. On the meta device nothing is
        drawn.

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
                    f"model.adapter.rank={self.rank} is more than {name} of shape"
                    f" {tuple(base.weight.shape)} has singular directions"
                )
            if self.quantize and base.weight.is_meta:
                raise UserError(
                    "model.adapter.quantize=nf4 cannot be sharded (strategy fsdp); use strategy"
                    " ddp, or quantize: null"
                )
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
    def _reset(
        self, adapted: AdaptedLinear, base: nn.Linear, generator: torch.Generator | None
    ) -> None:
        if self.init == "pissa":
            left, values, right = torch.linalg.svd(base.weight.float(), full_matrices=False)
            # A and B share each singular value evenly, less what the scale will multiply in.
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
        """Switch the adapter off within this context: the network computes its base, to the bit."""
        adapted = [
            module for module in net.modules() if isinstance(module, AdaptedLinear | TrainedRows)
        ]
        before = [module.enabled for module in adapted]
        for module in adapted:
            module.enabled = False
        try:
            yield
        finally:
            for module, enabled in zip(adapted, before, strict=True):
                module.enabled = enabled

    def merge(self, net: nn.Module) -> None:
        """Add the updates to the matrices, which leaves a plain, frozen network.

        The sum is made in fp32, then rounded to the dtype of the base.
        """
        for name, module in list(net.named_modules()):
            if isinstance(module, TrainedRows):
                _replace(net, name, module.without_rows())
            elif isinstance(module, AdaptedLinear):
                dtype = module.lora_A.dtype if module.weight is None else module.weight.dtype
                with torch.device("meta"):
                    plain = nn.Linear(
                        module.in_features, module.out_features, bias=module.bias is not None
                    )
                plain.weight = nn.Parameter(module.merged().to(dtype), requires_grad=False)
                plain.bias = module.bias
                _replace(net, name, plain.train(module.training))


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
