"""Solve for the missing tokens, FLOPs, time, devices or money of a run.

Also find the size that is cheapest to train and then to serve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import Law
from lit_pretrain.step_size import counted, smallest_divisor

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Rate:
    """The speed of one device."""

    tokens_per_second: float | None
    """Speed while it trains; None if neither a peak nor a measurement is known."""
    goodput: float = 1.0
    """Share of the time in which training makes progress; failures, restarts, checkpoints and
    evaluations take the rest.
    """


@dataclass(frozen=True)
class Budget:
    """What a run takes. Values that need an unknown rate or price are None."""

    tokens: float
    flops: float
    devices: int
    goodput: float
    seconds: float | None
    """Wall-clock time."""
    device_hours: float | None
    dollars: float | None
    solved: str
    """Name of the quantity that was solved for."""


def solve(
    *,
    flops_per_token: float,
    rate: Rate,
    devices: int | None,
    price: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    dollars: float | None = None,
    seconds: float | None = None,
    step_rows: int | None = None,
) -> Budget:
    """Complete a budget.

    One of tokens, FLOPs, dollars and seconds determines the others. A length (tokens or FLOPs) and
    a time determine the number of devices, or, if that is given, the goodput that the run needs.

    Args:
        flops_per_token: Training FLOPs of a token.
        rate: Speed of one device.
        devices: Number of devices; None for one, or for as many as the time requires.
        price: Dollars per device-hour.
        tokens: Training tokens.
        flops: Training FLOPs.
        dollars: Money to spend.
        seconds: Wall-clock time.
        step_rows: Rows of an optimizer step; a solved number of devices divides them.

    Raises:
        UserError: Too little or too much is given, or the answer needs something unknown.
    """
    given = {"tokens": tokens, "FLOPs": flops, "dollars": dollars, "time": seconds}
    named = [name for name, value in given.items() if value is not None]
    for name, value in {
        **given,
        "price": price,
        "devices": devices,
        "tokens per second": rate.tokens_per_second,
    }.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} {value:g} must be positive and finite")
    if not 0 < rate.goodput <= 1:
        raise UserError(f"goodput {rate.goodput:g} must lie in (0, 1]: it is a share of the time")
    length = tokens if tokens is not None else None if flops is None else flops / flops_per_token
    if (
        not named
        or (tokens is not None and flops is not None)
        or len(named) > 2
        or (len(named) == 2 and (length is None or seconds is None))
    ):
        raise UserError(
            "give one of tokens (max_steps, max_tokens), FLOPs (max_flops), dollars and days or"
            f" hours, or a length and a time; found {' and '.join(named) or 'none'}"
        )
    per_second, goodput = rate.tokens_per_second, rate.goodput
    if (dollars is not None or seconds is not None) and per_second is None:
        raise UserError(
            "how fast it trains is not known: name a --device with a known peak, or give"
            " --tokens_per_second of one device"
        )
    if dollars is not None and price is None:
        raise UserError(
            "a budget in dollars needs --price, dollars of a device for an hour: none is assumed,"
            " they differ too much"
        )

    solved = "time and money"
    if length is None:
        assert per_second is not None
        solved = "tokens"
        if dollars is not None:
            assert price is not None
            length = dollars / price * HOUR * per_second * goodput
        else:
            assert seconds is not None
            length = seconds * (devices or 1) * per_second * goodput
    elif seconds is not None:
        assert per_second is not None
        busy = length / per_second
        if devices is None:
            solved, devices = "devices", max(1, math.ceil(busy / (seconds * goodput)))
            if step_rows is not None:
                divides = smallest_divisor(step_rows, devices)
                if divides is None:
                    raise UserError(
                        f"the time given asks for {devices:,} devices, but a step has only "
                        f"{counted(step_rows, 'rows')} to divide among them: take more time, "
                        "or raise data.global_batch_tokens"
                    )
                devices = divides
        else:
            solved, goodput = "goodput", busy / (seconds * devices)
            if goodput > 1:
                raise UserError(
                    f"{devices} devices need {busy / devices / DAY:,.2f} days without any loss,"
                    f" more than the {seconds / DAY:,.2f} given: take more time, more devices"
                    " (leave --devices out to have them counted) or fewer tokens"
                )
    devices = devices or 1
    device_hours = None if per_second is None else length / per_second / goodput / HOUR
    return Budget(
        tokens=length,
        flops=length * flops_per_token,
        devices=devices,
        goodput=goodput,
        seconds=None if device_hours is None else device_hours * HOUR / devices,
        device_hours=device_hours,
        dollars=None if device_hours is None or price is None else device_hours * price,
        solved=solved,
    )


# The size that is cheapest to train and then to serve, at the loss of a given run.

TRAINING = 6.0
SERVING = 2.0
"""FLOPs per parameter and token: training runs forward and backward, serving forward alone."""


class LifetimeOptimum(NamedTuple):
    """The cheapest model that reaches a given loss."""

    n: float
    """Parameters."""
    d: float
    """Training tokens with which it reaches the loss."""
    flops: float
    """FLOPs of training and serving."""
    saved: float
    """FLOPs saved against the given run."""

    @property
    def share(self) -> float:
        """Return the saved share of what the given run costs in its life."""
        return self.saved / (self.flops + self.saved)


def lifetime_flops(n: float, d: float, served: float) -> float:
    """Count the FLOPs of training and serving, 6 N D + 2 N D_inference.

    Sardana et al. 2024, Beyond Chinchilla-Optimal, eq. 2.
    """
    return TRAINING * n * d + SERVING * n * served


def lifetime_optimum(law: Law, n: float, d: float, served: float) -> LifetimeOptimum:
    """Minimise training and serving FLOPs over models that reach the loss of a given run.

    Sardana et al. 2024, eq. 3.

    Args:
        law: A law of the form E + A / N^alpha + B / D^beta.
        n: Parameters of the given run.
        d: Training tokens of the given run.
        served: Tokens that the model will read and write in its life.
    """
    if law.form not in ("chinchilla", "tied"):
        raise UserError(
            "the inference-aware optimum needs a chinchilla law, this one is of the form"
            f" {law.form}: choose another --law"
        )
    if not served >= 0:
        raise UserError(f"inference_tokens={served} must not be negative")
    p = law.params
    beta = p["alpha" if law.form == "tied" else "beta"]
    reducible = float(law.loss(n, d)) - p["E"]

    def tokens(log_n: float) -> float:
        left = reducible - p["A"] / math.exp(log_n) ** p["alpha"]
        return (p["B"] / left) ** (1 / beta) if left > 0 else math.inf

    # Below the lower end no amount of data reaches the loss. The cost has one minimum in ln N,
    # which a golden-section search finds.
    low, high = math.log((p["A"] / reducible) ** (1 / p["alpha"])), math.log(n) + 5
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if lifetime_flops(math.exp(a), tokens(a), served) < lifetime_flops(
            math.exp(b), tokens(b), served
        ):
            high = b
        else:
            low = a
    best = (low + high) / 2
    flops = lifetime_flops(math.exp(best), tokens(best), served)
    return LifetimeOptimum(
        math.exp(best), tokens(best), flops, lifetime_flops(n, d, served) - flops
    )
