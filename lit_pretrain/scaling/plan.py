"""Plan a run: length, time, money, memory, expected loss and recommended batch and learning rate.

A `Question` describes the run; `make_plan` answers it with values that JSON has.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lit_pretrain.model.config import ModelConfig, ParameterCounts, count_parameters
from lit_pretrain.scaling import memory
from lit_pretrain.scaling.flops import StageCost, StageName, flops_per_token, stage_cost
from lit_pretrain.scaling.hardware import Device, Utilization, beside, room
from lit_pretrain.scaling.law import Floats, coordinates, log_loss
from lit_pretrain.scaling.memory import remedies
from lit_pretrain.scaling.planner import DAY, Budget, Rate, lifetime_optimum, solve
from lit_pretrain.scaling.published import DEFAULT, PublishedLaw, find_law, published_law
from lit_pretrain.step_size import StepSize, counted

_DRAWS = 1000
"""Laws to draw for the intervals of a published law."""


@dataclass(frozen=True)
class Assumption:
    """A value that the user did not give, with its source."""

    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Question:
    """The run to plan.

    Exactly one of tokens, FLOPs, dollars and seconds is given, or a length (tokens or FLOPs) and
    seconds.
    """

    net: ModelConfig
    layout: memory.Layout
    devices: int | None
    """Number of devices; None to solve for it."""
    stage: StageName = "pretrain"
    lora_rank: int = 16
    step_tokens: int | None = None
    """Tokens per optimizer step."""
    device: Device | None = None
    dtype: str = "bf16"
    mfu: Utilization | None = None
    tokens_per_second: float | None = None
    goodput: float = 1.0
    price: float | None = None
    """Dollars per device-hour."""
    tokens: float | None = None
    flops: float | None = None
    dollars: float | None = None
    seconds: float | None = None
    limit: float | None = None
    """Memory of one device in bytes."""
    unique_tokens: float | None = None
    inference_tokens: float | None = None
    law: str = DEFAULT
    assumptions: tuple[Assumption, ...] = ()


def make_plan(question: Question) -> dict[str, Any]:
    """Answer a question in values that JSON has.

    Raises:
        UserError: The question does not determine a run.
    """
    q = question
    counts, per_token = count_parameters(q.net), flops_per_token(q.net, q.layout.seq_len)
    cost = stage_cost(q.net, q.layout.seq_len, q.stage, q.lora_rank)
    budget = solve(
        flops_per_token=cost.flops_per_token, rate=Rate(_rate(q, cost), q.goodput),
        devices=q.devices, price=q.price,
        tokens=q.tokens, flops=q.flops, dollars=q.dollars, seconds=q.seconds,
        step_rows=q.layout.step_rows,
    )  # fmt: skip
    spread = q.devices is None and budget.devices != q.layout.devices
    layout, noted = _spread(q, budget.devices) if spread else (q.layout, ())
    # The laws hold for networks that are trained from scratch on text.
    prediction = _loss(counts, budget.tokens, q) if q.stage == "pretrain" else None
    return {
        "parameters": {
            "total": counts.total,
            "matmul": counts.matmul,
            "non_embedding": counts.non_embedding,
        },
        "stage": {
            "name": q.stage,
            "flops_per_token": cost.flops_per_token,
            "trained_parameters": _trained(counts, cost),
            "why": cost.why,
        },
        "flops_per_token": {
            "six_n": per_token.six_n,
            "exact": per_token.training,
            "causal": per_token.causal,
        },
        "solved_for": budget.solved,
        "length": _length(q, budget, counts),
        "time": _time(q, budget, cost),
        "money": {"price": q.price, "dollars": budget.dollars},
        "memory": _memory(q, layout),
        "loss": prediction,
        "recommended": None if prediction is None else _recommended(counts, budget, prediction),
        "assumptions": [dataclasses.asdict(assumption) for assumption in (*q.assumptions, *noted)],
    }


def _rate(q: Question, cost: StageCost) -> float | None:
    if q.tokens_per_second is not None:
        return q.tokens_per_second
    peak = None if q.device is None else q.device.peak(q.dtype)
    return None if peak is None or q.mfu is None else peak * q.mfu.value / cost.flops_per_token


def _spread(q: Question, devices: int) -> tuple[memory.Layout, tuple[Assumption, ...]]:
    """Lay the run out on the solved number of devices; note a smaller micro-batch."""
    layout = q.layout
    sharding = "ddp" if layout.sharding == "none" and devices > 1 else layout.sharding
    layout = dataclasses.replace(layout, devices=devices, sharding=sharding)
    if q.step_tokens is None:
        return layout, ()
    step = StepSize(q.step_tokens, layout.seq_len)
    division = step.divide(devices, layout.rows)
    said = step.lowered(division, layout.rows)
    rows, accumulates = division.micro_batch_size, division.micro_batches > 1
    noted = () if said is None else (Assumption("micro-batch", counted(rows, "rows"), said),)
    return dataclasses.replace(layout, rows=rows, accumulates=accumulates), noted


def _trained(counts: ParameterCounts, cost: StageCost) -> int:
    return round(counts.total * cost.trainable) + cost.added


def _length(q: Question, budget: Budget, counts: ParameterCounts) -> dict[str, Any]:
    tokens = budget.tokens
    return {
        "tokens": tokens,
        "steps": None if q.step_tokens is None else tokens / q.step_tokens,
        "tokens_per_step": q.step_tokens,
        "flops": budget.flops,
        "flops_6nd": 6.0 * counts.total * tokens,
        "tokens_per_parameter": tokens / counts.total,
        "unique_tokens": q.unique_tokens,
        "epochs": None if q.unique_tokens is None else tokens / q.unique_tokens,
    }


def _time(q: Question, budget: Budget, cost: StageCost) -> dict[str, Any]:
    rate, peak = _rate(q, cost), None if q.device is None else q.device.peak(q.dtype)
    return {
        "device": None if q.device is None else q.device.name,
        "devices": budget.devices,
        "dtype": q.dtype,
        "peak_flops": peak,
        "mfu": None if rate is None or peak is None else rate * cost.flops_per_token / peak,
        "goodput": budget.goodput,
        "tokens_per_second_per_device": rate,
        "days": None if budget.seconds is None else budget.seconds / DAY,
        "device_hours": budget.device_hours,
    }


def _memory(q: Question, layout: memory.Layout) -> dict[str, Any]:
    """Describe the layout, the peak of each phase and what would make the run fit."""
    peak = memory.peak(q.net, layout)
    overhead = beside(peak.bytes, layout.device)
    fits = None if q.limit is None else peak.bytes + overhead <= q.limit
    return {
        "layout": {
            "sharding": layout.sharding, "devices": layout.devices, "rows": layout.rows,
            "seq_len": layout.seq_len,
            "micro_batches": layout.micro_batches,
            "precision": layout.precision, "activation_checkpointing": layout.checkpointing,
            "head": layout.head,
            "compiled": layout.compiled,
        },
        "states": peak.states._asdict(),
        "activations": peak.activations,
        "phases": peak.phases,
        "peak": peak.bytes,
        "peak_phase": peak.phase,
        "overhead": overhead,
        "limit": q.limit,
        "fits": fits,
        "remedies": (
            [] if fits is not False or q.limit is None
            else remedies(q.net, layout, room(q.limit, layout.device))
        ),
    }  # fmt: skip


def _loss(counts: ParameterCounts, tokens: float, q: Question) -> dict[str, Any]:
    """Predict the loss of the run and of the compute-optimal run of the same FLOPs."""
    found = find_law(q.law)
    n = counts.counted(found.counts)
    flops = 6.0 * n * tokens
    unique = q.unique_tokens if q.unique_tokens is not None and q.unique_tokens < tokens else None
    best = found.optimum(flops, unique if found.form == "data" else None)
    drawn = _drawn(found)
    answer: dict[str, Any] = {
        "law": found.name, "citation": found.citation, "unit": found.unit, "note": found.note,
        "params": dict(found.params),
        "form": found.form, "counts": found.counts, "n": n,
        "here": _at(found, drawn, n, tokens, unique),
        "optimum": {"n": best.n, "d": best.d, **_at(found, drawn, best.n, best.d, unique)},
        "outside": found.outside(n, tokens),
        "interval": (
            "95 %, from resamples of the law's runs: it omits the error of the law's form, other"
            " data and other recipes"
            if drawn is not None else "none: the runs of this law are not at hand"
        ),
    }  # fmt: skip
    if drawn is not None and found.form in ("chinchilla", "tied"):
        low, high = _middle(_optima(drawn, flops))
        answer["optimum"]["n_ci95"], answer["optimum"]["d_ci95"] = (
            [low, high],
            [flops / 6 / high, flops / 6 / low],
        )
    if unique is not None:
        repeated = published_law("muennighoff")
        fresh, again = (
            float(repeated.loss(counts.total, tokens)),
            float(repeated.loss(counts.total, tokens, unique)),
        )
        answer["repetition"] = {
            "loss_added": again - fresh,
            "law": repeated.name,
            "citation": repeated.citation,
        }
    if q.inference_tokens is not None and found.form in ("chinchilla", "tied"):
        life = lifetime_optimum(found, n, tokens, q.inference_tokens)
        answer["lifetime"] = {
            "inference_tokens": q.inference_tokens,
            **life._asdict(),
            "share": life.share,
        }
    return answer


def _drawn(found: PublishedLaw) -> Floats | None:
    """Draw coordinates of the law, coordinates × draws; None if their covariance is not known."""
    if found.log_covariance is None:
        return None
    drawn: Floats = (
        np.random.default_rng(0)
        .multivariate_normal(coordinates(found), np.asarray(found.log_covariance), size=_DRAWS)
        .T
    )
    return drawn


def _optima(drawn: Floats, flops: float) -> Floats:
    """Compute N* of every draw (Hoffmann et al. 2022, eq. 4)."""
    _, a, b, alpha, *rest = drawn
    beta = rest[0] if rest else alpha  # a tied law has no beta of its own
    log_g = (np.log(alpha / beta) + a - b) / (alpha + beta)
    optima: Floats = np.exp(log_g + beta / (alpha + beta) * np.log(flops / 6.0))
    return optima


def _at(
    found: PublishedLaw, drawn: Floats | None, n: float, d: float, unique: float | None
) -> dict[str, Any]:
    interval = None if drawn is None else _middle(np.exp(log_loss(found.form, drawn, n, d)))
    return {
        "loss": float(found.loss(n, d, unique if found.form == "data" else None)),
        "ci95": interval,
    }


def _middle(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]


def _recommended(
    counts: ParameterCounts, budget: Budget, prediction: dict[str, Any]
) -> dict[str, Any]:
    nats = prediction["unit"].startswith("nats")  # the rule of the critical batch needs nats
    rules = recommendations(
        counts.total, budget.tokens, prediction["here"]["loss"] if nats else None
    )
    rates = [rule.lr for rule in rules if rule.lr is not None]
    batches = [rule.batch_tokens for rule in rules if rule.lr is not None]
    return {
        "lr": [min(rates), max(rates)],
        "batch_tokens": [min(batches), max(batches)],
        "rules": [rule._asdict() for rule in rules],
    }


class Recommendation(NamedTuple):
    """Batch and learning rate by one published rule."""

    name: str
    batch_tokens: float
    """Tokens per optimizer step."""
    lr: float | None
    """Peak learning rate of AdamW; None if the rule gives none."""
    formula: str
    source: str


def recommendations(n: float, d: float, loss: float | None = None) -> list[Recommendation]:
    """Apply all published rules to one run. They disagree by factors.

    Args:
        n: Parameters.
        d: Training tokens.
        loss: Predicted final loss in nats per token, for the critical batch.
    """
    c = 6.0 * n * d
    scale = n / 108e6
    rules = [
        Recommendation(
            "DeepSeek", 0.2920 * c**0.3271, 0.3118 * c**-0.125,
            "B = 0.2920 C^0.3271, lr = 0.3118 C^-0.125",
            "DeepSeek-AI 2024, DeepSeek LLM, eq. 1",
        ),
        Recommendation(
            "Step Law", 0.58 * d**0.571, 1.79 * n**-0.713 * d**0.307,
            "B = 0.58 D^0.571, lr = 1.79 N^-0.713 D^0.307",
            "Li et al. 2025, Predictable Scale part I; fitted up to 1 B parameters and 100 B"
            " tokens",
        ),
        Recommendation(
            "OLMo ladder", 2048 * 160 * scale ** (2 / 3), 0.0047 * scale ** (-1 / 3) / 2,
            "B = 2048 · 160 (N / 108e6)^(2/3), lr = 0.0047 (N / 108e6)^(-1/3) / 2",
            "OLMo's model ladder; after Porian et al. 2024",
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
