"""Charts of one run, from its metrics: SVG for summary.html, PNG for TensorBoard's IMAGES.

Both show each series to its end, unsmoothed and with its name beside it. Tables and lines of
progress write their numbers as briefly as the charts do, by `short` and `clock`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

# Okabe and Ito (2008): told apart with any kind of colour vision, and in print by their lightness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
DASHES = ("", "6 3", "2 3")
MOST_SERIES = len(COLOURS) * len(DASHES)
LEAST_WINDOWS = 5
"""Windows of metrics from which on a curve says more than its end."""

Points = list[tuple[float, float]]


class Chart(NamedTuple):
    """Hold one chart over optimizer steps."""

    title: str
    series: dict[str, Points]
    """Points by name; the first series come first in the legend."""
    band: Sequence[tuple[float, float, float]] = ()
    """Step, lower and upper end of an interval, drawn as an area."""


def loss_charts(
    lines: Sequence[Mapping[str, float]], *, unit: str, forecast: str | None = None
) -> list[Chart]:
    """Lay out the charts of what a run minimises, the most telling first.

    Args:
        lines: Lines of metrics.jsonl.
        unit: Of the loss.
        forecast: The validation metric that a law forecasts; None where none does.

    Returns:
        Those that have points, and those by source if there are several sources.
    """
    by_source = _by_prefix(lines, "validation bits per byte by source", "val_bits_per_byte/")
    if not by_source.series:
        by_source = _by_prefix(lines, f"validation loss by source, {unit}", "val_loss/")
    sources = (by_source, _by_prefix(lines, f"training loss by source, {unit}", "train_loss/"))
    charts = [
        _chart(lines, "reward", {"training": "train/reward", "validation": "val/reward"}),
        _chart(lines, f"loss, {unit}", {"training": "train/loss", "validation": "val/loss"}),
        *(chart for chart in sources if len(chart.series) > 1),
        *([] if forecast is None else [_forecast(lines, forecast)]),
        *(
            _chart(lines, title, {"training": f"train/{name}", "validation": f"val/{name}"})
            for title, name in _JUDGEMENTS.items()
        ),
    ]
    return [chart for chart in charts if chart.series]


def other_charts(lines: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Lay out the charts of how a run went: speed, gradients, rates, mixture, layers."""
    charts = [
        _chart(lines, "tokens per second", {"tokens per second": "throughput/tokens_per_second"}),
        _chart(
            lines,
            "share of a step's time",
            {
                "compute": "time/compute_fraction",
                "waiting for data": "time/data_fraction",
                "other": "time/other_fraction",
            },
        ),
        _chart(
            lines,
            "gradient norm before clipping",
            {"mean of the window": "train/grad_norm", "largest": "train/grad_norm_max"},
        ),
        _by_prefix(lines, "gradient noise scale, tokens", "noise_scale/"),
        _by_prefix(lines, "learning rate by role", "lr/"),
        _by_prefix(lines, "share of each source in a window", "mixture/"),
        *_layers(lines),
    ]
    return [chart for chart in charts if chart.series]


_JUDGEMENTS = {
    "share of pairs ranked as labelled": "rewards/accuracy",
    "margin of the rewards": "rewards/margin",
    "share of steps judged as labelled": "steps/accuracy",
}


def _chart(lines: Sequence[Mapping[str, float]], title: str, metrics: Mapping[str, str]) -> Chart:
    series = {name: _points(lines, metric) for name, metric in metrics.items()}
    return Chart(title, {name: points for name, points in series.items() if points})


def _points(lines: Iterable[Mapping[str, float]], metric: str) -> Points:
    return [
        (line["step"], line[metric])
        for line in lines
        if metric in line and math.isfinite(line[metric])
    ]


def _by_prefix(lines: Sequence[Mapping[str, float]], title: str, prefix: str) -> Chart:
    """Draw a series for every metric of a group, those that were told first first."""
    metrics = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix))
    return _chart(lines, title, {name.removeprefix(prefix): name for name in metrics})


def _forecast(lines: Sequence[Mapping[str, float]], metric: str) -> Chart:
    chart = _chart(
        lines,
        f"forecast with its 95 % interval, {metric.removeprefix('val/').replace('_', ' ')}",
        {"validation": metric, "expected of a run that ends here": "forecast/loss"},
    )
    band = [
        (line["step"], line["forecast/low"], line["forecast/high"])
        for line in lines
        if "forecast/low" in line and "forecast/high" in line
    ]
    return chart._replace(band=band)


def _layers(lines: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Draw the statistics of layers and roles, a chart for each: layers/STATISTIC/LAYER."""
    names = dict.fromkeys(
        "/".join(name.split("/")[:2])
        for line in lines
        for name in line
        if name.startswith(("layers/", "roles/")) and name.count("/") >= 2
    )
    return [_by_prefix(lines, name.replace("/", ": "), f"{name}/") for name in names]


class HeatMap(NamedTuple):
    """The statistics of all layers in one step."""

    step: int
    statistics: list[str]
    layers: list[str]
    """From the first to the last."""
    values: list[list[float]]
    """By layer and statistic; NaN where there is none."""


def heat_map(lines: Sequence[Mapping[str, float]]) -> HeatMap | None:
    """Lay out the newest statistics of layers; None if there are none."""
    prefix = "layers/"
    line = next((its for its in reversed(lines) if any(n.startswith(prefix) for n in its)), None)
    if line is None:
        return None
    names = [name.split("/") for name in line if name.startswith(prefix) and name.count("/") == 2]
    statistics = list(dict.fromkeys(statistic for _, statistic, _ in names))
    layers = sorted({layer for _, _, layer in names}, key=lambda layer: (len(layer), layer))
    values = [
        [line.get(f"{prefix}{statistic}/{layer}", math.nan) for statistic in statistics]
        for layer in layers
    ]
    return HeatMap(int(line["step"]), statistics, layers, values)


# ------------------------------------------------------------------ numbers on axes


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Choose round numbers between two ends, at most `most` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(math.floor(high / step + 1e-9) - first + 1)]


def number(value: float) -> str:
    """Write a number for an axis or a legend: four digits, with a suffix from 10,000 on."""
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit * (10 if suffix == "k" else 1):
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"


def _ends(chart: Chart) -> tuple[float, float, float, float]:
    """Find the ends of both axes; the first tenth of a run does not decide how high it is.

    A loss begins at ln V and falls within a few steps; drawn whole, the rest would be flat.
    """
    points = [point for series in chart.series.values() for point in series]
    xs = [x for x, _ in points]
    left, right = min(xs), max(xs)
    late = [y for x, y in points if x >= left + 0.1 * (right - left)] or [y for _, y in points]
    late += [end for _, low, high in chart.band for end in (low, high)]
    bottom, top = min(late), max(late)
    room = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    return left, right if right > left else left + 1, bottom - room, top + room


# ------------------------------------------------------------------ SVG

_WIDTH, _HEIGHT = 460, 270
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 30, 12, 34


def chart_svg(chart: Chart, name: str) -> str:
    """Draw a chart as an HTML figure: SVG, and a legend with the last value of each series.

    Args:
        chart: The chart.
        name: An id that no other figure of the page has.
    """
    left, right, bottom, top = _ends(chart)
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(x: float) -> float:
        return _LEFT + plot_width * (x - left) / (right - left)

    def y_of(y: float) -> float:
        return _TOP + plot_height * (1 - (y - bottom) / (top - bottom))

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        f'<clipPath id="{name}"><rect x="{_LEFT}" y="{_TOP - 4}" width="{plot_width + 4}"'
        f' height="{plot_height + 8}"/></clipPath>',
        f'<text class="title" x="{_LEFT}" y="17">{escape(chart.title)}</text>',
    ]
    for y in ticks(bottom, top):
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y_of(y):.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text class="y" x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}">{number(y)}</text>'
        )
    for x in ticks(left, right):
        parts.append(
            f'<text class="x" x="{x_of(x):.1f}" y="{_HEIGHT - _BOTTOM + 15}">{number(x)}</text>'
        )
    parts.append(
        f'<text class="x" x="{_LEFT + plot_width / 2:.0f}" y="{_HEIGHT - 4}">optimizer step</text>'
    )
    parts.append(f'<g clip-path="url(#{name})">')
    if chart.band:
        lower = [f"{x_of(x):.1f} {y_of(low):.1f}" for x, low, _ in chart.band]
        upper = [f"{x_of(x):.1f} {y_of(high):.1f}" for x, _, high in reversed(chart.band)]
        parts.append(f'<path class="band" d="M{"L".join([*lower, *upper])}Z"/>')
    shown = list(chart.series.items())[:MOST_SERIES]
    for i, (label, points) in enumerate(shown):
        style = f'stroke="{_colour(i)}" stroke-dasharray="{_dash(i)}"'
        places = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
        parts.append(f'<path class="line" {style} d="M{places}"/>')
        marked = points if len(points) <= 2 * LEAST_WINDOWS else points[-1:]
        for x, y in marked:
            parts.append(
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{_colour(i)}">'
                f"<title>{escape(label)}: {y:.6g} at step {x:,.0f}</title></circle>"
            )
    parts.append("</g></svg>")
    legend = "".join(
        f'<span><svg viewBox="0 0 22 10" class="key"><path class="line" d="M0 5H22"'
        f' stroke="{_colour(i)}" stroke-dasharray="{_dash(i)}"/></svg>'
        f"{escape(label)} <b>{number(points[-1][1])}</b></span>"
        for i, (label, points) in enumerate(shown)
    )
    more = len(chart.series) - len(shown)
    rest = f"<span>and {more} more, in metrics.jsonl</span>" if more else ""
    return f"<figure>{''.join(parts)}<figcaption>{legend}{rest}</figcaption></figure>"


def histogram_svg(title: str, series: Mapping[str, Sequence[int]]) -> str:
    """Draw histograms over scores from 0 to 1 as an HTML figure, each as shares of its whole."""
    shares = {
        label: [count / max(1, sum(counts)) for count in counts] for label, counts in series.items()
    }
    top = max((share for values in shares.values() for share in values), default=0.0) or 1.0
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    floor = _TOP + plot_height
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="17">{escape(title)}</text>',
    ]
    for y in ticks(0, top):
        at = floor - plot_height * y / top
        parts.append(
            f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text class="y" x="{_LEFT - 6}" y="{at + 4:.1f}">{number(y)}</text>'
        )
    for x in ticks(0, 1):
        parts.append(
            f'<text class="x" x="{_LEFT + plot_width * x:.1f}" y="{floor + 15}">{number(x)}</text>'
        )
    for i, (label, values) in enumerate(shares.items()):
        width = plot_width / max(1, len(values)) / len(shares)
        for place, share in enumerate(values):
            if share:
                left = _LEFT + (place * len(shares) + i) * width
                height = plot_height * share / top
                parts.append(
                    f'<rect x="{left:.1f}" y="{floor - height:.1f}" width="{width:.1f}"'
                    f' height="{height:.1f}" fill="{_colour(i)}"><title>{escape(label)}:'
                    f" {share:.2%}</title></rect>"
                )
    legend = "".join(
        f'<span><svg viewBox="0 0 22 10" class="key"><path class="line" d="M0 5H22"'
        f' stroke="{_colour(i)}"/></svg>{escape(label)} <b>{sum(series[label]):,}</b></span>'
        for i, label in enumerate(shares)
    )
    return f"<figure>{''.join(parts)}</svg><figcaption>{legend}</figcaption></figure>"


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> str:
    return DASHES[i // len(COLOURS) % len(DASHES)]


# ------------------------------------------------------------------ PNG


PNG_WIDTH, PNG_HEIGHT = 704, 528
"""Twice the size at which TensorBoard shows images; so the text in them is large."""
_DPI = 110
_LONG_LABEL = 16
"""Letters of a label from which on the legend takes a row for each."""


def chart_png(chart: Chart) -> bytes:
    """Draw a chart as PNG of PNG_WIDTH × PNG_HEIGHT pixels, RGBA."""
    from matplotlib.figure import Figure  # late: the import takes longer than a small run's steps

    left, right, bottom, top = _ends(chart)
    figure = Figure(figsize=(PNG_WIDTH / _DPI, PNG_HEIGHT / _DPI), dpi=_DPI)
    shown = list(chart.series.items())[:MOST_SERIES]
    columns = 2 if all(len(label) < _LONG_LABEL for label, _ in shown) else 1
    rows = math.ceil(len(shown) / columns)
    figure.subplots_adjust(left=0.15, right=0.97, top=0.9, bottom=min(0.13 + 0.085 * rows, 0.6))
    axes = figure.subplots()
    if chart.band:
        x, low, high = zip(*chart.band, strict=True)
        axes.fill_between(x, low, high, color=COLOURS[1], alpha=0.15, linewidth=0)
    for i, (label, points) in enumerate(shown):
        dash = _dash(i)
        axes.plot(
            *zip(*points, strict=True),
            color=_colour(i),
            linestyle=(0, tuple(map(int, dash.split()))) if dash else "-",
            linewidth=2.2,
            marker="o" if len(points) <= 2 * LEAST_WINDOWS else None,
            label=f"{label}: {number(points[-1][1])}",
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_title(chart.title, fontsize=19, loc="left", x=-0.14)
    axes.tick_params(labelsize=16)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize=16, ncols=columns, loc="upper center", bbox_to_anchor=(0.46, -0.1), frameon=False,
        handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


_NUMBERED_LAYERS = 16
"""Most layers whose fields of a heat map have room for their numbers."""


def heat_png(heat: HeatMap) -> bytes:
    """Draw a heat map as PNG of PNG_WIDTH × PNG_HEIGHT pixels, RGBA.

    The colour of a field says how far its value lies from the median of all layers, which is what
    makes a layer that differs from the others catch the eye whatever the unit.
    """
    import numpy as np
    from matplotlib.figure import Figure  # late: the import takes longer than a small run's steps

    values = np.array(heat.values, dtype=float)
    positive = np.where((values > 0) & np.isfinite(values), values, np.nan)
    medians = [
        float(np.median(column[~np.isnan(column)])) if not np.isnan(column).all() else 1.0
        for column in positive.T
    ]
    ratio = np.log2(positive / np.array(medians))
    figure = Figure(figsize=(PNG_WIDTH / _DPI, PNG_HEIGHT / _DPI), dpi=_DPI)
    figure.subplots_adjust(left=0.08, right=1.0, top=0.9, bottom=0.3)
    axes = figure.subplots()
    image = axes.imshow(ratio, cmap="coolwarm", vmin=-3, vmax=3, aspect="auto", origin="lower")
    axes.set_facecolor("black")  # zero, or not a number
    axes.set_xticks(
        range(len(heat.statistics)), [name.replace("_", " ") for name in heat.statistics],
        rotation=35, ha="right", fontsize=11,
    )  # fmt: skip
    every = max(1, math.ceil(len(heat.layers) / _NUMBERED_LAYERS))
    shown = range(0, len(heat.layers), every)
    axes.set_yticks(list(shown), [heat.layers[i] for i in shown], fontsize=11)
    axes.set_title(f"layers at step {heat.step:,}", fontsize=15, loc="left", x=-0.08)
    if every == 1:
        for layer, row in enumerate(heat.values):
            for statistic, value in enumerate(row):
                axes.text(
                    statistic, layer, f"{value:.2g}", ha="center", va="center", fontsize=8,
                    color="white" if math.isnan(ratio[layer][statistic]) else "black",
                )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, ticks=[-3, 0, 3], pad=0.02)
    bar.ax.set_yticklabels(["1/8", "median", "× 8"], fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def short(number: float) -> str:
    """Write a count with three digits and a suffix: 1.23M."""
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss or m:ss."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
