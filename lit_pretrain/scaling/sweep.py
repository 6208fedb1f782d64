"""Plan the runs of a sweep over FLOP budgets × model sizes.

One published rule sets the batch and the learning rate of every run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, ParameterCounts, count_parameters
from lit_pretrain.scaling.batch_rules import recommendations
from lit_pretrain.scaling.flops import flops_per_token
from lit_pretrain.step_size import StepSize

RuleName = Literal["deepseek", "step_law", "olmo", "none"]
RULES: dict[RuleName, str] = {"deepseek": "DeepSeek", "step_law": "Step Law", "olmo": "OLMo ladder"}
"""Name of each rule in `recommendations`."""
LEAST_STEPS = 100
"""A run of fewer optimizer steps is mostly warm-up and decay."""


class SweepRule(NamedTuple):
    """How batch and learning rate follow from a run's size and length."""

    name: RuleName
    lr_factor: float = 1.0
    """Factor on the rule's learning rate, the same for all runs."""
    batch_factor: float = 1.0
    """Factor on the rule's batch, the same for all runs."""

    @property
    def text(self) -> str:
        """Describe the rule in words, with its source."""
        if self.name == "none":
            return "batch and learning rate as the base has them, the same for all sizes"
        rule = next(found for found in recommendations(1e8, 1e9) if found.name == RULES[self.name])
        factors = "" if self.lr_factor == 1 else f", lr × {self.lr_factor:g}"
        factors += "" if self.batch_factor == 1 else f", B × {self.batch_factor:g}"
        fitted = f"; {rule.fitted}" if rule.fitted else ""
        return (
            f"{rule.name}: {rule.formula}{factors} ({rule.source}{fitted}); B in whole rows, a"
            " power of two of them on each device"
        )


@dataclass(frozen=True)
class Shared:
    """What all runs of a sweep have in common."""

    seq_len: int
    micro_batch_size: int
    """Most rows of a micro-batch on one device."""
    devices: int
    """Devices of one run."""
    batch_tokens: int | None
    """Tokens per optimizer step; None where the rule sets them."""
    lr: float | None
    """Learning rate of the base config; None if its optimizer has several."""
    unique_tokens: float | None
    """Distinct training tokens; None if the dataset is not on this machine."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    budget: float
    """FLOPs of its budget."""
    size: str
    """Name of its size."""
    net: ModelConfig
    counts: ParameterCounts
    steps: int
    batch_tokens: int
    micro_batch_size: int
    lr: float | None
    flops: float
    """Training FLOPs of its whole steps, with full attention, as `fit` counts them."""
    unique_tokens: float | None

    @property
    def tokens(self) -> int:
        """Return the training tokens D."""
        return self.steps * self.batch_tokens

    @property
    def epochs(self) -> float | None:
        """Return how often the run reads its data; None if the size of the data is not known."""
        return None if self.unique_tokens is None else self.tokens / self.unique_tokens


def sweep_runs(
    budgets: Sequence[tuple[float, Sequence[str]]],
    sizes: Mapping[str, ModelConfig],
    shared: Shared,
    rule: SweepRule,
) -> list[SweepRun]:
    """Plan all runs of a sweep, smallest budget first, each budget in the order of its sizes.

    Args:
        budgets: FLOPs and the names of the sizes that spend them.
        sizes: Shapes by name.
        shared: What all runs have in common.
        rule: Rule for batch and learning rate.

    Raises:
        UserError: A budget is not positive, appears twice, names an unknown size, or is too small
            for a size.
    """
    runs: list[SweepRun] = []
    for flops, names in sorted(budgets, key=lambda budget: budget[0]):
        if not 0 < flops < math.inf:
            raise UserError(f"budgets: {flops:g} FLOPs must be positive and finite")
        for name in names:
            if name not in sizes:
                raise UserError(
                    f"budgets: {flops:g} FLOPs names the size {name!r}, which is not among sizes:"
                    f" {', '.join(sizes)}"
                )
            runs.append(_run(flops, name, sizes[name], shared, rule))
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"budgets: the run {twice[0]} is there twice; give each budget, and each size of a"
            " budget, once"
        )
    return runs


def _run(flops: float, size: str, net: ModelConfig, shared: Shared, rule: SweepRule) -> SweepRun:
    """Plan one run: batch, learning rate and number of steps."""
    counts, per_token = count_parameters(net), flops_per_token(net, shared.seq_len).training
    tokens, lr = flops / per_token, shared.lr
    if rule.name == "none":
        assert shared.batch_tokens is not None
        batch = shared.batch_tokens
    else:
        found = next(r for r in recommendations(counts.total, tokens) if r.name == RULES[rule.name])
        assert found.lr is not None
        lr = found.lr * rule.lr_factor
        wanted = found.batch_tokens * rule.batch_factor / shared.seq_len / shared.devices
        batch = shared.devices * shared.seq_len * 2 ** max(0, round(math.log2(wanted)))
    division = StepSize(batch, shared.seq_len).divide(shared.devices, shared.micro_batch_size)
    # `fit` rounds a length in FLOPs up to whole steps. Round to the nearest here, so that the runs
    # of one budget spend as nearly the same as they can.
    steps = round(tokens / batch)
    if steps < 1:
        raise UserError(
            f"budgets: {flops:g} FLOPs are {tokens:,.0f} tokens of the size {size}, less than one"
            f" step of {batch:,}; leave the size out of this budget, or give a larger budget"
        )
    return SweepRun(
        name=f"{flops:.4g}_{size}".replace("e+", "e"),
        budget=flops,
        size=size,
        net=net,
        counts=counts,
        steps=steps,
        batch_tokens=batch,
        micro_batch_size=division.micro_batch_size,
        lr=lr,
        flops=steps * batch * per_token,
        unique_tokens=shared.unique_tokens,
    )


def warnings(runs: Sequence[SweepRun], rule: SweepRule) -> list[str]:
    """List the reasons why a sweep says less than it seems to."""
    found = []
    if rule.name == "none":
        found.append(
            "one learning rate and batch for all sizes: untuned they move the exponent of N*"
            " (Porian et al. 2024: 0.57 before tuning, 0.50 after)"
        )
    short = [run for run in runs if run.steps < LEAST_STEPS]
    if short:
        found.append(
            f"fewer than {LEAST_STEPS} steps:"
            f" {', '.join(f'{run.name} ({run.steps})' for run in short)}; take a smaller batch"
        )
    repeated = [run for run in runs if (run.epochs or 0) > 1]
    if repeated:
        most = max(repeated, key=lambda run: run.epochs or 0)
        found.append(
            f"{len(repeated)} of {len(runs)} runs read the data more than once (most: {most.name},"
            f" {most.epochs:.2f} times): repeated text teaches less, which `scaling fit --law data`"
            " takes into account"
        )
    return found
