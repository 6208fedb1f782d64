"""Planner: tokens, FLOPs, time, devices and money of a run, whichever of them is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from lit_pretrain.errors import UserError
from lit_pretrain.step_size import counted, smallest_divisor

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Rate:
    """How fast one device trains, as the sum of its useful hours would have it."""

    tokens_per_second: Optional[float]
    """While it trains; None where neither a peak nor a measurement is known."""
    goodput: float = 1.0
    """Share of the time in which training moves on: not in failures, restarts, checkpoints or evaluations."""


@dataclass(frozen=True)
class Budget:
    """A run as what it takes. What cannot be known without a rate or a price is None."""

    tokens: float
    flops: float
    devices: int
    goodput: float
    seconds: Optional[float]
    """Of wall-clock time."""
    device_hours: Optional[float]
    dollars: Optional[float]
    solved: str
    """What was not given."""


def solve(
    *,
    flops_per_token: float,
    rate: Rate,
    devices: Optional[int],
    price: Optional[float] = None,
    tokens: Optional[float] = None,
    flops: Optional[float] = None,
    dollars: Optional[float] = None,
    seconds: Optional[float] = None,
    step_rows: Optional[int] = None,
) -> Budget:
    """Complete a budget.

    One of tokens, FLOPs, dollars and seconds gives the others. With a length (tokens or FLOPs) and a time, the number of devices follows
    where it is not given, and where it is, the goodput that such a run must have had.

    Args:
        flops_per_token: Training FLOPs of a token.
        rate: Of one device.
        devices: How many; None: one, or as many as the time asks for.
        price: Dollars of a device for an hour.
        tokens: Training tokens.
        flops: Training FLOPs.
        dollars: What may be spent.
        seconds: Wall-clock time.
        step_rows: Rows of an optimizer step; devices that follow from a time divide them.

    Raises:
        UserError: Nothing or too much is given, or what is needed for the answer is not known.
    """
    given = {"tokens": tokens, "FLOPs": flops, "dollars": dollars, "time": seconds}
    named = [name for name, value in given.items() if value is not None]
    for name, value in {**given, "price": price, "devices": devices, "tokens per second": rate.tokens_per_second}.items():
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
            "give one of tokens (max_steps, max_tokens), FLOPs (max_flops), dollars and days or hours, or a length and a time; "
            f"found {' and '.join(named) or 'none'}"
        )
    per_second, goodput = rate.tokens_per_second, rate.goodput
    if (dollars is not None or seconds is not None) and per_second is None:
        raise UserError("how fast it trains is not known: name a --device with a known peak, or give --tokens_per_second of one device")
    if dollars is not None and price is None:
        raise UserError("a budget in dollars needs --price, dollars of a device for an hour: none is assumed, they differ too much")

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
                    f"{devices} devices need {busy / devices / DAY:,.2f} days without any loss, more than the {seconds / DAY:,.2f} given: "
                    "take more time, more devices (leave --devices out to have them counted) or fewer tokens"
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
