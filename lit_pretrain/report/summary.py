"""Summary: one page at the end of a run, written from its own metrics."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.report.run_folder import SUMMARY, read_metrics


class Foreseen(NamedTuple):
    """Hold the loss that a law expected of a run."""

    metric: str
    """The validation metric that it speaks of."""
    loss: float
    interval: tuple[float, float] | None
    """95 %."""
    text: str
    """The same in words, with the law's name."""

    def beside(self, final: Mapping[str, float]) -> str:
        """Set forecast and interval beside the final loss."""
        actual = final[self.metric]
        held = (
            ""
            if self.interval is None
            else ", within"
            if self.interval[0] <= actual <= self.interval[1]
            else ", outside"
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
) -> dict[str, float]:
    """Write summary.md and return the final figures.

    Args:
        run: The run's folder; its metrics.jsonl holds the figures.
        seconds: Wall time of this attempt, validation and checkpoints included.
        train_seconds: Wall time of its training steps alone.
        plan: The line printed before the run.
        mixture: The table printed before the run.
        samples: Generated text by prompt.
        forecast: What was expected before the run; None where no law covers it.
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
        f"| {s} | {last.get(f'mixture/{s}', math.nan):.1%} | {final[f'val_loss/{s}']:.4f} |"
        + (f" {final[f'val_bits_per_byte/{s}']:.4f} |" if bits else "")
        for s in sources
    ]
    foreseen = [] if forecast is None else [f"| forecast | {forecast.beside(final)} |"]
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
        "| figure | value |",
        "|---|---|",
        f"| validation loss | {figures['val/loss']:.4f} {unit} at step {final['step']:,} |",
        *foreseen,
        *(f"| validation bits per byte | {value:.4f} |" for value in bits.values()),
        *(f"| validation {key.removeprefix('val/')} | {value:.4f} |" for key, value in own.items()),
        f"| best validation loss | {best['val/loss']:.4f} at step {best['step']:,} |",
        f"| training loss, last window | {figures['train/loss']:.4f} |",
        f"| tokens | {figures['tokens']:,.0f} |",
        f"| training FLOPs | {figures['flops']:.4g} |",
        f"| time | {seconds:,.1f} s, of which {train_seconds:,.1f} s training steps |",
        f"| throughput, median window | {rates[len(rates) // 2]:,.0f} tokens per second |",
        "",
        "| source | share of the last window | validation loss |"
        + (" bits per byte |" if bits else ""),
        "|---|---|---|" + ("---|" if bits else ""),
        *rows,
        "",
        *(["## Samples", "", *texts] if texts else []),
    ]
    write_file(run / SUMMARY, "\n".join(page))
    return figures
