"""Transfer: how the first weights and the rates of a large network follow from a small one's.

Rates that are best for a small network are best for a large one if no part of the network moves
faster or more slowly because it is wider or deeper: maximal update parametrisation over width (Yang
et al. 2022, "Tensor Programs V") and CompleteP over depth (Dey et al. 2025). Here a factor that
those put in front of a matrix is folded into its first weights and its rate instead, which trains
the same function with Adam and with Muon, so that networks, checkpoints and exports stay plain.
"""

import math
from dataclasses import dataclass, fields

from lit_pretrain.errors import UserError

HORIZON_EXPONENT = -0.3
"""The best rate falls with the tokens of a run to this power, at a fixed batch (Marin)."""


@dataclass(frozen=True)
class Transfer:
    """The base: the network on which the rates, and what else is tuned, were found.

    At the base nothing changes, to the bit. Elsewhere m is the width over base_width and l the
    depth over base_depth.
    """

    base_width: int
    """Width of the base."""
    base_depth: int
    """Blocks of the base (its n_layer)."""
    base_head_dim: int | None = None
    """Size of one head at the base. Default: that of this network, whose heads grow in number."""
    base_n_kv_head: int | None = None
    """Key and value heads at the base. Default: they grow with the width, as query heads do."""
    base_batch_tokens: int | None = None
    """Tokens of an optimizer step at the base: rates follow sqrt(B / B0), and the decay of the
    second moment becomes its power of B / B0. Default: rates do not follow the batch.
    """
    base_tokens: int | None = None
    """Training tokens of the base's run: rates follow (T / T0)^-0.3. Default: rates do not follow
    the length.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise UserError(f"model.transfer: {field.name}={value} must be positive")

    def width_ratio(self, width: int) -> float:
        """Return m, the width as a multiple of the base's."""
        return width / self.base_width

    def depth_ratio(self, n_layer: int) -> float:
        """Return l, the depth as a multiple of the base's."""
        return n_layer / self.base_depth

    def line(self, width: int, n_layer: int) -> str:
        """Say in one line what a network of some size follows from."""
        follows = [
            name
            for name, base in (("batch", self.base_batch_tokens), ("length", self.base_tokens))
            if base is not None
        ]
        return (
            f"transfer: width × {self.width_ratio(width):.4g} and depth ×"
            f" {self.depth_ratio(n_layer):.4g} of the base, {self.base_depth} layers ×"
            f" {self.base_width}" + (f"; rates follow {' and '.join(follows)}" if follows else "")
        )

    def step_factors(self, batch_tokens: int, total_tokens: int) -> "StepFactors":
        """Compute what the batch and the length of a run do to its rates.

        Args:
            batch_tokens: Tokens of an optimizer step, B.
            total_tokens: Training tokens of the run, T.
        """
        batch = 1.0 if self.base_batch_tokens is None else batch_tokens / self.base_batch_tokens
        length = 1.0 if self.base_tokens is None else total_tokens / self.base_tokens
        return StepFactors(
            rate=math.sqrt(batch) * length**HORIZON_EXPONENT,
            beta2_power=batch,
            decay=batch / length,
        )


@dataclass(frozen=True)
class StepFactors:
    """What every rate is multiplied with, because of the batch and the length of a run."""

    rate: float = 1.0
    """Factor of all learning rates."""
    beta2_power: float = 1.0
    """The decay of Adam's second moment is taken to this power: it then averages over as many
    tokens as before.
    """
    decay: float = 1.0
    """Factor of the share that weight decay takes in one step: the time that it averages over, as a
    share of the run, stays (Wang and Aitchison 2024).
    """


@dataclass(frozen=True)
class ParameterScale:
    """What differs from the base in one parameter: factors of its own, all 1 at the base."""

    init: float = 1.0
    """Of the deviation of its first weights, or of its first value."""
    rate: float = 1.0
    """Of the learning rate under Adam."""
    eps: float = 1.0
    """Of Adam's eps: gradients shrink so."""
    fold: float = 1.0
    """The part of `rate` that stands for a factor in front of the parameter."""
    fan_in: float = 1.0
    """Input channels as a multiple of the base's."""
    fan_out: float = 1.0
    """Output channels as a multiple of the base's."""
    kind: str = ""
    """Names its rate among those of its role; empty for the usual one."""
