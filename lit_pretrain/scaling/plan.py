"""Plan: everything that is known about a run before it, from one question to one answer of plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from lit_pretrain.model.config import ModelConfig, ParameterCounts, count_parameters
from lit_pretrain.scaling import memory
from lit_pretrain.scaling.flops import flops_per_token
from lit_pretrain.scaling.hardware import Device, Utilization
from lit_pretrain.scaling.inference import lifetime_optimum
from lit_pretrain.scaling.law import Floats, coordinates, log_loss
from lit_pretrain.scaling.own_law import find_law
from lit_pretrain.scaling.planner import DAY, Budget, Rate, solve
from lit_pretrain.scaling.process import beside, room
from lit_pretrain.scaling.published import DEFAULT, PublishedLaw, law
from lit_pretrain.scaling.recommendation import recommendations
from lit_pretrain.scaling.remedies import remedies
from lit_pretrain.scaling.stages import Stage, StageCost, stage_cost
from lit_pretrain.step_size import StepSize, counted

DRAWS = 1000


@dataclass(frozen=True)
class Assumption:
    """A number that nobody gave, and where it comes from."""

    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Question:
    """What a plan is made for. Exactly one of tokens, FLOPs, dollars and seconds, or a length and seconds."""

    net: ModelConfig
    layout: memory.Layout
    devices: Optional[int]
    stage: Stage = "pretrain"
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
        flops_per_token=cost.flops_per_token, rate=Rate(_rate(q, cost), q.goodput), devices=q.devices, price=q.price,
        tokens=q.tokens, flops=q.flops, dollars=q.dollars, seconds=q.seconds,
        step_rows=q.layout.step_rows,
    )  # fmt: skip
    spread = q.devices is None and budget.devices != q.layout.devices
    layout, noted = _spread(q, budget.devices) if spread else (q.layout, ())
    prediction = _loss(counts, budget.tokens, q) if q.stage == "pretrain" else None  # laws are of networks trained from nothing on text
    return {
        "parameters": {"total": counts.total, "matmul": counts.matmul, "non_embedding": counts.non_embedding},
        "stage": {"name": q.stage, "flops_per_token": cost.flops_per_token, "trained_parameters": _trained(counts, cost), "why": cost.why},
        "flops_per_token": {"six_n": per_token.six_n, "exact": per_token.training, "causal": per_token.causal},
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
            "sharding": layout.sharding, "devices": layout.devices, "rows": layout.rows, "seq_len": layout.seq_len,
            "micro_batches": layout.micro_batches,
            "precision": layout.precision, "activation_checkpointing": layout.checkpointing, "head": layout.head,
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
        "law": found.name, "citation": found.citation, "unit": found.unit, "note": found.note, "params": dict(found.params),
        "form": found.form, "counts": found.counts, "n": n,
        "here": _at(found, drawn, n, tokens, unique),
        "optimum": {"n": best.n, "d": best.d, **_at(found, drawn, best.n, best.d, unique)},
        "outside": found.outside(n, tokens),
        "interval": "95 %, from resamples of the law's runs: it omits the error of the law's form, other data and other recipes"
        if drawn is not None else "none: the runs of this law are not at hand",
    }  # fmt: skip
    if drawn is not None and found.form in ("chinchilla", "tied"):
        low, high = _middle(_optima(drawn, flops))
        answer["optimum"]["n_ci95"], answer["optimum"]["d_ci95"] = [low, high], [flops / 6 / high, flops / 6 / low]
    if unique is not None:
        repeated = law("muennighoff")
        fresh, again = float(repeated.loss(counts.total, tokens)), float(repeated.loss(counts.total, tokens, unique))
        answer["repetition"] = {"loss_added": again - fresh, "law": repeated.name, "citation": repeated.citation}
    if q.inference_tokens is not None and found.form in ("chinchilla", "tied"):
        life = lifetime_optimum(found, n, tokens, q.inference_tokens)
        answer["lifetime"] = {"inference_tokens": q.inference_tokens, **life._asdict(), "share": life.share}
    return answer


def _drawn(found: PublishedLaw) -> Optional[Floats]:
    """Coordinates of the law as resampled runs would give them, coordinates × draws; None where their spread is not known."""
    if found.log_covariance is None:
        return None
    drawn: Floats = np.random.default_rng(0).multivariate_normal(coordinates(found), np.asarray(found.log_covariance), size=DRAWS).T
    return drawn


def _optima(drawn: Floats, flops: float) -> Floats:
    """N* of every draw (Hoffmann et al. 2022, eq. 4)."""
    _, a, b, alpha, *rest = drawn
    beta = rest[0] if rest else alpha  # tied
    log_g = (np.log(alpha / beta) + a - b) / (alpha + beta)
    optima: Floats = np.exp(log_g + beta / (alpha + beta) * np.log(flops / 6.0))
    return optima


def _at(found: PublishedLaw, drawn: Optional[Floats], n: float, d: float, unique: Optional[float]) -> dict[str, Any]:
    interval = None if drawn is None else _middle(np.exp(log_loss(found.form, drawn, n, d)))
    return {"loss": float(found.loss(n, d, unique if found.form == "data" else None)), "ci95": interval}


def _middle(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]


def _recommended(counts: ParameterCounts, budget: Budget, prediction: dict[str, Any]) -> dict[str, Any]:
    nats = prediction["unit"].startswith("nats")  # which the rule of the critical batch is made of
    rules = recommendations(counts.total, budget.tokens, prediction["here"]["loss"] if nats else None)
    rates = [rule.lr for rule in rules if rule.lr is not None]
    batches = [rule.batch_tokens for rule in rules if rule.lr is not None]
    return {"lr": [min(rates), max(rates)], "batch_tokens": [min(batches), max(batches)], "rules": [rule._asdict() for rule in rules]}
