"""Figure: the funnel of a dataset and the shape of its documents, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.cli.inspect.dataset_view import QUALITY, DocumentShape
from lit_pretrain.corpus.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with any kind of colour vision, and in print by their lightness.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
_DASHES = ("-", "--", ":", "-.")
_STORED = "#999999"
_BINS = 40

_HISTOGRAMS: tuple[
    tuple[str, str, Callable[[DocumentShape], npt.NDArray[Any]], tuple[float, float] | None], ...
] = (
    ("tokens per document", "log", lambda shape: shape.tokens, None),
    ("bytes per token", "linear", lambda shape: shape.bytes / shape.tokens, None),
    (QUALITY[0], "linear", lambda shape: shape.quality[:, 0], (3.0, 10.0)),
    (QUALITY[1], "linear", lambda shape: shape.quality[:, 1], (0.8, 1.0)),
    (QUALITY[2], "linear", lambda shape: shape.quality[:, 2], (0.0, 0.2)),
)
"""Label, scale, values, and the range that Gopher's rules keep (table A1 and section A.1.1 of
Rae et al. 2021).
"""


def figure(manifest: Manifest, shapes: Mapping[str, DocumentShape]) -> Figure:
    """Draws a dataset.

    Args:
        manifest: Its manifest.
        shapes: Source -> shape, of every source with training text.

    Returns:
        The funnel above, five histograms below; one line a source.
    """
    from matplotlib.figure import Figure

    height = 1.6 + 0.42 * len(manifest.sources)
    labels = [label for label, *_ in _HISTOGRAMS]
    drawn = Figure(figsize=(15, height + 4.2), dpi=110, layout="constrained")
    grid: list[Any] = [["funnel"] * len(labels), labels]
    axes = drawn.subplot_mosaic(grid, height_ratios=(height, 4.2))
    _funnel(axes["funnel"], manifest)
    for label, scale, values, kept in _HISTOGRAMS:
        _histogram(
            axes[label], label, scale, {name: values(shape) for name, shape in shapes.items()}, kept
        )
    handles, names = axes[labels[0]].get_legend_handles_labels()
    drawn.legend(
        handles, names, loc="outside lower center", ncols=min(8, max(1, len(names))), frameon=False
    )
    return drawn


def _funnel(axes: Axes, manifest: Manifest) -> None:
    """A bar a source: what is stored, and what each step left out, in per cent of the bytes
    that were read.
    """
    names = list(manifest.sources)
    losses: dict[str, list[float]] = {}
    for position, source in enumerate(manifest.sources.values()):
        first, before = source.funnel[0].bytes, source.funnel[0].bytes
        for step in source.funnel[1:]:
            losses.setdefault(step.name, [0.0] * len(names))[position] += (
                100 * (before - step.bytes) / max(first, 1)
            )
            before = step.bytes
    stored = np.array(
        [
            100 * source.funnel[-1].bytes / max(source.funnel[0].bytes, 1)
            for source in manifest.sources.values()
        ]
    )
    places = np.arange(len(names))
    axes.barh(places, stored, color=_STORED, label="stored", edgecolor="white")
    left = stored.copy()
    shown = {step: shares for step, shares in losses.items() if max(map(abs, shares)) >= 0.05}
    for number, (name, shares) in enumerate(reversed(shown.items())):
        hatch = "///" if number >= len(_COLOURS) else None
        axes.barh(
            places,
            shares,
            left=left,
            color=_COLOURS[number % len(_COLOURS)],
            label=name,
            hatch=hatch,
            edgecolor="white",
        )
        left += np.array(shares)
    for place, source in enumerate(manifest.sources.values()):
        text = (
            f"{source.funnel[0].bytes / 1e6:,.1f} → {source.funnel[-1].bytes / 1e6:,.1f} MB,"
            f" {source.tokens / 1e6:,.2f} M tokens"
        )
        axes.text(101, place, text, va="center", fontsize=9)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 132)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the bytes that were read")
    axes.set_title("What is stored, and what each step left out", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, -0.32 if len(names) < 4 else -0.18),
        ncols=9,
        frameon=False,
        fontsize=9,
    )


def _histogram(
    axes: Axes,
    label: str,
    scale: str,
    values: Mapping[str, npt.NDArray[Any]],
    kept: tuple[float, float] | None,
) -> None:
    """Shares of documents by source, as outlines: filled bars would hide each other."""
    everything = np.concatenate([each for each in values.values() if len(each)] or [np.zeros(1)])
    low, high = (
        np.quantile(everything, [0.001, 0.999])
        if scale == "linear"
        else (everything.min(), everything.max())
    )
    if scale == "log":
        edges = np.geomspace(max(low, 1), max(high, low + 1) * 1.001, _BINS + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for number, (name, each) in enumerate(values.items()):
        if len(each):
            counts, _ = np.histogram(np.clip(each, edges[0], edges[-1]), bins=edges)
            colour, dash = _COLOURS[number % 7], _DASHES[number // 7 % len(_DASHES)]
            axes.stairs(
                100 * counts / len(each),
                edges,
                color=colour,
                linestyle=dash,
                linewidth=1.4,
                label=name,
            )
    if kept is not None:
        for limit in kept:
            if edges[0] < limit < edges[-1]:
                axes.axvline(limit, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xscale(scale)
    axes.set_xlabel(label if kept is None else f"{label}\n(dotted: Gopher's limits)")
    axes.set_ylabel("% of documents" if label == _HISTOGRAMS[0][0] else "")
    axes.spines[["top", "right"]].set_visible(False)
