"""Plan: everything that is known about a run before it, from one question to one answer of
plain values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

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

# Recommendations: batch and learning rate by published rules. They disagree by factors: shown as a
# range, each rule by its name.


class Recommendation(NamedTuple):
    """What one rule says."""

    name: str
    batch_tokens: float
    """Tokens of an optimizer step."""
    lr: Optional[float]
    """Peak learning rate of AdamW; None where the rule has none."""
    formula: str
    source: str


def recommendations(n: float, d: float, loss: Optional[float] = None) -> list[Recommendation]:
    """All rules for one run.

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
            "Li et al. 2025, Predictable Scale part I; fitted up to 1 B parameters and 100 B tokens",
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


PLAN_DRAWS = 1000


@dataclass(frozen=True)
class Assumption:
    """A number that nobody gave, and where it comes from."""

    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Question:
    """What a plan is made for. Exactly one of tokens, FLOPs, dollars and seconds, or a length
    and seconds.
    """

    net: ModelConfig
    layout: memory.Layout
    devices: Optional[int]
    stage: StageName = "pretrain"
    lora_rank: int = 16
    step_tokens: Optional[int] = None
    """Tokens of an optimizer step."""
    device: Optional[Device] = None
    dtype: str = "bf16"
    mfu: Optional[Utilization] = None
    tokens_per_second: Optional[float] = None
    goodput: float = 1.0
    price: Optional[float] = None
    tokens: Optional[float] = None
    flops: Optional[float] = None
    dollars: Optional[float] = None
    seconds: Optional[float] = None
    limit: Optional[float] = None
    """Bytes of one device."""
    unique_tokens: Optional[float] = None
    inference_tokens: Optional[float] = None
    law: str = DEFAULT
    assumptions: tuple[Assumption, ...] = ()


def make_plan(question: Question) -> dict[str, Any]:
    """Answer a question, in values that JSON has.

    Raises:
        UserError: What is given does not determine a run.
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
    prediction = (
        _loss(counts, budget.tokens, q) if q.stage == "pretrain" else None
    )  # laws are of networks trained from nothing on text
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


def _rate(q: Question, cost: StageCost) -> Optional[float]:
    if q.tokens_per_second is not None:
        return q.tokens_per_second
    peak = None if q.device is None else q.device.peak(q.dtype)
    return None if peak is None or q.mfu is None else peak * q.mfu.value / cost.flops_per_token


def _spread(q: Question, devices: int) -> tuple[memory.Layout, tuple[Assumption, ...]]:
    """Lay the run out on the devices that were solved for; note a smaller micro-batch."""
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
        "remedies": [] if fits is not False or q.limit is None else remedies(q.net, layout, room(q.limit, layout.device)),
    }  # fmt: skip


def _loss(counts: ParameterCounts, tokens: float, q: Question) -> dict[str, Any]:
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
        "interval": "95 %, from resamples of the law's runs: it omits the error of the law's form, other data and other recipes"
        if drawn is not None else "none: the runs of this law are not at hand",
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


def _drawn(found: PublishedLaw) -> Optional[Floats]:
    """Coordinates of the law as resampled runs would give them, coordinates × draws; None where
    their spread is not known.
    """
    if found.log_covariance is None:
        return None
    drawn: Floats = (
        np.random.default_rng(0)
        .multivariate_normal(coordinates(found), np.asarray(found.log_covariance), size=PLAN_DRAWS)
        .T
    )
    return drawn


def _optima(drawn: Floats, flops: float) -> Floats:
    """N* of every draw (Hoffmann et al. 2022, eq. 4)."""
    _, a, b, alpha, *rest = drawn
    beta = rest[0] if rest else alpha  # tied
    log_g = (np.log(alpha / beta) + a - b) / (alpha + beta)
    optima: Floats = np.exp(log_g + beta / (alpha + beta) * np.log(flops / 6.0))
    return optima


def _at(
    found: PublishedLaw, drawn: Optional[Floats], n: float, d: float, unique: Optional[float]
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
    nats = prediction["unit"].startswith("nats")  # which the rule of the critical batch is made of
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
