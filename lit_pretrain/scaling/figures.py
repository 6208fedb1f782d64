"""Figures of a fit and of an IsoFLOP analysis, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.fitted import LEVEL, Fitted
from lit_pretrain.scaling.forecast import FAR
from lit_pretrain.scaling.isoflop import IsoFlop
from lit_pretrain.scaling.law import EXPONENTS, FLOPS_PER_PARAMETER_TOKEN, PARAMETERS, Floats, Law
from lit_pretrain.scaling.runs import UNIT_TEXT, Runs

# Okabe and Ito (2008), "Color Universal Design"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
SEQUENCE = "cividis"
_AHEAD = 100.0
"""Axes of compute end at this multiple of the largest run's compute."""
_MARKERS = "osD^vPXdp*h<>"
_DPI = 130
_SHOWN = 0.98
"""Share of the resamples that the figure of pairs shows."""
COUNTS = {"total": "total", "matmul": "matmul", "nonembed": "non-embedding"}


def isoflop_figure(found: IsoFlop) -> Figure:
    """Draw loss against size at every budget: runs, parabolas, and a star at each minimum."""
    figure, axes = _panels(1)
    ax = axes[0]
    for k, m in enumerate(found.minima):
        colour = colormaps[SEQUENCE](0.9 * k / max(1, len(found.minima) - 1))
        x = np.linspace(np.log(min(m.runs.n)), np.log(max(m.runs.n)), 200)
        p0, p1, p2 = m.parabola
        ax.plot(np.exp(x), p0 + p1 * x + p2 * x**2, color=colour, linewidth=1.3)
        ax.plot(
            m.runs.n,
            m.runs.loss,
            _MARKERS[k % len(_MARKERS)],
            color=colour,
            markersize=5,
            label=f"{m.c:.2g}",
        )
        ax.plot(
            m.n,
            m.loss,
            "*",
            color=ORANGE,
            markersize=13,
            markeredgecolor="black",
            zorder=5,
            label="minimum" if k == 0 else None,
        )
    ax.set(
        xscale="log",
        xlabel=_n_label(found.minima[0].runs),
        ylabel=_loss_label(found.minima[0].runs),
    )
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "minimum")
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        title="FLOPs",
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    ax.set_title(f"IsoFLOP: N* ~ C^{found.n_line.slope:.3f}{_interval(found.interval_of('a'))}")
    return figure


def optimum_figure(fitted: Fitted, found: IsoFlop | None = None) -> Figure:
    """Draw N* and D* against compute: the law with its band, and the minima of the parabolas."""
    figure, axes = _panels(2)
    c = _compute_axis(fitted.runs)
    law, draws = fitted.fit.law, fitted.draws
    labels = (
        _n_label(fitted.runs).replace("parameters N", "optimal parameters N*"),
        "optimal tokens D*",
    )
    for k, (ax, label, exponent) in enumerate(zip(axes, labels, law.exponents, strict=True)):
        if draws is not None:
            _band(ax, c, np.array([_optima(drawn, c)[k] for drawn in draws.laws]))
        ax.plot(
            c,
            _optima(law, c)[k],
            color=BLUE,
            linewidth=2,
            label=f"{law.form} law, exponent {exponent:.3f}",
        )
        if found is not None:
            line = (found.n_line, found.d_line)[k]
            ax.plot(
                c,
                np.exp(line.intercept + line.slope * np.log(c)),
                "--",
                color=ORANGE,
                label=f"parabolas, exponent {line.slope:.3f}",
            )
            points = [(m.c, (m.n, m.d)[k]) for m in found.minima]
            ax.plot(
                *zip(*points, strict=True),
                "*",
                color=ORANGE,
                markersize=12,
                markeredgecolor="black",
                linestyle="none",
            )
        ax.set(xscale="log", yscale="log", xlabel="training compute C (FLOPs)", ylabel=label)
        _shade(ax, fitted.runs, c)
        ax.legend(loc="upper left", frameon=False)
    return figure


def envelope_figure(fitted: Fitted) -> Figure:
    """Draw loss against compute: the runs, and the law's envelope below them."""
    figure, axes = _panels(1)
    ax, runs, law = axes[0], fitted.runs, fitted.fit.law
    c = _compute_axis(runs)
    if fitted.draws is not None:
        _band(ax, c, np.array([drawn.loss(*_optima(drawn, c)) for drawn in fitted.draws.laws]))
    ax.plot(c, law.loss(*_optima(law, c)), color=BLUE, linewidth=2, label="compute-optimal loss")
    points = ax.scatter(
        _flops(runs),
        runs.loss,
        c=runs.n,
        norm=LogNorm(),
        cmap=SEQUENCE,
        s=22,
        edgecolor="black",
        linewidth=0.4,
        zorder=4,
        label="runs",
    )
    figure.colorbar(points, ax=ax, label=_n_label(runs))
    ax.set(xscale="log", xlabel="training compute 6 N D (FLOPs)", ylabel=_loss_label(runs))
    _shade(ax, runs, c)
    ax.legend(loc="upper right", frameon=False)
    return figure


def contour_figure(fitted: Fitted) -> Figure:
    """Draw a map of L(N, D) with the runs, lines of equal compute and the efficient frontier."""
    figure, axes = _panels(1)
    ax, runs, law = axes[0], fitted.runs, fitted.fit.law
    n = np.geomspace(runs.n.min() / 2, runs.n.max() * 10, 160)
    d = np.geomspace(runs.d.min() / 2, runs.d.max() * 10, 160)
    loss = law.loss(n[None, :], d[:, None])
    # Space the levels evenly in the logarithm of the reducible loss, which spans decades. Levels
    # at equal steps of the loss would all lie in one corner.
    floor = law.params.get("E", 0.0)
    levels = floor + np.geomspace(
        float(loss.min()) - floor,
        min(float(loss.max()) - floor, 3 * (float(runs.loss.max()) - floor)),
        14,
    )
    filled = ax.contourf(n, d, loss, levels=levels, cmap=f"{SEQUENCE}_r", extend="both")
    figure.colorbar(filled, ax=ax, label=_loss_label(runs), format="%.2f")
    largest = runs.largest_compute
    for power in np.arange(
        np.floor(np.log10(_flops(runs).min())), np.ceil(np.log10(largest * FAR)) + 1
    ):
        ax.plot(
            n,
            10**power / FLOPS_PER_PARAMETER_TOKEN / n,
            ":",
            color="black",
            linewidth=0.7,
            alpha=0.7,
        )
        # Label the line at the left edge, or where it enters from above.
        x, y = n[4], 10**power / FLOPS_PER_PARAMETER_TOKEN / n[4]
        if y > d[-8]:
            x, y = 10**power / FLOPS_PER_PARAMETER_TOKEN / d[-8], d[-8]
        if n[0] < x < n[-12] and y > d[0]:
            ax.text(
                x,
                y,
                f"1e{power:.0f}",
                color="white" if law.loss(x, y) > levels[6] else "black",
                fontsize=7,
                va="bottom",
            )
    c = np.geomspace(_flops(runs).min() / 10, largest * _AHEAD * 10, 100)
    best_n, best_d = _optima(law, c)
    inside = c <= largest
    ax.plot(best_n[inside], best_d[inside], color=ORANGE, linewidth=2.2, label="efficient frontier")
    ax.plot(
        best_n[~inside],
        best_d[~inside],
        "--",
        color=ORANGE,
        linewidth=2.2,
        label="beyond the largest run",
    )
    ax.plot(
        runs.n,
        runs.d,
        "o",
        markersize=4,
        markerfacecolor="white",
        markeredgecolor="black",
        linestyle="none",
        label="runs",
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(n[0], n[-1]),
        ylim=(d[0], d[-1]),
        xlabel=_n_label(runs),
        ylabel="training tokens D",
    )
    ax.legend(loc="lower right", framealpha=0.9)
    ax.set_title("L(N, D); dotted: equal compute 6 N D (FLOPs)")
    return figure


def residual_figure(fitted: Fitted) -> Figure:
    """Draw the residuals against compute and against tokens per parameter.

    A trend shows what the form of the law does not capture.
    """
    figure, axes = _panels(2)
    runs, percent = fitted.runs, 100 * fitted.fit.residuals
    for ax, x, label in (
        (axes[0], _flops(runs), "training compute 6 N D (FLOPs)"),
        (axes[1], runs.d / runs.n, "tokens per parameter D / N"),
    ):
        ax.axhline(0, color=GREY, linewidth=1)
        if fitted.kind == "huber":
            ax.axhspan(
                -100 * fitted.delta,
                100 * fitted.delta,
                color=BLUE,
                alpha=0.2,
                linewidth=0,
                label=f"within the Huber threshold ({fitted.delta:g})",
            )
        points = ax.scatter(
            x,
            percent,
            c=runs.n,
            norm=LogNorm(),
            cmap=SEQUENCE,
            s=20,
            edgecolor="black",
            linewidth=0.4,
            zorder=3,
        )
        ax.set(xscale="log", xlabel=label, ylabel="ln L − ln L of the law (%)")
    if fitted.kind == "huber":
        axes[0].legend(loc="upper right", frameon=False)
    figure.colorbar(points, ax=axes, label=_n_label(runs))
    return figure


def pairs_figure(fitted: Fitted) -> Figure:
    """Draw every parameter against every other over the bootstrap resamples.

    Correlated pairs are parameters that the runs cannot tell apart.
    """
    if fitted.draws is None:
        raise UserError("the figure of bootstrap pairs needs resamples: --bootstrap 1000")
    names, law = PARAMETERS[fitted.fit.law.form], fitted.fit.law
    values = np.array([[drawn.params[name] for name in names] for drawn in fitted.draws.laws])
    # Runs that hardly determine a parameter send some resamples to 1e300, beyond any axis.
    low, high = np.quantile(values, [(1 - _SHOWN) / 2, (1 + _SHOWN) / 2], axis=0)
    values = np.where((values >= low) & (values <= high), values, np.nan)
    size = len(names)
    figure = Figure(figsize=(1.9 * size + 0.6, 1.9 * size + 0.3), layout="constrained", dpi=_DPI)
    grid = figure.subplots(size, size, squeeze=False)
    for row in range(size):
        for column in range(size):
            ax, x, y = grid[row, column], values[:, column], values[:, row]
            if column > row:
                ax.set_visible(False)
                continue
            for axis, name, drawn in (("x", names[column], x), ("y", names[row], y)):
                log = name not in EXPONENTS and np.nanmax(drawn) > 10 * np.nanmin(drawn)
                getattr(ax, f"set_{axis}scale")("log" if log else "linear")
                if not log:
                    ax.locator_params(axis=axis, nbins=4)
            if column == row:
                bins = (
                    np.geomspace(np.nanmin(x), np.nanmax(x), 25) if ax.get_xscale() == "log" else 25
                )
                ax.hist(x[np.isfinite(x)], bins=bins, color=BLUE, alpha=0.7)
                ax.axvline(law.params[names[row]], color=ORANGE, linewidth=1.5)
                ax.set_yscale("linear")
                ax.set_yticks([])
            else:
                ax.plot(x, y, ".", color=BLUE, markersize=2, alpha=0.4, rasterized=True)
                ax.plot(
                    law.params[names[column]],
                    law.params[names[row]],
                    "*",
                    color=ORANGE,
                    markersize=11,
                    markeredgecolor="black",
                )
            ax.tick_params(
                labelsize=7, labelleft=column == 0 and row != 0, labelbottom=row == size - 1
            )
            ax.tick_params(which="minor", labelleft=False, labelbottom=False)
            if row == size - 1:
                ax.set_xlabel(names[column])
                ax.tick_params(axis="x", rotation=45)
            if column == 0 and row:
                ax.set_ylabel(names[row])
    figure.align_labels()
    figure.suptitle(
        f"{len(values):,} bootstrap resamples of {len(fitted.runs)} runs, middle {_SHOWN:.0%} of"
        " each parameter; orange: the fit of all",
        fontsize=10,
    )
    return figure


def changes_figure(
    sweeps: Sequence[
        tuple[str, str, Sequence[int], Mapping[Any, Sequence[float]], Mapping[Any, float]]
    ],
) -> Figure:
    """Draw how much the parts of networks move, against their width or depth.

    Args:
        sweeps: Title, name of the size, sizes, changes by part, and slopes by part.
    """
    figure, axes = _panels(len(sweeps))
    for ax, (title, by, sizes, changes, slopes) in zip(axes, sweeps, strict=True):
        for (part, values), colour, marker in zip(
            changes.items(), (BLUE, ORANGE, GREEN, GREY), _MARKERS, strict=False
        ):
            label = f"{part} {slopes[part]:+.2f}"
            ax.plot(sizes, values, marker=marker, color=colour, label=label)
        ax.set(xscale="log", yscale="log", xlabel=by, title=title, ylabel="RMS change")
        ax.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
        ax.set_xticks([], minor=True)
        ax.legend(title="slope", frameon=False)
    moved = [value for sweep in sweeps for values in sweep[3].values() for value in values]
    for ax in axes:  # one scale for all, so that slopes can be compared
        ax.set_ylim(min(moved) / 1.3, max(moved) * 1.3)
    return figure


def png(figure: Figure) -> bytes:
    """Render a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(
        figsize=(7.6 if count == 1 else 5.4 * count, 4.6), layout="constrained", dpi=_DPI
    )
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(True, which="major", alpha=0.25)
    return figure, axes


def _flops(runs: Runs) -> Floats:
    return FLOPS_PER_PARAMETER_TOKEN * runs.n * runs.d


def _compute_axis(runs: Runs) -> Floats:
    return np.geomspace(float(_flops(runs).min()), runs.largest_compute * _AHEAD, 60)


def _optima(law: Law, c: Floats) -> tuple[Floats, Floats]:
    """Compute N* and D* along an axis of compute.

    Both are power laws of C in every form while no data is repeated.
    """
    n = law.optimum(1e20).n * (c / 1e20) ** law.exponents.a
    return n, c / (FLOPS_PER_PARAMETER_TOKEN * n)


def _band(ax: Axes, x: Floats, curves: Floats) -> None:
    low, high = np.quantile(curves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    ax.fill_between(
        x, low, high, color=BLUE, alpha=0.22, linewidth=0, label="95 % of bootstrap laws"
    )


def _shade(ax: Axes, runs: Runs, c: Floats) -> None:
    """Shade the region beyond ten times the largest fitted compute."""
    ax.axvspan(
        FAR * runs.largest_compute,
        float(c[-1]),
        color=GREY,
        alpha=0.18,
        linewidth=0,
        label=f"more than {FAR:g}× the largest run",
    )
    ax.set_xlim(float(c[0]) / 1.3, float(c[-1]))


def _n_label(runs: Runs) -> str:
    return f"parameters N ({COUNTS[runs.counts]})"


def _loss_label(runs: Runs) -> str:
    return f"validation loss ({UNIT_TEXT[runs.unit]})"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" (95 % {found[0]:.3f} to {found[1]:.3f})"


def write_images(folder: Path, images: Mapping[str, bytes], step: int = 0) -> None:
    """Add PNG images to a TensorBoard run, with TensorBoard's own writer and without torch.

    Args:
        folder: The run's event folder.
        images: Content of a PNG file by tag.
        step: Step at which TensorBoard shows the images.
    """
    writer = EventFileWriter(str(folder))
    try:
        for tag, content in images.items():
            width, height, _, kind = struct.unpack(">IIBB", content[16:26])  # the IHDR chunk
            image = Summary.Image(
                height=height,
                width=width,
                colorspace={0: 1, 2: 3, 6: 4}[kind],
                encoded_image_string=content,
            )
            writer.add_event(
                Event(
                    wall_time=time.time(),
                    step=step,
                    summary=Summary(value=[Summary.Value(tag=tag, image=image)]),
                )
            )
    finally:
        writer.close()
