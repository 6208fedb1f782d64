"""Report on the tokenizer of a prepared dataset, or on a tokenizer by itself."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from lit_pretrain.cli.tokenizer import compare_tokenizers as measure
from lit_pretrain.cli.tokenizer.compare_tokenizers import RARE, Contestant, find_contestant
from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.chunk_reader import sample_documents, token_counts
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer

SPLIT = "train"
SampleTexts = Mapping[str, Sequence[str]]


class TokenizerFacts(TypedDict):
    """A tokenizer itself."""

    name: str
    path: str
    vocab_size: int
    special_tokens: int
    pattern: str | None
    encoder: str


class StoredFigures(TypedDict):
    """What the dataset itself holds of a source."""

    tokens: int
    bytes: int
    bytes_per_token: float | None


class SampleSize(TypedDict):
    """Size of the text that a source is compared on."""

    documents: int
    bytes: int


class TokenizerReport(TypedDict):
    """All figures, as `tokenizer report --json` prints them."""

    path: str
    manifest: str | None
    normalizes: bool
    tokenizers: list[TokenizerFacts]
    samples: dict[str, SampleSize]
    stored: dict[str, StoredFigures]
    results: dict[str, dict[str, measure.SourceFigures]]
    characters_outside: dict[str, measure.OutsideReport | None]
    use: measure.UseReport | None
    longest: list[str]
    probes: dict[str, dict[str, list[str]]]
    examples: dict[str, dict[str, list[str]]]


def tokenizer_report(
    path: str,
    *,
    against: Sequence[str] = (),
    text: Sequence[str] = (),
    sample_bytes: int = 1_000_000,
) -> TokenizerReport:
    """Examine the tokenizer of a dataset, or a tokenizer by itself.

    It holds the sample (`sample_bytes` per source) in memory.

    Args:
        path: A prepared dataset, a tokenizer.json, a folder that holds one, or the name of an
            encoding of tiktoken's.
        against: Tokenizers to compare it with, likewise.
        text: UTF-8 files to compare on, each a source of one document. Default: documents of the
            dataset's training split.
        sample_bytes: UTF-8 bytes to compare on, per source or file.

    Raises:
        UserError: Something cannot be read, or is no dataset and no tokenizer.
    """
    if "://" in path:
        raise UserError(f"{path} is remote; name a local copy")
    if sample_bytes < 1:
        raise UserError(f"sample_bytes={sample_bytes} must be at least 1")
    where = Path(path).expanduser()
    manifest = Manifest.load(where) if (where / manifests.MANIFEST_FILENAME).is_file() else None
    own = Tokenizer.load(where) if manifest is not None else None
    if manifest is not None and own is not None and own.hash != manifest.tokenizer.hash:
        raise UserError(
            f"the tokenizer.json in {path} ({own.hash[:12]}) is not the one that encoded the data"
            f" ({manifest.tokenizer.hash[:12]}); copy the dataset again from where it came from, or"
            " run `lit_pretrain prepare` again"
        )
    contestants = find_contestant([path, *against], own)
    samples: dict[str, list[str]] = {name: [_read(name, sample_bytes)] for name in text}
    if manifest is not None and own is not None and not samples:
        samples = {
            name: list(sample_documents(where, manifest, name, own, size=sample_bytes, split=SPLIT))
            for name, source in manifest.sources.items()
            if source.splits[SPLIT].tokens
        }
    if against and not samples:
        raise UserError(
            f"{path} is a tokenizer without data, so there is nothing to compare on; name files"
            " with --text"
        )
    return {
        "path": path,
        "manifest": manifest.hash if manifest is not None else None,
        "normalizes": own is not None and own.normalizes and not text,
        "tokenizers": [_facts(contestant) for contestant in contestants],
        "samples": {
            name: {"documents": len(texts), "bytes": sum(len(t.encode()) for t in texts)}
            for name, texts in samples.items()
        },
        "stored": (
            {}
            if manifest is None
            else {name: _stored(source) for name, source in manifest.sources.items()}
        ),
        "results": measure.compare_tokenizers(contestants, samples) if samples else {},
        "characters_outside": (
            {c.name: measure.characters_outside(c, samples) for c in contestants} if samples else {}
        ),
        "use": _use_report(contestants[0], where, manifest, samples),
        "longest": measure.longest(contestants[0]),
        "probes": {name: _cuts(contestants, probe) for name, probe in measure.PROBES.items()},
        "examples": {
            name: _cuts(contestants, measure.compared_excerpt(texts))
            for name, texts in samples.items()
        },
    }


def _use_report(
    contestant: Contestant, where: Path, manifest: Manifest | None, samples: SampleTexts
) -> measure.UseReport | None:
    """Report the use of ids in the whole training split, where there is one, else in the sample."""
    if manifest is not None:
        counts = token_counts(where, manifest, SPLIT)
        return measure.use(contestant, counts, where=f"the {SPLIT} split")
    if not samples:
        return None
    return measure.use(contestant, measure.count(contestant, samples), where="the text given")


def _cuts(contestants: Sequence[Contestant], text: str) -> dict[str, list[str]]:
    return {contestant.name: measure.cuts(contestant, text) for contestant in contestants}


def _facts(contestant: Contestant) -> TokenizerFacts:
    return {
        "name": contestant.name,
        "path": contestant.path,
        "vocab_size": contestant.vocab_size,
        "special_tokens": len(contestant.special),
        "pattern": contestant.pattern,
        "encoder": contestant.encoder,
    }


def _stored(source: manifests.Source) -> StoredFigures:
    part = source.splits[SPLIT]
    return {
        "tokens": part.tokens,
        "bytes": part.bytes,
        "bytes_per_token": part.bytes / part.tokens if part.tokens else None,
    }


def _read(name: str, size: int) -> str:
    """Read the beginning of a text file."""
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(size)
            rest = file.read(1)
    except OSError as error:
        raise UserError(f"--text {name} cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if rest and error.reason == "unexpected end of data":  # the size cut a character
            return data[: error.start].decode("utf-8")
        raise UserError(
            f"--text {name} is not UTF-8: {error}; convert it, e.g. `iconv -t utf-8`"
        ) from None


# ---------------------------------------------------------------- the table, at most 140 columns


_WIDTH = 140
_WIDTH_OF_MODEL = 1024
_COLUMNS = 5
_LONGEST = 10


def tokenizer_table(report: TokenizerReport) -> str:
    """Format a report."""
    lines = [
        f"{report['path']}" + (f" (data {report['manifest'][:16]})" if report["manifest"] else ""),
        "",
        *_tokenizers(report),
    ]
    for begin in range(0, len(report["tokenizers"]), _COLUMNS):
        if report["results"]:
            lines += [
                "",
                *_bytes_per_token(
                    report,
                    [facts["name"] for facts in report["tokenizers"][begin : begin + _COLUMNS]],
                ),
            ]
    if report["use"] is not None:
        lines += ["", *_use_table(report["use"], report["tokenizers"][0]["name"])]
    lines += ["", *_wrapped("longest tokens", report["longest"][:_LONGEST], " ")]
    for title, cuts in {
        **report["probes"],
        **{f"example of {name}": cuts for name, cuts in report["examples"].items()},
    }.items():
        lines += ["", f"{title} (· space, ⏎ line end, → tab):"]
        for name, pieces in cuts.items():
            lines += _wrapped(f"  {name}, {len(pieces)} tokens", pieces, "│")
    return "\n".join(lines) + "\n"


def _tokenizers(report: TokenizerReport) -> list[str]:
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
        name = facts["name"]
        figures = report["results"][name]["all"] if report["results"] else None
        outside = report["characters_outside"].get(name)
        cut = None if figures is None else figures["documents_with_cut_characters"]
        rows.append(
            (
                name,
                f"{facts['vocab_size']:,}",
                f"{facts['vocab_size'] * _WIDTH_OF_MODEL / 1e6:.1f} M",
                str(facts["special_tokens"]),
                facts["pattern"] or "unknown",
                _number(None if figures is None else figures["bytes_per_token"]),
                _percent(None if figures is None else figures["one_byte_share"]),
                _percent(None if figures is None else figures["cut_character_share"]),
                "-" if cut is None else f"{cut:,}",
                "-" if outside is None else f"{outside['distinct']:,} of {outside['of']:,}",
                facts["encoder"],
            )
        )
    notes = [
        (
            f"embedding: parameters of one table at width {_WIDTH_OF_MODEL:,}; an untied model has"
            " two. A larger vocabulary gives more bytes per token and pays for it with a larger"
            " embedding and head: compare bytes/token only between vocabularies of about the same"
            " size."
        ),
        (
            "bytes/token: higher is better (same text, separators not counted). one-byte: bytes in"
            " tokens of one byte. cut chars: bytes in tokens that are not whole characters. docs"
            " cut: documents with any. chars outside: distinct characters that no token spells"
            " whole. In these four lower is better."
        ),
    ]
    if report["normalizes"]:
        notes.append(
            "The dataset's tokenizer normalises text, and the sample is decoded from its tokens: it"
            " is normalised for all."
        )
    return [
        *_aligned(rows, left=(0, 4, 10)),
        *(line for note in notes for line in textwrap.wrap(note, _WIDTH)),
    ]


def _bytes_per_token(report: TokenizerReport, names: list[str]) -> list[str]:
    """Format bytes per token, with a row per source and a column per tokenizer."""
    rows: list[Sequence[str]] = [
        ("bytes per token", "sample docs", "sample bytes", *names, "as stored")
    ]
    for source, sample in report["samples"].items():
        stored = report["stored"].get(source)
        figures = [_number(report["results"][name][source]["bytes_per_token"]) for name in names]
        rows.append(
            (
                source[-32:],
                f"{sample['documents']:,}",
                f"{sample['bytes']:,}",
                *figures,
                _number(None if stored is None else stored["bytes_per_token"]),
            )
        )
    documents = sum(sample["documents"] for sample in report["samples"].values())
    size = sum(sample["bytes"] for sample in report["samples"].values())
    figures = [_number(report["results"][name]["all"]["bytes_per_token"]) for name in names]
    rows.append(("all", f"{documents:,}", f"{size:,}", *figures, "-"))
    note = (
        "Higher is better. as stored: the whole training split with its own tokenizer, separators"
        " counted."
    )
    return [*_aligned(rows, left=(0,)), note]


def _use_table(use: measure.UseReport, name: str) -> list[str]:
    tokens = use["tokens"]
    lines = [
        f"ids of {name} in {use['where']} ({tokens:,} tokens):",
        (
            f"  {use['unused']:,} of {use['ordinary_ids']:,} ordinary ids are unused"
            f" ({use['unused'] / max(1, use['ordinary_ids']):.1%}), {use['rare']:,} occur fewer"
            f" than {RARE} times (fewer is better: they cost rows and learn nothing)"
        ),
    ]
    if use["unused_examples"]:
        lines += _wrapped("  unused, for example", use["unused_examples"], " ")
    if use["special_tokens_unused"]:
        lines += _wrapped("  special tokens unused", use["special_tokens_unused"][:20], " ")
    if use["ids_without_token"]:
        lines.append(
            f"  {use['ids_without_token']:,} ids below"
            f" {use['ids_without_token'] + use['ordinary_ids']:,} have no token"
        )
    if tokens:
        shares = ", ".join(f"{int(k):,} ids {share:.1%}" for k, share in use["coverage"].items())
        lines.append(
            f"  coverage: the most frequent {shares} of all tokens; 99 % need"
            f" {use['ids_for_99_percent']:,} ids"
        )
    return lines


def _aligned(rows: list[Sequence[str]], *, left: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if n in left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [
        lines[0].rstrip(),
        "─" * max(len(line.rstrip()) for line in lines),
        *(line.rstrip() for line in lines[1:]),
    ]


def _wrapped(title: str, pieces: Sequence[str], boundary: str) -> list[str]:
    """Join pieces with a boundary between them, and break where the line is full."""
    lines, line = [f"{title}:"], "    "
    for piece in pieces:
        shown = piece if len(piece) <= 100 else f"{piece[:60]}… ({len(piece)} characters)"
        if len(line) + len(shown) + 1 > _WIDTH:
            lines.append(line)
            line = "    "
        line += shown + boundary
    return [*lines, line.rstrip()] if pieces else lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
