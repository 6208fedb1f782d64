"""Figure: a plan as a picture: memory by phase, and for pretraining the loss of every size that the same budget could train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.hardware import GIB
from lit_pretrain.scaling.own_law import find_law

# Okabe and Ito's palette: told apart by colour-blind readers
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"


def draw(plan: dict[str, Any], path: str) -> None:
    """Write the picture; it appears whole or not at all.

    Raises:
        UserError: The place cannot be written, or is not a .png.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UserError(f"png={path!r} must end in .png")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = 1 if plan["loss"] is None else 2
    figure, axes = plt.subplots(1, panels, figsize=(6 * panels, 4.8), layout="constrained", squeeze=False)
    _memory(axes[0, 0], plan["memory"])
    if plan["loss"] is not None:
        _loss(axes[0, 1], plan["loss"], plan["length"]["tokens"])
    scratch = target.with_name(f".{target.stem}.tmp.png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(scratch, dpi=130)
        os.replace(scratch, target)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        plt.close(figure)
        scratch.unlink(missing_ok=True)


def _memory(axes: Any, m: dict[str, Any]) -> None:
    names, sizes = list(m["phases"]), [value / GIB for value in m["phases"].values()]
    over, kept = m["overhead"] / GIB, sum(m["states"].values()) - m["states"]["gradients"]
    states = [min(kept / GIB, size) for size in sizes]
    axes.bar(names, states, color=BLUE, label="weights and moments")
    axes.bar(
        names,
        [size - state for size, state in zip(sizes, states, strict=True)],
        bottom=states,
        color=ORANGE,
        label="gradients, activations, head",
    )
    axes.bar(names, [over] * len(names), bottom=sizes, color=GREY, label="beside tensors")
    for i, size in enumerate(sizes):
        axes.text(i, size + over, f"{size + over:,.3g}", ha="center", va="bottom")
    top = max(sizes) + over
    if m["limit"] is not None:
        axes.axhline(m["limit"] / GIB, color="black", linestyle="--", label=f"limit {m['limit'] / GIB:,.3g} GiB")
        top = max(top, m["limit"] / GIB)
    axes.set(ylabel="memory of one device, GiB", title="Peak memory by phase of a step", ylim=(0, 1.3 * top))
    axes.legend(loc="upper right", ncols=2, fontsize="small")


def _loss(axes: Any, loss: dict[str, Any], tokens: float) -> None:
    found, n, best = find_law(loss["law"]), loss["n"], loss["optimum"]
    budget = 6.0 * n * tokens
    low, high = sorted((n, best["n"]))
    sizes = np.geomspace(low / 8, high * 8, 200)
    axes.plot(sizes, found.loss(sizes, budget / 6 / sizes), color=BLUE, label=f"{budget:.3g} FLOPs (6ND), {loss['law']}")
    for value, kind, colour, label in ((loss["here"], "o", ORANGE, "this run"), (best, "*", GREEN, "compute-optimal")):
        size = n if kind == "o" else best["n"]
        bounds = value["ci95"]
        error = None if bounds is None else [[max(0.0, value["loss"] - bounds[0])], [max(0.0, bounds[1] - value["loss"])]]
        axes.errorbar([size], [value["loss"]], yerr=error, fmt=kind, color=colour, markersize=11, capsize=4, label=label)
    axes.set_xscale("log")
    axes.set(
        xlabel=f"parameters ({loss['counts']})",
        ylabel="loss, " + loss["unit"].split(" (")[0],
        title="Loss of every size on the same compute",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
