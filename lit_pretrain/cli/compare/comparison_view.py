"""The tables, the JSON and the picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.compare.contenders import RunComparison, training_differences
from lit_pretrain.cli.runs.run_list import shortened
from lit_pretrain.cli.scaling.options import aligned
from lit_pretrain.compare.comparison import Against, as_record
from lit_pretrain.compare.equal_budgets import read_curve
from lit_pretrain.compare.intervals import Interval
from lit_pretrain.report.charts import COLOURS, clock, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_SHARE = 0.0005
"""Classes with a smaller share of all spans are left out of the printed table."""


def comparison_record(findings: RunComparison) -> Mapping[str, Any]:
    """Write everything as plain values, for JSON."""
    trained = training_differences(findings.contenders)
    return {
        "configs": {
            contender.name: {
                "runs": [entry.run.path for entry in contender.entries],
                "checkpoints": [str(entry.checkpoint) for entry in contender.entries],
                "steps": contender.entries[0].step,
                "differs": differs,
                "training_loss_difference": trained.get(contender.name),
            }
            for contender, differs in zip(findings.contenders, findings.differs, strict=True)
        },
        "equal": [
            {
                "axis": budget.axis,
                "at": budget.at,
                "loss": {
                    contender.name: loss
                    for contender, loss in zip(findings.contenders, budget.losses, strict=True)
                },
            }
            for budget in findings.budgets
        ],
        "documents": None if findings.compared is None else as_record(findings.compared),
        "notes": findings.notes,
    }


# ------------------------------------------------------------------ for people


def comparison_table(findings: RunComparison) -> str:
    """Write all tables."""
    lines = [f"baseline: {findings.contenders[0].name}", *_differing(findings)]
    if findings.budgets:
        head = ("at equal", "value", *(c.name for c in findings.contenders))
        rows = [
            (
                budget.axis,
                clock(budget.at) if budget.axis == "seconds" else short(budget.at),
                *(f"{loss:.4f}" for loss in budget.losses),
            )
            for budget in findings.budgets
        ]
        lines += ["", "validation losses that the runs have recorded", *aligned([head, *rows])]
    for name, difference in training_differences(findings.contenders).items():
        lines.append(f"training loss on the same rows, last quarter: {name} {difference:+.4f} nats")
    if findings.compared is not None:
        lines += _documents(findings)
    return "\n".join(lines) + "\n"


def _differing(findings: RunComparison) -> list[str]:
    names = dict.fromkeys(name for differs in findings.differs for name in differs)
    if not names:
        return ["the configs do not differ"]
    texts: list[list[str]] = [[] for _ in findings.differs]
    for name in names:
        having = [i for i, differs in enumerate(findings.differs) if name in differs]
        values = shortened([findings.differs[i][name] for i in having])
        for i, value in zip(having, values, strict=True):
            texts[i].append(f"{name} {value}")
    return [
        f"  {contender.name}: {'; '.join(found) or 'none of these options'}"
        for contender, found in zip(findings.contenders, texts, strict=True)
    ]


def _documents(findings: RunComparison) -> list[str]:
    compared = findings.compared
    assert compared is not None
    base, *others = compared.configs
    lines = [
        "",
        f"{compared.documents:,} held-out documents, {compared.tokens:,} tokens, each read from its"
        " beginning, compared in pairs",
    ]
    nats = compared.unit == "nats per token"
    units = (compared.unit, "bits per byte") if nats else (compared.unit,)
    several = any(config.seeds > 1 for config in compared.configs)
    seeds = ("over seeds",) if several else ()
    head = ("", "runs", *units, *seeds, "difference", "95 % interval", "")
    rows = [
        (
            config.name,
            f"{config.seeds}",
            f"{config.loss:.4f}",
            *([f"{config.bits_per_byte:.4f}"] if nats else []),
            *([_ends(config.over_seeds)] if several else []),
            *(("", "") if config is base else _cells(config.difference)),
            ", ".join(
                [
                    *(["best"] if config is compared.best else []),
                    "baseline" if config is base else config.difference.verdict,
                ]
            ),
        )
        for config in compared.configs
    ]
    lines += aligned([head, *rows], left=(0, len(head) - 1))
    for other in others:
        low, high = other.difference.low, other.difference.high
        if other.unpaired and low is not None and high is not None and high > low:
            lines.append(
                f"{other.name}: unpaired the interval would be"
                f" {2 * other.unpaired / (high - low):.1f} times as wide"
            )
    if len(compared.sources) > 1:
        head = ("by source", "documents", *(other.name for other in others))
        rows = [
            (name, f"{count:,}", *(_short(other.sources[name]) for other in others))
            for name, count in compared.sources.items()
        ]
        lines += ["", *aligned([head, *rows])]
    for title in base.views:
        parts = {part.name: part.share for part in base.views[title]}
        head = (f"by {title}", "share", *(other.name for other in others))
        rows = [
            (name, f"{share:.1%}", *(_short(_part(other, title, name)) for other in others))
            for name, share in parts.items()
            if share >= _LEAST_SHARE
        ]
        lines += ["", *aligned([head, *rows])]
    if others:
        lines.append("the parts of each of these three tables add up to the difference")
    return lines


def _part(config: Against, title: str, name: str) -> Interval:
    return next(part.interval for part in config.views[title] if part.name == name)


def _cells(found: Interval) -> tuple[str, str]:
    ends = "" if found.low is None else f"{found.low:+.4f} to {found.high:+.4f}"
    return f"{found.value:+.4f}", ends


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _short(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:+.4f}"
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


# ------------------------------------------------------------------ the picture


def draw_comparison(findings: RunComparison) -> Figure:
    """Draw losses over tokens, differences by source, and the parts by kind of text."""
    from matplotlib.figure import Figure

    compared = findings.compared
    panels = 1 if compared is None else 3
    drawn = Figure(figsize=(5.4 * panels, 4.6), dpi=110, layout="constrained")
    axes = drawn.subplots(1, panels, squeeze=False)[0]
    _draw_curves(axes[0], findings)
    if compared is not None:
        names = [config.name for config in compared.configs[1:]]
        by_source = {
            "all": [config.difference for config in compared.configs[1:]],
            **{s: [c.sources[s] for c in compared.configs[1:]] for s in compared.sources},
        }
        _draw_intervals(axes[1], by_source, names, f"difference, {compared.unit}")
        kinds = next(iter(compared.configs[0].views))
        shown = {
            part.name: [_part(c, kinds, part.name) for c in compared.configs[1:]]
            for part in compared.configs[0].views[kinds]
            if part.share >= _LEAST_SHARE
        }
        _draw_intervals(axes[2], shown, names, f"parts of the difference by {kinds}")
        handles, labels = axes[1].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return drawn


def _draw_curves(axes: Axes, findings: RunComparison) -> None:
    """Draw every run's recorded validations, in bits per byte where tokenizers differ."""
    bits = findings.compared is not None and findings.compared.unit == "bits per byte"
    for i, contender in enumerate(findings.contenders):
        for number, entry in enumerate(contender.entries):
            curve = read_curve(Path(entry.run.path))
            if curve is not None:
                value = curve.bits_per_byte if bits else curve.loss
                if value is None:
                    continue
                axes.plot(
                    curve.axes["tokens"],
                    value,
                    color=COLOURS[i % len(COLOURS)],
                    marker="o",
                    markersize=3,
                    label=None if number else contender.name,
                )
    title = f"validation {'bits per byte' if bits else 'loss'} over tokens"
    axes.set_title(title, loc="left", fontsize=11)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _draw_intervals(
    axes: Axes, rows: Mapping[str, Sequence[Interval]], names: Sequence[str], title: str
) -> None:
    """Draw a point with its interval for every row and config; the baseline is the line at 0."""
    room = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        places = [i + room * (k - (len(names) - 1) / 2) for i in range(len(rows))]
        found = [intervals[k] for intervals in rows.values()]
        values = [interval.value for interval in found]
        below = [i.value - (i.value if i.low is None else i.low) for i in found]
        above = [(i.value if i.high is None else i.high) - i.value for i in found]
        axes.errorbar(
            values, places, xerr=[[max(0.0, b) for b in below], [max(0.0, a) for a in above]],
            fmt="o", markersize=4, capsize=2, color=COLOURS[(k + 1) % len(COLOURS)], label=name,
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=11)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, axis="x")
