"""Report: what an evaluation found, as a page of text and as JSON; a score never stands without what it was measured with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lit_pretrain.evaluate.harness import Score


def as_json(conditions: Mapping[str, Any], held_out: Mapping[str, Mapping[str, float]], scores: Sequence[Score]) -> dict[str, Any]:
    """The whole report as JSON values.

    Args:
        conditions: What it was measured on and with.
        held_out: Source -> loss (nats per token), perplexity and bits per byte.
        scores: Of the tasks.
    """
    tasks = {score.task: {**dataclasses.asdict(score), "status": score.status._asdict()} for score in scores}
    return {"conditions": dict(conditions), "held_out": {name: dict(values) for name, values in held_out.items()}, "tasks": tasks}


def flat(held_out: Mapping[str, Mapping[str, float]], scores: Sequence[Score]) -> dict[str, float]:
    """The figures under one name each, as TensorBoard and metrics.jsonl want them."""
    figures = {f"eval/{key}/{source}": value for source, values in held_out.items() for key, value in values.items()}
    return figures | {f"eval_{score.task}/{metric}": value for score in scores for metric, value in score.metrics.items()}


def page(conditions: Mapping[str, Any], held_out: Mapping[str, Mapping[str, float]], scores: Sequence[Score]) -> list[str]:
    """The report as lines: conditions, then a table of the held-out text by source, then one of the tasks."""
    width = max(map(len, conditions), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in conditions.items()]
    if held_out:
        lines += ["", f"{'held-out text':<20} {'nats/token':>11} {'perplexity':>11} {'bits/byte':>10}"]
        for name, values in held_out.items():
            lines.append(f"{name:<20} {values['loss']:>11.4f} {values['perplexity']:>11.2f} {values['bits_per_byte']:>10.4f}")
    if scores:
        lines += ["", f"{'task':<20} {'metric':<24} {'value':>10} {'±':>8} {'items':>6} {'shots':>5}  contamination"]
        for score in scores:
            for i, (metric, value) in enumerate(score.metrics.items()):
                error = f"{_short(score.errors[metric]) if metric in score.errors else '':>8}"
                where = f"{score.status.verdict}: {score.status.reason}" if i == 0 else ""
                name = score.task if i == 0 else ""
                lines.append(f"{name:<20} {metric:<24} {_short(value):>10} {error} {score.items:>6} {score.shots:>5}  {where}".rstrip())
    return lines


def _short(value: float) -> str:
    """Four decimals, or, for the perplexity of a network that knows nothing, four digits."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
