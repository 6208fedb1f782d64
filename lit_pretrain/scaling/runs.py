"""The finished runs that a law is fitted to, checked before anything is computed from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import FLOPS_PER_PARAMETER_TOKEN, Floats

Counts = Literal["total", "matmul", "nonembed"]
"""Parameters that N counts. The exponent of N* depends on it: small models are mostly embedding."""
Unit = Literal["nats", "bits_per_byte"]
UNIT_TEXT: dict[Unit, str] = {"nats": "nats per token", "bits_per_byte": "bits per byte"}

LEAST_SPREAD = 4.0
"""Smallest ratio of largest to smallest N from which an exponent can be read."""
LEAST_BUDGETS = 3
"""Fewest FLOP budgets that give an exponent with an error."""
SAME_BUDGET = 0.1
"""Runs whose FLOPs lie within this share of the smallest run's form one budget.

They never agree exactly, because steps and sizes are whole numbers.
"""
_UNIT_ERROR = 10.0
"""Factor between C and 6 N D beyond which one of them is in another unit, such as millions."""


@dataclass(frozen=True)
class Record:
    """One run as read from a folder or a table."""

    label: str
    """Origin of the run, for messages: a folder, or file and line."""
    losses: Mapping[Unit, float]
    """Final validation loss in each known unit."""
    n: float | None = None
    d: float | None = None
    c: float | None = None
    unique: float | None = None
    group: str | None = None
    """Name of the FLOP budget that the run belongs to, where a table says it."""
    vocabulary: str | None = None
    """Hash of the tokenizer: nats per token of two tokenizers are different units."""


@dataclass(frozen=True)
class Runs:
    """Runs, one array per quantity."""

    labels: tuple[str, ...]
    n: Floats
    """Parameters."""
    d: Floats
    """Training tokens."""
    c: Floats
    """Training FLOPs: as recorded, else 6 N D."""
    loss: Floats
    unique: Floats | None
    """Distinct training tokens; None unless every run records them."""
    counts: Counts
    unit: Unit
    tokenizer: str | None = None
    """Hash of the tokenizer that all runs share; None if they differ or one does not record it."""
    groups: tuple[str, ...] | None = None
    """Name of the FLOP budget of every run; None if one has none: then the runs' FLOPs decide."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Sequence[int]) -> Runs:
        """Select runs by their indices."""
        i = np.asarray(index, dtype=int)
        return dataclasses.replace(
            self,
            labels=tuple(self.labels[k] for k in i),
            n=self.n[i],
            d=self.d[i],
            c=self.c[i],
            loss=self.loss[i],
            unique=None if self.unique is None else self.unique[i],
            groups=None if self.groups is None else tuple(self.groups[k] for k in i),
        )

    @property
    def largest_compute(self) -> float:
        """Return 6 N D of the largest run."""
        return float((FLOPS_PER_PARAMETER_TOKEN * self.n * self.d).max())


def assemble_runs(records: Sequence[Record], *, counts: Counts, unit: Unit | None = None) -> Runs:
    """Check records and assemble them into runs.

    Args:
        records: At least one run, each with two of n, d and c.
        counts: Parameters that n counts in all records.
        unit: Unit of the loss to use; None for nats per token if all runs have it, else for bits
            per byte if all have that.

    Raises:
        UserError: A value is missing, not positive or not finite; units are mixed; or a run appears
            twice.
    """
    if not records:
        raise UserError("there are no runs; name run folders or give a table with --data")
    chosen = unit if unit is not None else _common_unit(records)
    for record in records:
        if chosen not in record.losses:
            raise UserError(
                f"{record.label} has no loss in {UNIT_TEXT[chosen]}; leave it out, or choose"
                " another --unit"
            )
    if chosen == "nats":
        _check_one_tokenizer(records)
    rows = [_complete(record) for record in records]
    for record in records:
        _positive(record.label, f"loss ({UNIT_TEXT[chosen]})", record.losses[chosen])
    seen: dict[tuple[float, float, float], str] = {}
    for record, (n, d, _) in zip(records, rows, strict=True):
        key = (n, d, record.losses[chosen])
        if key in seen:
            raise UserError(
                f"{seen[key]} and {record.label} are the same run: N = {n:.6g}, D = {d:.6g}, loss"
                f" {key[2]:.8g} in both; leave one out (counted twice it would narrow every"
                " interval)"
            )
        seen[key] = record.label
    columns = np.array(rows)
    unique = [record.unique for record in records]
    groups = [record.group for record in records]
    tokenizers = {record.vocabulary for record in records}
    return Runs(
        labels=tuple(record.label for record in records),
        n=columns[:, 0],
        d=columns[:, 1],
        c=columns[:, 2],
        loss=np.array([record.losses[chosen] for record in records]),
        unique=None if None in unique else np.array(unique, dtype=float),
        counts=counts,
        unit=chosen,
        tokenizer=tokenizers.pop() if len(tokenizers) == 1 else None,
        groups=None if None in groups else tuple(map(str, groups)),
    )


def _common_unit(records: Sequence[Record]) -> Unit:
    units: tuple[Unit, ...] = ("nats", "bits_per_byte")
    for unit in units:
        if all(unit in record.losses for record in records):
            return unit
    nats = next(record for record in records if "bits_per_byte" not in record.losses)
    bits = next(record for record in records if "nats" not in record.losses)
    raise UserError(
        f"units are mixed: {nats.label} has its loss in nats per token only, {bits.label} in bits"
        " per byte only; a law needs one unit for all runs"
    )


def _check_one_tokenizer(records: Sequence[Record]) -> None:
    known: dict[str, str] = {}
    for record in records:
        if record.vocabulary is not None:
            known.setdefault(record.vocabulary, record.label)
    if len(known) > 1:
        (a, first), (b, second) = list(known.items())[:2]
        raise UserError(
            f"units are mixed: {first} (tokenizer {a[:12]}) and {second} ({b[:12]}) have different"
            " tokens, so that their nats per token cannot be compared; use --unit bits_per_byte"
        )


def _complete(record: Record) -> tuple[float, float, float]:
    """Return N, D and C of a run; two of them determine the third."""
    for name, value in (
        ("N (parameters)", record.n),
        ("D (tokens)", record.d),
        ("C (FLOPs)", record.c),
        ("unique tokens", record.unique),
    ):
        if value is not None:
            _positive(record.label, name, value)
    n, d, c = record.n, record.d, record.c
    if n is not None and d is not None:
        implied = FLOPS_PER_PARAMETER_TOKEN * n * d
        if c is not None and not 1 / _UNIT_ERROR < c / implied < _UNIT_ERROR:
            raise UserError(
                f"{record.label}: C = {c:.4g} FLOPs does not fit N = {n:.4g} parameters and D ="
                f" {d:.4g} tokens (6 N D = {implied:.4g}); give plain numbers, not millions or"
                " PF-days"
            )
        return n, d, implied if c is None else c
    if n is not None and c is not None:
        return n, c / (FLOPS_PER_PARAMETER_TOKEN * n), c
    if d is not None and c is not None:
        return c / (FLOPS_PER_PARAMETER_TOKEN * d), d, c
    raise UserError(f"{record.label}: two of N (parameters), D (tokens) and C (FLOPs) are needed")


def _positive(label: str, name: str, value: float) -> None:
    if math.isnan(value):
        raise UserError(
            f"{label}: {name} is NaN; a run that diverged does not belong into a fit: leave it out"
        )
    if not 0 < value < math.inf:
        raise UserError(f"{label}: {name} is {value:g}; it must be positive and finite")


def budgets(runs: Runs, tolerance: float = SAME_BUDGET) -> list[Runs]:
    """Group runs by FLOP budget, smallest budget first, and sort each group by size.

    Where the runs name their groups, those are the budgets. Otherwise a group begins with the
    smallest C that is in no group yet and holds all runs up to `tolerance` above it.
    """
    groups: list[list[int]] = []
    if runs.groups is not None:
        names = np.array(runs.groups)
        groups = [np.flatnonzero(names == name).tolist() for name in dict.fromkeys(runs.groups)]
        groups.sort(key=lambda group: float(np.log(runs.c[group]).mean()))
    else:
        for i in np.argsort(runs.c, kind="stable"):
            if groups and runs.c[i] <= runs.c[groups[-1][0]] * (1 + tolerance):
                groups[-1].append(int(i))
            else:
                groups.append([int(i)])
    return [
        runs.take(sorted(group, key=lambda i: (runs.n[i], runs.d[i], runs.loss[i])))
        for group in groups
    ]


def check_spread(runs: Runs) -> None:
    """Refuse runs that span too little to show a law.

    Raises:
        UserError: There are fewer than three budgets, or all sizes lie within a factor of four.
    """
    found = len(budgets(runs))
    if found < LEAST_BUDGETS:
        raise UserError(
            f"the runs have {found} FLOP budget{'s' * (found != 1)} (C within {SAME_BUDGET:.0%}"
            f" counts as one); an exponent needs at least {LEAST_BUDGETS}: add budgets"
        )
    spread = float(runs.n.max() / runs.n.min())
    if spread < LEAST_SPREAD:
        raise UserError(
            f"N spreads over a factor of {spread:.2f} only ({runs.n.min():.4g} to"
            f" {runs.n.max():.4g}); an exponent needs at least {LEAST_SPREAD:g}: add smaller and"
            " larger models"
        )
