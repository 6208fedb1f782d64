"""Progress of `prepare` on stderr, and the tables that it prints at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.prepare.funnel import score_bars
from lit_pretrain.prepare.read.file_choice import list_passed_over

Advance = Callable[[int], None]


def say(text: str) -> None:
    """Print one line about the work to stderr, for stdout is for the result."""
    print(f"prepare: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def show_progress(
    title: str, total: int, unit: Literal["bytes", "tasks"] = "bytes"
) -> Iterator[tuple[Advance, list[str]]]:
    """Show a step of the work: a bar on a terminal, and one line when it is done.

    Args:
        title: What the step does.
        total: Work, in `unit`.
        unit: Unit of the work.

    Yields:
        A function that takes the work that was done since its last call, and a list to which the
        caller may add figures for the line at the end.
    """
    begin = time.perf_counter()
    figures: list[str] = []
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        counted: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
        if unit == "bytes":
            counted = [DownloadColumn(), TransferSpeedColumn()]
        times = [TimeElapsedColumn(), TextColumn("remaining:"), TimeRemainingColumn()]
        with Progress(
            TextColumn("prepare: {task.description}"),
            BarColumn(),
            *counted,
            *times,
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task(title, total=total, rate="")

            def advance(done: int) -> None:
                progress.advance(task, done)
                if unit == "tasks" and (speed := progress.tasks[0].speed):
                    progress.update(
                        task, rate=f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
                    )

            yield advance, figures
            progress.update(task, completed=total)
    else:
        yield (lambda done: None), figures
    say(f"{title}: {', '.join([*figures, f'{time.perf_counter() - begin:.1f} s'])}")


def dataset_table(manifest: Manifest) -> str:
    """Format documents, bytes and tokens of every source and split."""
    rows = [
        (
            "source",
            "split",
            "documents",
            "bytes",
            "share",
            "tokens",
            "bytes/token",
            "chunks",
            "held out by",
        )
    ]
    for name, source in manifest.sources.items():
        whole = sum(part.bytes for part in source.splits.values())
        for split in SPLITS:
            part = source.splits[split]
            how = (
                HELD_OUT[source.held_out[split]] if part.tokens and split in source.held_out else ""
            )
            rows.append(
                (
                    name,
                    split,
                    *_figures(part.documents, part.bytes, whole, part.tokens),
                    str(len(part.chunks)),
                    how,
                )
            )
    whole = sum(
        part.bytes for source in manifest.sources.values() for part in source.splits.values()
    )
    for split in SPLITS:
        parts = [source.splits[split] for source in manifest.sources.values()]
        total = _figures(
            sum(p.documents for p in parts),
            sum(p.bytes for p in parts),
            whole,
            sum(p.tokens for p in parts),
        )
        rows.append(("all", split, *total, str(sum(len(p.chunks) for p in parts)), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i in (0, 1, len(row) - 1) else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "─" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1 : -len(SPLITS)], rule, *lines[-len(SPLITS) :]])


HELD_OUT = {
    "hash": "hash of each document",
    "bytes": "documents up to the share",
    "tail": "end of a document",
}
"""In words, how the text of a split was chosen, by its name in the manifest."""


def _figures(documents: int, size: int, whole: int, tokens: int) -> tuple[str, str, str, str, str]:
    """Format counts with separators, the share of all bytes, and the bytes of a token."""
    ratio = f"{size / tokens:.3f}" if tokens else "-"
    return f"{documents:,}", f"{size:,}", f"{size / max(1, whole):.1%}", f"{tokens:,}", ratio


def funnel_table(manifest: Manifest) -> str:
    """Format what each step of each source let through, and why it removed the rest.

    Tokens with ≈ are estimates from a sample of what left the step. The last lines count the files
    that lay beside those that were read, by their ending.
    """
    lines = [
        f"{'source':<12} {'step':<18} {'documents':>11} {'bytes':>15} {'tokens':>15} {'left':>7} "
        " removed or changed"
    ]
    lines.append("─" * 128)
    for name, source in manifest.sources.items():
        first = source.funnel[0].bytes
        for step in source.funnel:
            tokens = f"{'≈ ' if step.tokens_estimated else ''}{step.tokens:,}"
            share = f"{step.bytes / first:.1%}" if first else "-"
            what = [
                f"{count:,} {WORDS.get(reason, reason)}" for reason, count in _most(step.removed)
            ]
            what += [
                f"{count:,} {WORDS.get(reason, reason)} (kept)"
                for reason, count in _most(step.changed)
            ]
            lines.append(
                f"{name:<12} {step.name:<18} {step.documents:>11,} {step.bytes:>15,} {tokens:>15}"
                f" {share:>7}  {', '.join(what)}".rstrip()
            )
            name = ""
    for name, source in manifest.sources.items():
        lines += [
            f"{name}: scores of {step.name} from 0 to 1: {score_bars(step.scores)}"
            for step in source.funnel
            if step.scores
        ]
    for name, source in manifest.sources.items():
        if source.passed_over:
            lines.append(
                f"{name}: {source.files:,} {'file' if source.files == 1 else 'files'} read; passed"
                f" over: {list_passed_over(source.passed_over)}"
            )
    return "\n".join(lines)


WORDS = {
    "undecodable": "not UTF-8",
    "duplicate_id": "with a repeated id",
    "too_large": "too large",
    "replaced": "with bytes replaced by U+FFFD",
    "cut": "cut at the chunk limit",
    "end_held_out": "with a held-out end",
    "unspelt": "not spelt in full by the tokenizer",
}
"""Reasons that need other words than their name."""


def _most(counts: Mapping[str, int], most: int = 4) -> list[tuple[str, int]]:
    """List the commonest reasons, and the rest as one."""
    found = sorted(
        ((reason, count) for reason, count in counts.items() if count),
        key=lambda pair: (-pair[1], pair[0]),
    )
    rest = sum(count for _, count in found[most:])
    return found[:most] + ([("for other reasons", rest)] if rest else [])
