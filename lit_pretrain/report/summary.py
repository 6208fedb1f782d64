"""Summary: one page at the end of a run, from its own metrics, as text and with pictures."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.report.charts import chart_svg, loss_charts, other_charts, short
from lit_pretrain.report.html_page import html_page, html_table
from lit_pretrain.report.run_folder import SUMMARY, SUMMARY_PAGE, read_metrics


class Foreseen(NamedTuple):
    """Hold the loss that a law expected of a run."""

    metric: str
    """The validation metric that it speaks of."""
    loss: float
    interval: tuple[float, float] | None
    """95 %."""
    text: str
    """The same in words, with the law's name."""

    def contradicts(self, actual: float) -> bool:
        """Tell whether a final loss lies outside the interval, which holds 19 of 20 runs."""
        return self.interval is not None and not self.interval[0] <= actual <= self.interval[1]

    def beside(self, final: Mapping[str, float]) -> str:
        """Set forecast and interval beside the final loss."""
        actual = final[self.metric]
        held = (
            ""
            if self.interval is None
            else ", outside its interval: this run contradicts the law"
            if self.contradicts(actual)
            else ", within"
        )
        return (
            f"{self.text}; actual {actual:.4f}, {actual - self.loss:+.4f}"
            f" ({actual / self.loss - 1:+.2%}){held}"
        )


def write_summary(
    run: Path,
    *,
    seconds: float,
    train_seconds: float,
    plan: str,
    mixture: str,
    samples: Mapping[str, str],
    forecast: Foreseen | None = None,
    goodput: str | None = None,
) -> dict[str, float]:
    """Write summary.md and summary.html, and return the final figures.

    Args:
        run: The run's folder; its metrics.jsonl holds the figures.
        seconds: Wall time of this attempt, validation and checkpoints included.
        train_seconds: Wall time of its training steps alone.
        plan: The line printed before the run.
        mixture: The table printed before the run.
        samples: Generated text by prompt.
        forecast: What was expected before the run; None where no law covers it.
        goodput: Where the wall time of all attempts went, in words; None where it is not known.
    """
    lines = read_metrics(run)
    train = [line for line in lines if "train/loss" in line]
    held_out = [line for line in lines if "val/loss" in line]
    if not train or not held_out:
        raise UserError(
            f"{run} ended without a {'validation' if train else 'step'}: a callback of"
            " trainer.callbacks has stopped it"
        )
    last, final = train[-1], held_out[-1]
    best = min(held_out, key=lambda line: line["val/loss"])
    bits = {key: final[key] for key in ("val/bits_per_byte",) if key in final}
    unit = "nats per token" if bits else "of the objective"
    own = {
        key: value
        for key, value in final.items()
        if key.startswith("val/") and key not in ("val/loss", *bits)
    }
    figures = {
        "val/loss": final["val/loss"],
        **bits,
        "train/loss": last["train/loss"],
        "tokens": last["progress/tokens"],
        "flops": last["progress/flops"],
    }
    rates = sorted(line["throughput/tokens_per_second"] for line in train)
    sources = [key.split("/", 1)[1] for key in final if key.startswith("val_loss/")]
    rows = [
        (
            source,
            f"{last.get(f'mixture/{source}', math.nan):.1%}",
            f"{final[f'val_loss/{source}']:.4f}",
            *([f"{final[f'val_bits_per_byte/{source}']:.4f}"] if bits else []),
        )
        for source in sources
    ]
    table = [
        ("figure", "value"),
        ("validation loss", f"{figures['val/loss']:.4f} {unit} at step {final['step']:,}"),
        *([] if forecast is None else [("forecast", forecast.beside(final))]),
        *(("validation bits per byte", f"{value:.4f}") for value in bits.values()),
        *((f"validation {key.removeprefix('val/')}", f"{value:.4f}") for key, value in own.items()),
        ("best validation loss", f"{best['val/loss']:.4f} at step {best['step']:,}"),
        ("training loss, last window", f"{figures['train/loss']:.4f}"),
        *_noise_rows(lines),
        ("tokens", f"{figures['tokens']:,.0f}"),
        ("training FLOPs", f"{figures['flops']:.4g}"),
        ("time", f"{seconds:,.1f} s, of which {train_seconds:,.1f} s training steps"),
        *([] if goodput is None else [("goodput", goodput)]),
        ("throughput, median window", f"{rates[len(rates) // 2]:,.0f} tokens per second"),
    ]
    head = ("source", "share of the last window", "validation loss")
    by_source = [head + (("bits per byte",) if bits else ()), *rows]
    texts = [f"### {prompt!r}\n\n```\n{text}\n```\n" for prompt, text in samples.items()]
    page = [
        f"# {run.name}",
        "",
        plan,
        "",
        "```",
        mixture,
        "```",
        "",
        *_markdown(table),
        "",
        *_markdown(by_source),
        "",
        *(["## Samples", "", *texts] if texts else []),
    ]
    write_file(run / SUMMARY, "\n".join(page))
    foreseen = None if forecast is None else forecast.metric
    charts = [*loss_charts(lines, unit=unit, forecast=foreseen), *other_charts(lines)]
    figures_html = "\n".join(chart_svg(chart, f"chart-{i}") for i, chart in enumerate(charts))
    texts_html = "".join(
        f"<h3>{escape(repr(prompt))}</h3><pre>{escape(text)}</pre>"
        for prompt, text in samples.items()
    )
    html = html_page(
        run.name,
        f"<p>{escape(plan).replace(chr(10), '<br>')}</p>\n"
        f'<div class="figures">{figures_html}</div>\n'
        f'<div class="tables">{html_table(table)}{html_table(by_source)}</div>\n'
        f"<pre>{escape(mixture)}</pre>\n" + (f"<h2>Samples</h2>{texts_html}" if texts_html else ""),
    )
    write_file(run / SUMMARY_PAGE, html)
    return figures


def _noise_rows(lines: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """Write the gradient noise scale at the end of a run that has measured it."""
    measured = [line for line in lines if "gradient_signal/all" in line]
    if not measured:
        return []
    scales = {
        name.removeprefix("noise_scale/"): value
        for name, value in measured[-1].items()
        if name.startswith("noise_scale/")
    }
    times = f"measurements: {len(measured):,}"
    if "all" not in scales:
        text = f"not to be seen: the signal is too small among the noise; {times}"
    else:
        roles = ", ".join(f"{role} {short(scales[role])}" for role in scales if role != "all")
        text = f"{short(scales['all'])} tokens ({roles}); {times}"
    return [("gradient noise scale", text)]


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return [lines[0], f"|{'---|' * len(table[0])}", *lines[1:]]
