"""Points: the combinations of options that a sweep tries, each with a name for its run."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import parse_yaml, read_yaml

Point = dict[str, Any]
"""Dotted name of an option of `fit` -> its value."""

_LONGEST_VALUE, _LONGEST_NAME = 24, 120


def as_given(value: Any) -> Any:
    """Return the value of --points as it is given, for `points_of` to say what is wrong with it."""
    return value


def points_of(value: Any) -> list[Point]:
    """Read a list of points: itself, or the YAML file that holds it.

    Raises:
        UserError: It is no list of mappings.
    """
    found = read_yaml(value, "--points") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(point, dict) for point in found):
        raise UserError(
            "--points: a list of mappings of options to values is needed, such as"
            f" [{{model.optimizer.matrix_lr: 0.01}}]; found {found!r:.200}"
        )
    return [{_option_name(str(n)): v for n, v in point.items()} for point in found]


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `NAME=VALUE,VALUE` of --grid; values are YAML.

    Raises:
        UserError: A text has another form, or an option comes twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, values = _named(text, "--grid", "VALUE,VALUE", found)
        # A flow sequence, in which commas within brackets and quotes are no separators.
        found[name] = parse_yaml(f"[{values}]", f"--grid {name}")
        if not found[name]:
            raise UserError(f"--grid {name} has no values: --grid {name}=0.01,0.02")
        twice = [v for i, v in enumerate(found[name]) if v in found[name][:i]]
        if twice:
            raise UserError(f"--grid {name} has the value {twice[0]!r} twice")
    return found


class Range:
    """A range of numbers, from which --random draws.

    Args:
        text: LOW:HIGH, or LOW:HIGH:log for equal chances of each factor.
        name: Of the option, for messages.
    """

    def __init__(self, text: str, name: str) -> None:
        parts = text.split(":")
        numbers = [parse_yaml(part, f"--range {name}") for part in parts[:2]]
        sound = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
        if len(parts) not in (2, 3) or not sound or parts[2:] not in ([], ["log"]):
            raise UserError(
                f"--range {name}={text}: LOW:HIGH is needed, or LOW:HIGH:log, such as"
                f" {name}=0.005:0.05:log"
            )
        self.low: int | float = numbers[0]
        self.high: int | float = numbers[1]
        self.log = len(parts) == 3
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            raise UserError(
                f"--range {name}={text}: LOW must be below HIGH"
                + (", and above 0 for log" if self.log else "")
            )
        self.whole = isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> int | float:
        """Return the number at a share of the range; of a range of whole numbers, a whole one."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        if self.whole:
            return min(self.high, math.floor(value))
        # Four digits, as names and tables show them; rounding may lead out of a narrow range.
        return min(self.high, max(self.low, float(f"{value:.4g}")))


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Parse `NAME=LOW:HIGH[:log]` of --range.

    Raises:
        UserError: A text has another form, or an option comes twice.
    """
    found: dict[str, Range] = {}
    for text in texts:
        name, numbers = _named(text, "--range", "LOW:HIGH", found)
        found[name] = Range(numbers, name)
    return found


def _named(text: str, option: str, form: str, known: Mapping[str, Any]) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    name = _option_name(name)
    if not equals or not name:
        raise UserError(
            f"{option} {text}: NAME={form} is needed, with the name of an option of fit"
        )
    if name in known:
        raise UserError(f"{option} {name} is given twice; give all of its values at once")
    return name, values.strip()


def _option_name(name: str) -> str:
    return name.strip().removeprefix("--").replace("-", "_")


def combine(
    grid: Mapping[str, Sequence[Any]],
    points: Sequence[Point],
    ranges: Mapping[str, Range],
    draws: int | None,
    seed: int,
) -> list[Point]:
    """Combine grid and points, or draw from grid and ranges.

    A draw depends on the seed and its number alone, so that more draws add runs.

    Args:
        grid: Values by option.
        points: Each is combined with every one of the grid.
        ranges: Numbers by option, for draws.
        draws: How many to draw; None takes the whole grid.
        seed: Of the draws.

    Raises:
        UserError: Ranges or draws have nothing to go with, or an option is in two places.
    """
    places = [("--grid", grid), ("--range", ranges), ("points", {n: 0 for p in points for n in p})]
    for (one, names), (other, others) in itertools.combinations(places, 2):
        for name in names:
            if name in others:
                raise UserError(f"{name} is in {one} and in {other}; give it in one of them")
    if draws is None:
        if ranges:
            raise UserError(
                f"--range {next(iter(ranges))} is drawn from: say how often by --random"
            )
        whole = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    else:
        if draws < 1:
            raise UserError(f"--random {draws} must be at least 1")
        if not grid and not ranges:
            raise UserError("--random draws from --range and --grid: give at least one of them")
        whole = [_draw(grid, ranges, seed, number) for number in range(draws)]
    found = [point | rest for point in points or [{}] for rest in whole]
    return list({repr(sorted(point.items())): point for point in found}.values())


def _draw(
    grid: Mapping[str, Sequence[Any]], ranges: Mapping[str, Range], seed: int, number: int
) -> Point:
    shares = np.random.default_rng([seed, number]).random(len(grid) + len(ranges)).tolist()
    point = {n: v[int(share * len(v))] for (n, v), share in zip(grid.items(), shares, strict=False)}
    rest = shares[len(grid) :]
    return point | {n: r.at(share) for (n, r), share in zip(ranges.items(), rest, strict=True)}


def run_names(points: Sequence[Point]) -> list[str]:
    """Name the run of every point by the options in which points differ."""
    options = list(dict.fromkeys(name for point in points for name in point))
    short = _short_names(options)
    names = []
    for point in points:
        parts = [f"{short[n]}={_plain(point[n])}" for n in options if n in point]
        names.append(",".join(parts) or "base")
    unclear = {n for n in names if names.count(n) > 1 or len(n) > _LONGEST_NAME}
    return [
        f"{name[: _LONGEST_NAME - 9]}-{_digest(point)}" if name in unclear else name
        for name, point in zip(names, points, strict=True)
    ]


def _short_names(options: Sequence[str]) -> dict[str, str]:
    """Shorten every option to the end of its name that no other has."""
    found = {}
    for option in options:
        parts = option.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [f".{other}" for other in options if other != option]
        found[option] = next(e for e in ends if not any(o.endswith(f".{e}") for o in others))
    return found


def _plain(value: Any) -> str:
    """Write a value so that it can be part of a file's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_][\w.]*", text) else text
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")[:_LONGEST_VALUE] or "_"


def _digest(point: Point) -> str:
    return hashlib.sha256(repr(sorted(point.items())).encode()).hexdigest()[:8]
