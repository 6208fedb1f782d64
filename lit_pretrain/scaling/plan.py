"""Plan a run: length, time, money, memory, expected loss and recommended batch and learning rate.

A `Question` describes the run; `make_plan` answers it with values that JSON has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.model.config import (
    Checkpointing,
    ModelConfig,
    ParameterCounts,
    count_parameters,
)
from lit_pretrain.scaling import memory
from lit_pretrain.scaling.batch_rules import (
    Kind,
    Recommendation,
    choose,
    muon_recommendations,
    rate_at,
    recommendations,
)
from lit_pretrain.scaling.flops import (
    Device,
    StageCost,
    StageName,
    Utilization,
    beside,
    flops_per_token,
    room,
    stage_cost,
)
from lit_pretrain.scaling.law import Floats, coordinates, log_loss
from lit_pretrain.scaling.memory import remedies
from lit_pretrain.scaling.planner import (
    DAY,
    Budget,
    Rate,
    lifetime_optimum,
    solve,
)
from lit_pretrain.scaling.published import DEFAULT, PublishedLaw, find_law, published_law
from lit_pretrain.step_size import StepSize, counted, fullest

if TYPE_CHECKING:
    from typing_extensions import NotRequired

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
    steps: Sequence[StepSize] = ()
    """The different sizes of an optimizer step; none where it is not known."""
    batch_tokens: BatchSizes | None = None
    """Tokens of the optimizer steps."""
    optimizer: str = "AdamW"
    """Its name."""
    fixed_rows: bool = False
    """Whether the loss depends on the micro-batch, which then is never lowered."""
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
    law: str | None = None
    """None takes the default law, where it covers the run."""
    assumptions: tuple[Assumption, ...] = ()


class ParameterReport(TypedDict):
    """Counts of parameters."""

    total: int
    matmul: int
    non_embedding: int


class StageReport(TypedDict):
    """The kind of training, and what it costs."""

    name: StageName
    flops_per_token: float
    trained_parameters: int
    why: str


class FlopsReport(TypedDict):
    """Training FLOPs per token, by three ways to count."""

    six_n: float
    exact: float
    causal: float


class BatchReport(TypedDict):
    """A size of the batch, and how many steps of a run have it."""

    from_tokens: int
    tokens: int
    steps: float


class LengthReport(TypedDict):
    """Length of the run."""

    tokens: float
    steps: float | None
    tokens_per_step: int | None
    """Of the last step, where they differ."""
    batches: list[BatchReport]
    """The sizes that the run comes to, in their order; none where the step is not known."""
    flops: float
    flops_6nd: float
    tokens_per_parameter: float
    unique_tokens: float | None
    epochs: float | None


class TimeReport(TypedDict):
    """Speed of a device, and the time of the run; None where no speed is known."""

    device: str | None
    devices: int
    dtype: str
    peak_flops: float | None
    mfu: float | None
    goodput: float
    tokens_per_second_per_device: float | None
    days: float | None
    device_hours: float | None


class MoneyReport(TypedDict):
    """Dollars per device-hour, and for the run."""

    price: float | None
    dollars: float | None


class LayoutReport(TypedDict):
    """How the run is laid out on its devices."""

    sharding: memory.Sharding
    devices: int
    copies: int
    """Copies of the sharded network (parallel.dp_replicate)."""
    cp: int
    tp: int
    rows: int
    seq_len: int
    micro_batches: int | None
    precision: str
    activation_checkpointing: Checkpointing
    head: str
    compiled: bool


class MemoryReport(TypedDict):
    """Bytes of one device."""

    layout: LayoutReport
    states: dict[str, float]
    activations: float
    phases: dict[str, float]
    peak: float
    peak_phase: str
    overhead: float
    limit: float | None
    fits: bool | None
    remedies: list[str]


class LossReport(TypedDict):
    """A loss, with the 95 % interval of the law's value."""

    loss: float
    ci95: list[float] | None


class OptimumReport(LossReport):
    """The compute-optimal run of the same FLOPs."""

    n: float
    d: float
    n_ci95: NotRequired[list[float]]
    d_ci95: NotRequired[list[float]]


class RepetitionReport(TypedDict):
    """What reading the data several times adds to the loss."""

    loss_added: float
    law: str
    citation: str


class LifetimeReport(TypedDict):
    """The size that is cheapest to train and serve at the same loss."""

    inference_tokens: float
    n: float
    d: float
    flops: float
    saved: float
    share: float


class PredictionReport(TypedDict):
    """What a law says of the run."""

    law: str
    citation: str
    unit: str
    note: str
    params: dict[str, float]
    form: str
    counts: str
    n: float
    here: LossReport
    optimum: OptimumReport
    outside: list[str]
    interval: str
    repetition: NotRequired[RepetitionReport]
    lifetime: NotRequired[LifetimeReport]


class RuleReport(TypedDict):
    """Batch and learning rate by one published rule."""

    name: str
    batch_tokens: float
    lr: float | None
    formula: str
    source: str
    fitted: str
    """Where it was fitted; empty where that is part of the source, or not known."""
    regret: list[float] | None
    """Share of the loss lost on the Step Law's public runs, on average and at most."""


class ChoiceReport(TypedDict):
    """The batch and the rate to begin with."""

    rule: str
    batch_tokens: int
    lr: float
    option: str
    reason: str
    lr_here: float | None
    """The rate for the batch of the config; None where it has none."""


class RecommendationReport(TypedDict):
    """Ranges of learning rate and batch over the published rules, and one of them."""

    optimizer: str
    """AdamW or Muon: for which the rules are."""
    lr: list[float]
    batch_tokens: list[float]
    rules: list[RuleReport]
    chosen: ChoiceReport | None
    """None for an optimizer that no rule is for."""


class LayoutChoice(TypedDict):
    """One of the best layouts, with what to set and what it costs."""

    mesh: str
    parallel: dict[str, int]
    micro_batch_size: int
    micro_batches: int
    activation_checkpointing: Checkpointing
    tokens_per_second_per_device: float
    mfu: float
    bytes: float
    """Memory of one device."""
    seconds: dict[str, float]
    """Seconds of a step by part."""


class SlowerLayout(TypedDict):
    """A layout that fits and loses."""

    mesh: str
    relative: float
    """Its tokens per second as a share of the best layout's."""
    why: str


class LargeLayout(TypedDict):
    """A mesh of which no layout fits."""

    mesh: str
    bytes: float


class LayoutsReport(TypedDict):
    """The search for the layout that trains fastest."""

    tried: int
    best: list[LayoutChoice]
    slower: list[SlowerLayout]
    """The fastest of each set of axes that the best ones do not show."""
    too_large: list[LargeLayout]


class Plan(TypedDict):
    """The answer to a `Question`, as `plan --json` prints it."""

    parameters: ParameterReport
    stage: StageReport
    flops_per_token: FlopsReport
    solved_for: str
    length: LengthReport
    time: TimeReport
    money: MoneyReport
    memory: MemoryReport
    loss: PredictionReport | None
    no_loss: str | None
    """Why no loss is forecast; None where one is."""
    recommended: RecommendationReport | None
    assumptions: list[dict[str, str]]
    layouts: NotRequired[LayoutsReport]
    """Of a plan that was asked to choose its layout."""


def make_plan(question: Question) -> Plan:
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
        step_rows=q.layout.divided_rows,
    )  # fmt: skip
    spread = q.devices is None and budget.devices != q.layout.devices
    layout, noted = _spread(q, budget.devices) if spread else (q.layout, ())
    no_loss = _why_no_loss(q, counts, budget.tokens)
    prediction = _loss(counts, budget.tokens, q) if no_loss is None else None
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
        "no_loss": no_loss,
        "recommended": (
            _recommended(q, layout, counts, budget, prediction) if q.stage == "pretrain" else None
        ),
        "assumptions": [dataclasses.asdict(assumption) for assumption in (*q.assumptions, *noted)],
    }


def _why_no_loss(q: Question, counts: ParameterCounts, tokens: float) -> str | None:
    """Say why `fit` would forecast no loss either; None where it would."""
    if q.stage != "pretrain":
        return (
            "laws, and the rules for batch and learning rate, are of networks that are trained from"
            " nothing on text"
        )
    law = find_law(q.law or DEFAULT)
    outside = [] if q.law is not None else law.outside(counts.counted(law.counts), tokens)
    if not outside:
        return None
    return f"{law.name} does not cover the run: {'; '.join(outside)}; --law {law.name} extrapolates"


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
    if not q.steps:
        return layout, ()
    asked = layout.rows // layout.group
    divisions = [step.divide(devices, asked, fixed=q.fixed_rows) for step in q.steps]
    size, division = fullest(q.steps, divisions)
    rows = division.micro_batch_size
    said = size.lowered(division, asked)
    noted = () if said is None else (Assumption("micro-batch", counted(rows, "rows"), said),)
    accumulates = any(each.micro_batches > 1 for each in divisions)
    layout = dataclasses.replace(
        layout, rows=rows * layout.group, accumulates=accumulates, step_rows=size.rows
    )
    return layout, noted


def _trained(counts: ParameterCounts, cost: StageCost) -> int:
    return round(counts.total * cost.trainable) + cost.added


def _length(q: Question, budget: Budget, counts: ParameterCounts) -> LengthReport:
    tokens, batch = budget.tokens, q.batch_tokens
    steps = None if batch is None else batch.at(tokens)
    return {
        "tokens": tokens,
        "steps": steps,
        "tokens_per_step": _last_batch(q, tokens),
        "batches": [] if batch is None or steps is None else _batches(batch, steps),
        "flops": budget.flops,
        "flops_6nd": 6.0 * counts.total * tokens,
        "tokens_per_parameter": tokens / counts.total,
        "unique_tokens": q.unique_tokens,
        "epochs": None if q.unique_tokens is None else tokens / q.unique_tokens,
    }


def _last_batch(q: Question, tokens: float) -> int | None:
    """Return the tokens of the last step of a run; None where they are not known."""
    batch = q.batch_tokens
    return None if batch is None else batch.size(max(0, batch.steps(tokens) - 1))


def _batches(batch: BatchSizes, steps: float) -> list[BatchReport]:
    """List the sizes that a run of some steps comes to."""
    ends = [*batch.begins[1:], math.inf]
    return [
        {"from_tokens": batch.until(begin), "tokens": size, "steps": min(end, steps) - begin}
        for begin, size, end in zip(batch.begins, batch.sizes, ends, strict=True)
        if begin < steps
    ]


def _time(q: Question, budget: Budget, cost: StageCost) -> TimeReport:
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


def _memory(q: Question, layout: memory.Layout) -> MemoryReport:
    """Describe the layout, the peak of each phase and what would make the run fit."""
    peak = memory.peak(q.net, layout)
    overhead = beside(peak.bytes, layout.device)
    fits = None if q.limit is None else peak.bytes + overhead <= q.limit
    return {
        "layout": {
            "sharding": layout.sharding, "devices": layout.devices,
            "copies": layout.copies, "cp": layout.cp, "tp": layout.tp, "rows": layout.rows,
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


def _loss(counts: ParameterCounts, tokens: float, q: Question) -> PredictionReport:
    """Predict the loss of the run and of the compute-optimal run of the same FLOPs."""
    found = find_law(q.law or DEFAULT)
    n = counts.counted(found.counts)
    flops = 6.0 * n * tokens
    unique = q.unique_tokens if q.unique_tokens is not None and q.unique_tokens < tokens else None
    best = found.optimum(flops, unique if found.form == "data" else None)
    drawn = _drawn(found)
    optimum = _at(found, drawn, best.n, best.d, unique)
    answer: PredictionReport = {
        "law": found.name, "citation": found.citation, "unit": found.unit, "note": found.note,
        "params": dict(found.params),
        "form": found.form, "counts": found.counts, "n": n,
        "here": _at(found, drawn, n, tokens, unique),
        "optimum": {"n": best.n, "d": best.d, "loss": optimum["loss"], "ci95": optimum["ci95"]},
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
            "n": life.n,
            "d": life.d,
            "flops": life.flops,
            "saved": life.saved,
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
) -> LossReport:
    interval = None if drawn is None else _middle(np.exp(log_loss(found.form, drawn, n, d)))
    return {
        "loss": float(found.loss(n, d, unique if found.form == "data" else None)),
        "ci95": interval,
    }


def _middle(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]


def _recommended(
    q: Question,
    layout: memory.Layout,
    counts: ParameterCounts,
    budget: Budget,
    prediction: PredictionReport | None,
) -> RecommendationReport:
    # The rule of the critical batch needs a loss in nats.
    nats = prediction is not None and prediction["unit"].startswith("nats")
    loss = prediction["here"]["loss"] if prediction is not None and nats else None
    name = q.optimizer.rpartition(".")[2]
    kind: Kind = "Muon" if name == "MuonAdamW" else "AdamW"
    rules = (
        muon_recommendations(budget.tokens)
        if kind == "Muon"
        else recommendations(counts.total, budget.tokens, loss, body=counts.non_embedding)
    )
    chosen: ChoiceReport | None = None
    if name in ("MuonAdamW", "AdamW"):
        unit = layout.seq_len * max(1, layout.devices // (layout.cp * layout.tp))
        found = choose(kind, rules, n=counts.non_embedding, d=budget.tokens, unit=unit)
        rule = next(rule for rule in rules if rule.name == found.rule)
        last = _last_batch(q, budget.tokens)
        here = None if last is None else rate_at(rule, last)
        chosen = {
            "rule": found.rule,
            "batch_tokens": found.batch_tokens,
            "lr": found.lr,
            "option": found.option,
            "reason": found.reason,
            "lr_here": here,
        }
    rates = [rule.lr for rule in rules if rule.lr is not None]
    batches = [rule.batch_tokens for rule in rules if rule.lr is not None]
    return {
        "optimizer": kind,
        "lr": [min(rates), max(rates)],
        "batch_tokens": [min(batches), max(batches)],
        "rules": [_rule(rule) for rule in rules],
        "chosen": chosen,
    }


def _rule(rule: Recommendation) -> RuleReport:
    return {
        "name": rule.name,
        "batch_tokens": rule.batch_tokens,
        "lr": rule.lr,
        "formula": rule.formula,
        "source": rule.source,
        "fitted": rule.fitted,
        "regret": None if rule.regret is None else list(rule.regret),
    }
