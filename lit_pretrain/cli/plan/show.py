"""Show a plan: as a table of at most 140 columns, and as a picture.

The picture shows memory by phase and, for pretraining, the loss of every size that the same budget
could train.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.files import atomic_path, writing
from lit_pretrain.model.config import Checkpointing
from lit_pretrain.scaling.flops import GIB
from lit_pretrain.scaling.plan import (
    LayoutsReport,
    LengthReport,
    MemoryReport,
    Plan,
    PredictionReport,
    RecommendationReport,
)
from lit_pretrain.scaling.published import find_law
from lit_pretrain.step_size import counted

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#E69F00", "#009E73", "#999999"


_WIDTH = 140
"""Columns of the table."""
_LEFT = 24
"""Columns of the names on its left."""


def plan_table(plan: Plan) -> str:
    """Format a plan as a table."""
    lines: list[str] = []
    for title, rows in (
        ("model", _model_rows(plan)),
        ("run", _run_rows(plan)),
        ("layouts", _layout_rows(plan["layouts"]) if "layouts" in plan else []),
        ("memory of one device", _memory_rows(plan["memory"])),
        (
            "loss",
            (
                [("not forecast", plan["no_loss"] or "")]
                if plan["loss"] is None
                else _loss_rows(plan["loss"], plan["length"])
            ),
        ),
        (
            "batch and learning rate",
            (
                []
                if plan["recommended"] is None
                else _recommended_rows(plan["recommended"], plan["length"])
            ),
        ),
        ("assumptions", [(a["what"], f"{a['value']}: {a['source']}") for a in plan["assumptions"]]),
    ):
        if not rows:
            continue
        lines += ["", title, "─" * len(title)]
        for name, text in rows:
            wrapped = textwrap.wrap(text, _WIDTH - _LEFT) or [""]
            lines += [
                f"{name:<{_LEFT}}{wrapped[0]}".rstrip(),
                *(" " * _LEFT + more for more in wrapped[1:]),
            ]
    return "\n".join(lines[1:]) + "\n"


def _model_rows(plan: Plan) -> list[tuple[str, str]]:
    p, f, stage = plan["parameters"], plan["flops_per_token"], plan["stage"]
    rows = [
        (
            "parameters",
            (
                f"{p['total']:,} ({p['matmul']:,} in matrix products, {p['non_embedding']:,}"
                " without embeddings)"
            ),
        ),
        (
            "FLOPs per token",
            (
                f"{f['exact']:.6g} exact, full attention · {f['causal']:.6g} causal ·"
                f" {f['six_n']:.6g} = 6N"
            ),
        ),
    ]
    if stage["name"] != "pretrain":
        rows.append(
            (
                f"stage {stage['name']}",
                f"{stage['flops_per_token']:.6g} FLOPs per token: {stage['why']}",
            )
        )
    return rows


def _run_rows(plan: Plan) -> list[tuple[str, str]]:
    length, time, money = plan["length"], plan["time"], plan["money"]
    steps = ""
    if length["steps"] is not None:
        steps = f" = {counted(round(length['steps']), 'steps')} of {length['tokens_per_step']:,}"
    if len(length["batches"]) > 1:
        sizes = [f"{round(size['steps']):,} of {size['tokens']:,}" for size in length["batches"]]
        steps = f" = {counted(round(length['steps'] or 0), 'steps')}: {', '.join(sizes)}"
    epochs = (
        ""
        if length["epochs"] is None or length["unique_tokens"] is None
        else f", {length['epochs']:.2f} epochs over {_short(length['unique_tokens'])} unique tokens"
    )
    rows = [
        ("solved for", plan["solved_for"]),
        (
            "tokens",
            (
                f"{_short(length['tokens'])}{steps}, {length['tokens_per_parameter']:,.1f} per"
                f" parameter{epochs}"
            ),
        ),
        ("FLOPs", f"{length['flops']:.4g} ({length['flops_6nd']:.4g} = 6ND)"),
    ]
    devices = f"{time['devices']:,} × {time['device'] or 'device'}"
    if time["tokens_per_second_per_device"] is None or time["days"] is None:
        return [
            *rows,
            (
                "time",
                (
                    f"not known for {devices}: give --device, or --tokens_per_second, measured on"
                    " one device"
                ),
            ),
        ]
    mfu = (
        ""
        if time["mfu"] is None or time["peak_flops"] is None
        else (
            f" (MFU {time['mfu']:.2%} of {time['peak_flops'] / 1e12:,.4g} TFLOP/s in"
            f" {time['dtype']})"
        )
    )
    rows += [
        ("speed", f"{time['tokens_per_second_per_device']:,.1f} tokens per second and device{mfu}"),
        (
            "time",
            (
                f"{_duration(time['days'])} on {devices} at goodput {time['goodput']:.4g}:"
                f" {time['device_hours']:,.4g} device-hours"
            ),
        ),
    ]
    cost = (
        "no price given (--price)"
        if money["price"] is None
        else f"${money['dollars']:,.2f} at ${money['price']:,.2f} a device-hour"
    )
    return [*rows, ("money", cost)]


def _checkpointing(mode: Checkpointing) -> str:
    if isinstance(mode, bool):
        return "on" if mode else "off"
    if mode == "offload":
        return "on, inputs of blocks on the host"
    return f"but for {mode}" if isinstance(mode, str) else f"but for {mode:.0%} of its results"


def _layout_rows(layouts: LayoutsReport) -> list[tuple[str, str]]:
    """List the best layouts with what to set, and why the others lose."""
    rows = []
    for place, choice in enumerate(layouts["best"], 1):
        seconds = choice["seconds"]
        whole = sum(seconds.values())
        parts = sorted(seconds.items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name} {value / whole:.0%}" for name, value in parts if value)
        again = _checkpointing(choice["activation_checkpointing"])
        again = f", activation checkpointing {again}" if again != "off" else ""
        batches = (
            f" × {counted(choice['micro_batches'], 'micro-batches')}"
            if choice["micro_batches"] > 1
            else ""
        )
        rows.append(
            (
                str(place),
                f"{choice['mesh']}: {counted(choice['micro_batch_size'], 'rows')}{batches}{again};"
                f" {choice['tokens_per_second_per_device']:,.0f} tokens per second and device (MFU"
                f" {choice['mfu']:.1%}), {_gib(choice['bytes'])}; {shares}",
            )
        )
    first = layouts["best"][0]
    options = [f"--parallel.{axis} {size}" for axis, size in first["parallel"].items() if size > 1]
    options.append(f"--data.micro_batch_size {first['micro_batch_size']}")
    if first["activation_checkpointing"]:
        mode = str(first["activation_checkpointing"]).lower()
        options.append(f"--model.activation_checkpointing {mode}")
    rows.append(("to set", " ".join(options)))
    rows += [
        ("slower", f"{other['mesh']}: {1 - other['relative']:.1%}, because {other['why']}")
        for other in layouts["slower"]
    ]
    large = layouts["too_large"]
    if large:
        rows.append(
            (
                "does not fit",
                f"{large[0]['mesh']} ({_gib(large[0]['bytes'])}) at its smallest"
                + (f", and {len(large) - 1} that take more" if len(large) > 1 else ""),
            )
        )
    rows.append(("tried", f"{layouts['tried']:,} layouts"))
    return rows


def _memory_rows(m: MemoryReport) -> list[tuple[str, str]]:
    layout, states = m["layout"], m["states"]
    how = {"none": "one device", "ddp": "DDP", "fsdp": "FSDP2"}[layout["sharding"]]
    over = "" if layout["sharding"] == "none" else f" over {layout['devices']:,} devices"
    axes = {"dp_replicate": layout["copies"], "cp": layout["cp"], "tp": layout["tp"]}
    used = [f"{axis} {size}" for axis, size in axes.items() if size > 1]
    over += f" ({', '.join(used)})" if used else ""
    step = f"{counted(layout['rows'], 'rows')} × {layout['seq_len']:,} tokens"
    if layout["micro_batches"] not in (None, 1):
        step += f" × {layout['micro_batches']:,} micro-batches"
    rows = [
        (
            "layout",
            (
                f"{how}{over}, {step}, {layout['precision']}, "
                f"{'compiled' if layout['compiled'] else 'uncompiled'}, {layout['head']} head, "
                f"activation checkpointing {_checkpointing(layout['activation_checkpointing'])}"
            ),
        ),
        (
            "states",
            ", ".join(f"{name} {_gib(value)}" for name, value in states.items() if value)
            + f"; activations {_gib(m['activations'])}",
        ),
    ]
    rows += [
        (f"peak, {name}", _gib(value) + (" ← the peak" if name == m["peak_phase"] else ""))
        for name, value in m["phases"].items()
    ]
    total = f"{_gib(m['peak'] + m['overhead'])} with {_gib(m['overhead'])} beside tensors"
    if m["limit"] is None:
        return [*rows, ("needs", f"{total}; no limit is known (--device or --memory_gib)")]
    if m["fits"]:
        return [*rows, ("fits", f"{total}, of {_gib(m['limit'])}")]
    rows.append(("does not fit", f"{total}, of {_gib(m['limit'])}"))
    what = m["remedies"] or ["nothing within 16,384 devices: a smaller network or shorter rows"]
    return [*rows, *(("would fit with", remedy) for remedy in what)]


def _loss_rows(loss: PredictionReport, length: LengthReport) -> list[tuple[str, str]]:
    here, best = loss["here"], loss["optimum"]
    rows = [
        ("law", f"{loss['law']}: {loss['citation']}; N counts {loss['counts']} parameters"),
        ("predicted here", f"{here['loss']:.4f}{_interval(here['ci95'], '.4f')} {loss['unit']}"),
        (
            "compute-optimal",
            (
                f"N* {_short(best['n'])}{_interval(best.get('n_ci95'))}, D*"
                f" {_short(best['d'])}{_interval(best.get('d_ci95'))} ({best['d'] / best['n']:,.1f}"
                f" tokens per parameter): {best['loss']:.4f}{_interval(best['ci95'], '.4f')}"
            ),
        ),
        ("interval", loss["interval"]),
    ]
    if loss["outside"]:
        rows.append(("extrapolation", "; ".join(loss["outside"])))
    if "repetition" in loss:
        again = loss["repetition"]
        rows.append(
            (
                "repeated data",
                (
                    f"{length['epochs']:.2f} epochs cost {again['loss_added']:+.4f}"
                    f" ({again['citation']})"
                ),
            )
        )
    if "lifetime" in loss:
        life = loss["lifetime"]
        rows.append(
            (
                "with inference",
                (
                    f"the same loss and {_short(life['inference_tokens'])} tokens served cost least"
                    f" with N {_short(life['n'])}, D {_short(life['d'])}: {life['flops']:.4g}"
                    f" FLOPs, {life['saved']:.3g} ({life['share']:.1%}) saved (Sardana et al. 2024)"
                ),
            )
        )
    return rows


def _recommended_rows(r: RecommendationReport, length: LengthReport) -> list[tuple[str, str]]:
    (low, high), (small, large) = r["lr"], r["batch_tokens"]
    chosen, rows = r["chosen"], []
    if chosen is None:
        rows.append(("recommended", f"nothing: the rules are for {r['optimizer']} and for Muon"))
    else:
        rows.append(
            (
                "recommended",
                f"batch {_short(chosen['batch_tokens'])} tokens, lr {chosen['lr']:.2g}"
                f" (--data.global_batch_tokens {chosen['batch_tokens']} --{chosen['option']}"
                f" {chosen['lr']:.3g}): {chosen['reason']}",
            )
        )
        own = length["tokens_per_step"]
        if own is not None and chosen["lr_here"] is not None and own != chosen["batch_tokens"]:
            rows.append(
                ("with this batch", f"{_short(own)} tokens: lr {chosen['lr_here']:.2g}, as √B")
            )
    rows.append(
        (
            "range",
            (
                f"lr {low:.2g} to {high:.2g}, batch {_short(small)} to {_short(large)} tokens:"
                f" published rules for {r['optimizer']}, which disagree"
            ),
        )
    )
    for rule in r["rules"]:
        lr = "" if rule["lr"] is None else f"lr {rule['lr']:.2g}, "
        regret = (
            ""
            if rule["regret"] is None
            else f"; regret {rule['regret'][0]:.2%}, at most {rule['regret'][1]:.2%}"
        )
        fitted = f"; {rule['fitted']}" if rule["fitted"] else ""
        rows.append(
            (
                rule["name"],
                f"{lr}batch {_short(rule['batch_tokens'])}{regret} ({rule['formula']};"
                f" {rule['source']}{fitted})",
            )
        )
    return rows


def _interval(bounds: list[float] | None, form: str = "") -> str:
    return (
        ""
        if bounds is None
        else " (" + "–".join(format(b, form) if form else _short(b) for b in bounds) + ")"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:,.2f} MiB"


def _duration(days: float) -> str:
    return f"{days:,.2f} days" if days >= 2 else f"{days * 24:,.2f} hours"


def _short(number: float) -> str:
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.3g}"


def draw_plan(plan: Plan, path: str) -> None:
    """Write the picture, whole or not at all.

    Raises:
        UserError: The file cannot be written, or its name does not end in .png.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UserError(f"png={path!r} must end in .png")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = 1 if plan["loss"] is None else 2
    figure, axes = plt.subplots(
        1, panels, figsize=(6 * panels, 4.8), layout="constrained", squeeze=False
    )
    _draw_memory(axes[0, 0], plan["memory"])
    if plan["loss"] is not None:
        _draw_loss(axes[0, 1], plan["loss"], plan["length"]["tokens"])
    try:
        with writing(f"--png={path}"), atomic_path(target) as scratch:
            figure.savefig(scratch, format="png", dpi=130)
    finally:
        plt.close(figure)


def _draw_memory(axes: Any, m: MemoryReport) -> None:
    names, sizes = list(m["phases"]), [value / GIB for value in m["phases"].values()]
    over, kept = m["overhead"] / GIB, sum(m["states"].values()) - m["states"]["gradients"]
    states = [min(kept / GIB, size) for size in sizes]
    axes.bar(names, states, color=_BLUE, label="weights and moments")
    axes.bar(
        names,
        [size - state for size, state in zip(sizes, states, strict=True)],
        bottom=states,
        color=_ORANGE,
        label="gradients, activations, head",
    )
    axes.bar(names, [over] * len(names), bottom=sizes, color=_GREY, label="beside tensors")
    for i, size in enumerate(sizes):
        axes.text(i, size + over, f"{size + over:,.3g}", ha="center", va="bottom")
    top = max(sizes) + over
    if m["limit"] is not None:
        axes.axhline(
            m["limit"] / GIB,
            color="black",
            linestyle="--",
            label=f"limit {m['limit'] / GIB:,.3g} GiB",
        )
        top = max(top, m["limit"] / GIB)
    axes.set(
        ylabel="memory of one device, GiB",
        title="Peak memory by phase of a step",
        ylim=(0, 1.3 * top),
    )
    axes.legend(loc="upper right", ncols=2, fontsize="small")


def _draw_loss(axes: Any, loss: PredictionReport, tokens: float) -> None:
    found, n, best = find_law(loss["law"]), loss["n"], loss["optimum"]
    budget = 6.0 * n * tokens
    low, high = sorted((n, best["n"]))
    sizes = np.geomspace(low / 8, high * 8, 200)
    axes.plot(
        sizes,
        found.loss(sizes, budget / 6 / sizes),
        color=_BLUE,
        label=f"{budget:.3g} FLOPs (6ND), {loss['law']}",
    )
    for value, kind, colour, label in (
        (loss["here"], "o", _ORANGE, "this run"),
        (best, "*", _GREEN, "compute-optimal"),
    ):
        size = n if kind == "o" else best["n"]
        bounds = value["ci95"]
        error = (
            None
            if bounds is None
            else [[max(0.0, value["loss"] - bounds[0])], [max(0.0, bounds[1] - value["loss"])]]
        )
        axes.errorbar(
            [size],
            [value["loss"]],
            yerr=error,
            fmt=kind,
            color=colour,
            markersize=11,
            capsize=4,
            label=label,
        )
    axes.set_xscale("log")
    axes.set(
        xlabel=f"parameters ({loss['counts']})",
        ylabel="loss, " + loss["unit"].split(" (")[0],
        title="Loss of every size on the same compute",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
