"""Batch rules: what published rules say of batch and learning rate, ranked, and one of them chosen.

Rules for AdamW are ranked by their regret on the public runs of the Step Law (Li et al. 2025): in
each of 17 settings of N and D they try 47 to 120 pairs of batch and rate, 1,911 in all. A rule's
regret in a setting is how far the loss at its pair, or at the nearest that was run, lies above the
best (`scripts/batch_rules.py`). No such table is public for Muon.

How large a step may become before it costs loss at equal tokens is measured, by branches: from one
checkpoint they read the same tokens in steps of k times as many, for a short while, each with its
rates moved to its batch (Merrill et al. 2025, 2505.23971). The largest batch whose loss is still
that of the run's own, within a tolerance, is the critical one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lit_pretrain.errors import UserError

Kind = Literal["AdamW", "Muon"]
"""Optimizers that there are rules for."""
Range = tuple[float, float]


class Recommendation(NamedTuple):
    """Batch and learning rate by one published rule."""

    name: str
    batch_tokens: float
    """Tokens per optimizer step."""
    lr: float | None
    """Peak learning rate, of Muon that of matrices; None if the rule gives none."""
    formula: str
    source: str
    parameters: Range | None = None
    """Fewest and most parameters of the runs that it was fitted to; None where not known. Of the
    rules for AdamW they are rounded and not checked against the papers, as `tokens` are.
    """
    tokens: Range | None = None
    """Fewest and most of their tokens; None where not known."""
    regret: Range | None = None
    """Share of the loss lost on the Step Law's public runs, on average and at most."""

    @property
    def fitted(self) -> str:
        """Say where the rule was fitted; empty where that is not known."""
        ranges = (("parameters", self.parameters), ("tokens", self.tokens))
        said = [f"{_range(limits)} {name}" for name, limits in ranges if limits is not None]
        if not said:
            return ""
        # A single run is one of the two that were looked up.
        looked_up = all(limits is None or limits[0] == limits[1] for _, limits in ranges)
        return f"fitted at {' and '.join(said)}{'' if looked_up else ', not checked'}"

    def outside(self, n: float, d: float) -> list[str]:
        """Say how a run of N parameters and D tokens lies outside the rule's runs."""
        said = []
        for name, value, limits in (("N", n, self.parameters), ("D", d, self.tokens)):
            if limits is not None and value > limits[1]:
                said.append(f"{name} {value / limits[1]:,.1f} × above its runs")
            elif limits is not None and value < limits[0]:
                said.append(f"{name} {limits[0] / value:,.1f} × below its runs")
        return said


def _range(limits: Range) -> str:
    low, high = (_short(value) for value in limits)
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.3g} {suffix}"
    return f"{value:.3g}"


def recommendations(
    n: float, d: float, loss: float | None = None, *, body: float | None = None
) -> list[Recommendation]:
    """Apply all published rules for AdamW to one run, that with the least regret first.

    They disagree by factors.

    Args:
        n: Parameters.
        d: Training tokens.
        loss: Predicted final loss in nats per token, for the critical batch.
        body: Parameters without embeddings, which the Step Law counts; None takes `n`.
    """
    c = 6.0 * n * d
    scale = n / 108e6
    step_law_lr = 1.79 * (body or n) ** -0.713 * d**0.307
    rules = [
        Recommendation(
            "Step Law", 0.58 * d**0.571, step_law_lr,
            "B = 0.58 D^0.571, lr = 1.79 N^-0.713 D^0.307",
            "Li et al. 2025, Predictable Scale part I",
            parameters=(6e7, 1.1e9), tokens=(2e9, 1e11), regret=(0.0010, 0.0031),
        ),
        Recommendation(
            "Power Lines", 2048 * 0.0306 * d**0.383, step_law_lr,
            "B = 2048 · 0.0306 D^0.383, lr as the Step Law's",
            "Bergsma et al. 2025, Power Lines; 0.0306 not checked",
            parameters=(1.1e8, 3.3e9), regret=(0.0016, 0.0037),
        ),
        Recommendation(
            "OLMo ladder", 2048 * 160 * scale ** (2 / 3), 0.0047 * scale ** (-1 / 3) / 2,
            "B = 2048 · 160 (N / 108e6)^(2/3), lr = 0.0047 (N / 108e6)^(-1/3) / 2",
            "OLMo's model ladder; after Porian et al. 2024",
            parameters=(5e6, 1.1e8), regret=(0.0053, 0.0109),
        ),
        Recommendation(
            "DeepSeek", 0.2920 * c**0.3271, 0.3118 * c**-0.125,
            "B = 0.2920 C^0.3271, lr = 0.3118 C^-0.125",
            "DeepSeek-AI 2024, DeepSeek LLM, eq. 1; fitted on 1e17 to 2e19 FLOPs, not checked",
            regret=(0.0076, 0.0113),
        ),
    ]  # fmt: skip
    if loss is not None:
        rules.append(
            Recommendation(
                "critical batch",
                2e8 / loss ** (1 / 0.21),
                None,
                "B = 2e8 / L^(1/0.21)",
                "Kaplan et al. 2020, eq. 1.4; above it larger steps pay little",
            )
        )
    return rules


NANOCHAT_TOKENS = 10.5 * (12 * 12 * 768**2 + 768 * 32_768)
"""Tokens of nanochat's d12: 10.5 for each parameter of its matrices and head."""
MUON_TOKENS = 120 * 4096
"""Tokens of configs/pretrain/muon.yaml, at which its rates were raced."""


def muon_recommendations(d: float) -> list[Recommendation]:
    """Apply the rules for Muon to a run of D tokens, the one tuned nearest to it first.

    The learning rate is that of matrices; the other groups' move by the same factor.
    """
    nanochat_batch = 2**19 * (d / NANOCHAT_TOKENS) ** 0.383
    muon_batch = 4096 * (d / MUON_TOKENS) ** 0.383
    rules = [
        Recommendation(
            "nanochat", nanochat_batch, 0.02 * (nanochat_batch / 2**19) ** 0.5,
            "B = 2^19 (D / 1.16e9)^0.383, lr = 0.02 (B / 2^19)^0.5",
            "karpathy/nanochat, d12; the exponents are AdamW's",
            tokens=(NANOCHAT_TOKENS, NANOCHAT_TOKENS),
        ),
        Recommendation(
            "muon.yaml", muon_batch,
            0.04 * (muon_batch / 4096) ** 0.5 * (d / MUON_TOKENS) ** -0.3,
            "B = 4096 (D / 4.9e5)^0.383, lr = 0.04 (B / 4096)^0.5 (D / 4.9e5)^-0.3",
            "configs/pretrain/muon.yaml; exponents after Power Lines and Marin",
            tokens=(MUON_TOKENS, MUON_TOKENS),
        ),
    ]  # fmt: skip
    return sorted(rules, key=lambda rule: abs(math.log(d / rule.tokens[0])) if rule.tokens else 0.0)


class RateAndBatch(NamedTuple):
    """The batch and the rate to begin with."""

    rule: str
    batch_tokens: int
    lr: float
    option: str
    """Name of the option that sets the rate."""
    reason: str


def rate_at(rule: Recommendation, batch_tokens: float) -> float:
    """Return a rule's learning rate for another batch than its own: it goes with √B."""
    assert rule.lr is not None
    return rule.lr * math.sqrt(batch_tokens / rule.batch_tokens)


def choose(
    kind: Kind, rules: list[Recommendation], *, n: float, d: float, unit: int
) -> RateAndBatch:
    """Choose a rule for a run, and say why.

    Args:
        kind: Of the optimizer.
        rules: Those for it, the first one the best.
        n: Parameters, as the rule counts them.
        d: Training tokens.
        unit: Tokens of a row on every device; a batch is a power of two of them.
    """
    rule, *others = [rule for rule in rules if rule.lr is not None]
    batch = unit * 2 ** max(0, round(math.log2(rule.batch_tokens / unit)))
    batches = [rule.batch_tokens, *(other.batch_tokens for other in others)]
    factor = max(batches) / min(batches)
    if kind == "AdamW":
        best, second = (its.regret for its in (rule, others[0]))
        assert best is not None
        assert second is not None
        why = (
            f"{rule.name} has the least regret on the Step Law's public runs, {best[0]:.2%} of the"
            f" loss on average. It was fitted to them; {others[0].name} was not, and its batch"
            f" comes close ({second[0]:.2%})"
        )
    else:
        why = (
            f"{rule.name} was tuned nearest to this length; there are no public runs with Muon to"
            " rank rules by. The rates of the other groups move by the same factor as matrix_lr"
        )
    beyond = rule.outside(n, d)
    if beyond:
        why += (
            f". Here it extrapolates ({', '.join(beyond)}), and the batches of the rules differ by"
            f" a factor of {factor:,.1f}: measure, with --noise_scale_every and `lit_pretrain"
            " scaling critical-batch`"
        )
    option = "lr" if kind == "AdamW" else "matrix_lr"
    return RateAndBatch(rule.name, batch, rate_at(rule, batch), f"model.optimizer.{option}", why)


class BranchOutcome(NamedTuple):
    """What a branch came to."""

    factor: float
    """Its batch as a multiple of the run's."""
    batch_tokens: int
    steps: int
    loss: float
    """Validation loss at its end."""
    curve: Sequence[tuple[float, float]]
    """Tokens since the checkpoint and mean training loss, window by window."""


def moved(settings: Mapping[str, Any], *, factor: float, share: float) -> dict[str, Any]:
    """Move the settings of an optimizer to a batch that is larger by a factor.

    Rates and decays grow by √factor and the second moment's decay per step becomes β₂^factor, so
    that its memory and that of the weights stay the same in tokens (Malladi et al. 2022,
    2205.10287).

    Args:
        settings: Those of the run, by name.
        factor: Of the batch.
        share: Of the peak rate that the run has reached where it branches.

    Raises:
        UserError: There is no learning rate among them.
    """
    root, found = math.sqrt(factor), dict(settings)
    # A rate that is not given follows another one.
    rates = [
        name
        for name, value in found.items()
        if (name == "lr" or name.endswith("_lr")) and value is not None
    ]
    if not rates:
        raise UserError(
            "model.optimizer has neither lr nor a rate by role (matrix_lr, …), so that no branch"
            " can be given a rate for its batch"
        )
    for name in rates:
        found[name] *= share * root
    for name in found:
        if name == "weight_decay" or name.endswith("_weight_decay"):
            found[name] *= root
    if found.get("betas") is not None:
        found["betas"] = _slower(found["betas"], factor)
    if found.get("role_betas"):
        found["role_betas"] = {
            role: _slower(betas, factor) for role, betas in found["role_betas"].items()
        }
    return found


def _slower(betas: Sequence[float], factor: float) -> list[float]:
    return [*betas[:-1], betas[-1] ** factor]


def critical_factor(outcomes: Sequence[BranchOutcome], tolerance: float) -> float:
    """Return the largest factor whose loss is within a tolerance of that of factor 1."""
    own = next(its.loss for its in outcomes if its.factor == 1)
    return max(its.factor for its in outcomes if its.loss <= own + tolerance)
