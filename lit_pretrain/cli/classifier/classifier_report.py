"""Report on a classifier: what it is worth on held-out examples, and which threshold keeps what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from lit_pretrain.cli.classifier.examples import read_examples
from lit_pretrain.cli.classifier.train_classifier import HeldOutMeasures
from lit_pretrain.cli.scaling.options import aligned
from lit_pretrain.files import file_sha256, write_file, writing
from lit_pretrain.prepare.filters.classifier import TextClassifier, threshold_for
from lit_pretrain.prepare.funnel import score_bars, score_histogram
from lit_pretrain.report.charts import histogram_svg
from lit_pretrain.report.html_page import html_page, html_table

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Wanted shares for which thresholds are shown."""


class ThresholdFigures(TypedDict):
    """A wanted share of some text, and the threshold that keeps it."""

    share: float
    threshold: float
    kept_negative: float
    """Share of the held-out negative examples at or above it."""
    kept_positive: float


class ScoredText(TypedDict):
    """Scores of text that the user named."""

    paths: list[str]
    texts: int
    bytes: int
    scores: list[int]
    """Histogram over texts."""
    thresholds: list[ThresholdFigures]
    """By share of the bytes."""


class ClassifierReport(TypedDict):
    """All figures, as `classifier report --json` prints them."""

    path: str
    sha256: str
    strength: float
    examples: Mapping[str, Mapping[str, Any]]
    in_both: int
    words: Mapping[str, Sequence[str]]
    held_out: HeldOutMeasures
    thresholds: list[ThresholdFigures]
    """By share of the held-out negative examples."""
    text: ScoredText | None


def classifier_report(
    path: str,
    *,
    text: Sequence[str] = (),
    text_field: str = "text",
    separator: str | None = None,
) -> ClassifierReport:
    """Examine a classifier.

    Args:
        path: Its file.
        text: Files and folders of text to score, as for training.
        text_field: See `read_examples`, like `separator`.
        separator: See there.

    Raises:
        UserError: Something cannot be read.
    """
    classifier = TextClassifier.load(path)
    about = classifier.about
    held_out: HeldOutMeasures = about["held_out"]
    scored = None
    if text:
        found = read_examples("--text", text, text_field=text_field, separator=separator)
        texts = list(found.texts.values())
        scores = np.array([classifier.score(each) for each in texts])
        sizes = np.array([len(each.encode("utf-8", "surrogatepass")) for each in texts])
        scored = ScoredText(
            paths=list(text),
            texts=len(texts),
            bytes=int(sizes.sum()),
            scores=score_histogram(scores),
            thresholds=_thresholds(scores, sizes, held_out),
        )
    return ClassifierReport(
        path=path,
        sha256=file_sha256(Path(path).expanduser()),
        strength=about["strength"],
        examples=about["examples"],
        in_both=about["in_both"],
        words=about["words"],
        held_out=held_out,
        thresholds=_thresholds(np.array(held_out["negative_quantiles"]), np.ones(1001), held_out),
        text=scored,
    )


def _thresholds(
    scores: npt.NDArray[Any], sizes: npt.NDArray[Any], held_out: HeldOutMeasures
) -> list[ThresholdFigures]:
    """Find the threshold of each share, and what it keeps of the held-out examples."""
    found = []
    for share in SHARES:
        threshold = threshold_for(scores, sizes, share)
        found.append(
            ThresholdFigures(
                share=share,
                threshold=threshold,
                kept_negative=_above(held_out["negative_quantiles"], threshold),
                kept_positive=_above(held_out["positive_quantiles"], threshold),
            )
        )
    return found


def _above(quantiles: Sequence[float], threshold: float) -> float:
    """Return the share of texts at or above a threshold, to a per mille."""
    below = int(np.searchsorted(quantiles, threshold, side="left"))
    return 1 - below / len(quantiles)


# ------------------------------------------------------------------ the table


def classifier_table(report: ClassifierReport) -> str:
    """Format a report for the terminal."""
    lines = [f"{report['path']} (sha256 {report['sha256'][:16]})", ""]
    for title, rows in _tables(report).items():
        lines += [title, *(f"  {line}" for line in aligned(rows)), ""]
    lines += ["scores from 0 to 1, a column for each twentieth:"]
    lines += [f"  {line}" for line in aligned(_bars(report))]
    for side, words in report["words"].items():
        if words:
            lines.append(f"words that speak for the {side} side: {' '.join(words)}")
    return "\n".join(lines) + "\n"


def _tables(report: ClassifierReport) -> dict[str, list[tuple[str, ...]]]:
    """Lay out the tables of a report by title; the first row of each is its head."""
    held_out = report["held_out"]
    low, high = held_out["auc_interval"]
    examples: list[tuple[str, ...]] = [
        ("examples", "distinct texts", "bytes", "copies left out", "unusable")
    ]
    examples += [
        (name, f"{its['texts']:,}", f"{its['bytes']:,}", f"{its['copies']:,}", f"{its['bad']:,}")
        for name, its in report["examples"].items()
    ]
    if report["in_both"]:
        examples.append(("on both sides, left out", f"{report['in_both']:,}", "", "", ""))
    tables: dict[str, list[tuple[str, ...]]] = {
        "trained on": examples,
        (
            f"measured on {held_out['positive']:,} positive and {held_out['negative']:,} negative"
            " examples that were held out"
        ): [
            ("measure", "value", "a classifier that knows nothing"),
            ("AUC", f"{held_out['auc']:.4f} ({low:.4f} to {high:.4f})", "0.5"),
            ("log loss, nats", f"{held_out['log_loss']:.4f}", "0.6931"),
            ("Brier score", f"{held_out['brier']:.4f}", "0.25"),
            ("calibration error", f"{held_out['calibration_error']:.4f}", "0"),
        ],
        "calibration: of held-out texts with such a score, both sides weighing the same": [
            ("score", "texts", "mean score", "positive"),
            *(
                (
                    f"{number / 10:.1f} to {(number + 1) / 10:.1f}",
                    f"{its['texts']:,}",
                    f"{its['mean_score']:.3f}" if its["texts"] else "-",
                    f"{its['positive']:.3f}" if its["texts"] else "-",
                )
                for number, its in enumerate(held_out["calibration"])
            ),
        ],
        "threshold by wanted share of the negative examples": _threshold_rows(report["thresholds"]),
    }
    if (text := report["text"]) is not None:
        title = (
            f"threshold by wanted share of {' '.join(text['paths'])} ({text['texts']:,} texts,"
            f" {text['bytes']:,} bytes)"
        )
        tables[title] = _threshold_rows(text["thresholds"])
    return tables


def _threshold_rows(thresholds: Sequence[ThresholdFigures]) -> list[tuple[str, ...]]:
    return [
        ("share", "threshold", "of negative examples", "of positive examples"),
        *(
            (
                f"{its['share']:.0%}",
                f"{its['threshold']:.6f}",
                f"{its['kept_negative']:.1%}",
                f"{its['kept_positive']:.1%}",
            )
            for its in thresholds
        ),
    ]


def _histograms(report: ClassifierReport) -> dict[str, list[int]]:
    found = {
        "positive": report["held_out"]["positive_scores"],
        "negative": report["held_out"]["negative_scores"],
    }
    return found if report["text"] is None else {**found, "text": report["text"]["scores"]}


def _bars(report: ClassifierReport) -> list[tuple[str, ...]]:
    return [(name, score_bars(counts)) for name, counts in _histograms(report).items()]


def write_html(report: ClassifierReport, place: str) -> None:
    """Write a report as one page that needs nothing else.

    Raises:
        UserError: The place cannot be written.
    """
    title = f"Classifier {Path(report['path']).name}"
    figures = histogram_svg("scores, share of the texts", _histograms(report))
    tables = "".join(
        f"<div><h3>{escape(name)}</h3>{html_table(rows)}</div>"
        for name, rows in _tables(report).items()
    )
    words = html_table(
        [("side", "words that speak for it")]
        + [(side, " ".join(words)) for side, words in report["words"].items()]
    )
    body = (
        f"<p>sha256 {report['sha256']}</p>"
        f'<div class="figures">{figures}</div><div class="tables">{tables}{words}</div>'
    )
    with writing(f"--html={place}"):
        write_file(Path(place).expanduser(), html_page(title, body))
