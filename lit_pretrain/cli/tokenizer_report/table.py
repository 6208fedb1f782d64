"""Table: the report for reading, at most 140 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from lit_pretrain.cli.tokenizer_report.measure import RARE

WIDTH = 140
_WIDTH_OF_MODEL = 1024
_COLUMNS = 5
_LONGEST = 10


def table(report: dict[str, Any]) -> str:
    """The text of a report."""
    lines = [f"{report['path']}" + (f" (data {report['manifest'][:16]})" if report["manifest"] else ""), "", *_tokenizers(report)]
    for begin in range(0, len(report["tokenizers"]), _COLUMNS):
        if report["results"]:
            lines += ["", *_bytes_per_token(report, [facts["name"] for facts in report["tokenizers"][begin : begin + _COLUMNS]])]
    if report["use"] is not None:
        lines += ["", *_use(report["use"], report["tokenizers"][0]["name"])]
    lines += ["", *_wrapped("longest tokens", report["longest"][:_LONGEST], " ")]
    for title, cuts in {**report["probes"], **{f"example of {name}": cuts for name, cuts in report["examples"].items()}}.items():
        lines += ["", f"{title} (· space, ⏎ line end, → tab):"]
        for name, pieces in cuts.items():
            lines += _wrapped(f"  {name}, {len(pieces)} tokens", pieces, "│")
    return "\n".join(lines) + "\n"


def _tokenizers(report: dict[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = [
        (
            "tokenizer",
            "ids",
            "embedding",
            "special",
            "regex",
            "bytes/token",
            "one-byte",
            "cut chars",
            "docs cut",
            "chars outside",
            "encoder",
        )
    ]
    for facts in report["tokenizers"]:
        name, figures = facts["name"], report["results"].get(facts["name"], {}).get("all", {})
        outside = report["characters_outside"].get(name)
        cut = figures.get("documents_with_cut_characters")
        rows.append(
            (
                name,
                f"{facts['vocab_size']:,}",
                f"{facts['vocab_size'] * _WIDTH_OF_MODEL / 1e6:.1f} M",
                str(facts["special_tokens"]),
                facts["pattern"] or "unknown",
                _number(figures.get("bytes_per_token")),
                _percent(figures.get("one_byte_share")),
                _percent(figures.get("cut_character_share")),
                "-" if cut is None else f"{cut:,}",
                "-" if outside is None else f"{outside['distinct']:,} of {outside['of']:,}",
                facts["encoder"],
            )
        )
    notes = [
        f"embedding: parameters of one table at width {_WIDTH_OF_MODEL:,}; an untied model has two. A larger vocabulary gives more bytes "
        "per token and pays for it with a larger embedding and head: compare bytes/token only between vocabularies of about the same size.",
        "bytes/token: higher is better (same text, separators not counted). one-byte: bytes in tokens of one byte. cut chars: bytes in "
        "tokens that are not whole characters. docs cut: documents with any. chars outside: distinct characters that no token spells "
        "whole. In these four lower is better.",
    ]
    if report["normalizes"]:
        notes.append("The dataset's tokenizer normalises text, and the sample is decoded from its tokens: it is normalised for all.")
    return [*_aligned(rows, left=(0, 4, 10)), *(line for note in notes for line in textwrap.wrap(note, WIDTH))]


def _bytes_per_token(report: dict[str, Any], names: list[str]) -> list[str]:
    """A row per source, a column per tokenizer."""
    rows: list[Sequence[str]] = [("bytes per token", "sample docs", "sample bytes", *names, "as stored")]
    for source, sample in report["samples"].items():
        stored = report["stored"].get(source, {}).get("bytes_per_token")
        figures = [_number(report["results"][name][source]["bytes_per_token"]) for name in names]
        rows.append((source[-32:], f"{sample['documents']:,}", f"{sample['bytes']:,}", *figures, _number(stored)))
    documents, size = (sum(sample[key] for sample in report["samples"].values()) for key in ("documents", "bytes"))
    figures = [_number(report["results"][name]["all"]["bytes_per_token"]) for name in names]
    rows.append(("all", f"{documents:,}", f"{size:,}", *figures, "-"))
    note = "Higher is better. as stored: the whole training split with its own tokenizer, separators counted."
    return [*_aligned(rows, left=(0,)), note]


def _use(use: dict[str, Any], name: str) -> list[str]:
    tokens = use["tokens"]
    lines = [
        f"ids of {name} in {use['where']} ({tokens:,} tokens):",
        f"  {use['unused']:,} of {use['ordinary_ids']:,} ordinary ids are unused ({use['unused'] / max(1, use['ordinary_ids']):.1%}), "
        f"{use['rare']:,} occur fewer than {RARE} times (fewer is better: they cost rows and learn nothing)",
    ]
    if use["unused_examples"]:
        lines += _wrapped("  unused, for example", use["unused_examples"], " ")
    if use["special_tokens_unused"]:
        lines += _wrapped("  special tokens unused", use["special_tokens_unused"][:20], " ")
    if use["ids_without_token"]:
        lines.append(f"  {use['ids_without_token']:,} ids below {use['ids_without_token'] + use['ordinary_ids']:,} have no token")
    if tokens:
        shares = ", ".join(f"{int(k):,} ids {share:.1%}" for k, share in use["coverage"].items())
        lines.append(f"  coverage: the most frequent {shares} of all tokens; 99 % need {use['ids_for_99_percent']:,} ids")
    return lines


def _aligned(rows: list[Sequence[str]], *, left: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if n in left else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [lines[0].rstrip(), "─" * max(len(line.rstrip()) for line in lines), *(line.rstrip() for line in lines[1:])]


def _wrapped(title: str, pieces: Sequence[str], boundary: str) -> list[str]:
    """Pieces with a boundary between them, broken where the line is full."""
    lines, line = [f"{title}:"], "    "
    for piece in pieces:
        shown = piece if len(piece) <= 100 else f"{piece[:60]}… ({len(piece)} characters)"
        if len(line) + len(shown) + 1 > WIDTH:
            lines.append(line)
            line = "    "
        line += shown + boundary
    return [*lines, line.rstrip()] if pieces else lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
