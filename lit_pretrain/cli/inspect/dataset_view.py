"""View of a prepared dataset: what it holds, its documents, a search in them, and a picture."""

from __future__ import annotations

import io
import random
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.chunk_reader import (
    DocumentRecord,
    find_text,
    full_origin,
    open_chunk,
    read_document_records,
    sample_documents,
)
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.files import check_output, write_file, writing
from lit_pretrain.prepare.filters.filter import View
from lit_pretrain.prepare.progress_table import funnel_table
from lit_pretrain.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


QUALITY = ("characters per word", "words with a letter", "characters in repeated lines")
"""What is measured of a text; the last two are shares."""


@dataclass(frozen=True)
class DocumentShape:
    """The documents of one source in the training split."""

    tokens: npt.NDArray[np.int64]
    """Of every document, separators included, [documents]."""
    bytes: npt.NDArray[np.int64]
    """Of every document, [documents]."""
    quality: npt.NDArray[np.float64]
    """Of a sample of documents, [sampled, len(QUALITY)]."""


def shape_of(
    path: Path, manifest: Manifest, tokenizer: Tokenizer, source: str, *, sample_bytes: int
) -> DocumentShape:
    """Measure one source: lengths of all its documents, quality of a sample of them.

    Args:
        path: The dataset's directory.
        manifest: Its manifest.
        tokenizer: Its tokenizer.
        source: Name of the source; its training split must hold something.
        sample_bytes: Text to measure quality on.
    """
    tokens: list[int] = []
    sizes: list[int] = []
    for record in read_document_records(path, "train", source):
        if record.piece:  # goes on with the document before
            tokens[-1] += record.tokens
        else:
            tokens.append(record.tokens)
            sizes.append(record.bytes)
    measured = [
        quality(text)
        for text in sample_documents(path, manifest, source, tokenizer, size=sample_bytes)
    ]
    return DocumentShape(
        tokens=np.array(tokens, dtype=np.int64),
        bytes=np.array(sizes, dtype=np.int64),
        quality=np.array(measured, dtype=np.float64).reshape(-1, len(QUALITY)),
    )


def quality(text: str) -> tuple[float, float, float]:
    """Measure the figures `QUALITY` of one text.

    Gopher's rules set limits to them (Rae et al. 2021, section A.1.1).
    """
    view = View(text)
    total = len(view.words)
    if not total:
        return 0.0, 0.0, 0.0
    length = float((view.counts * view.lengths).sum()) / total
    lettered = np.fromiter(
        (any(map(str.isalpha, word)) for word in view.vocabulary),
        dtype=bool,
        count=len(view.vocabulary),
    )
    lines = [line for line in view.rows if line.strip()]
    repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
    return length, int(view.counts[lettered].sum()) / total, repeated / len(text)


# ---------------------------------------------------------------- the view


_EXCERPT_CHARACTERS = 240
_HITS = 20
_QUALITY_BYTES = 2_000_000
"""Text of each source whose quality is measured for the picture."""


def data(
    path: str,
    documents: int = 2,
    seed: int = 0,
    find: str | None = None,
    verify: bool = False,
    figure: str | None = None,
    tensorboard: str | None = None,
) -> str:
    """Show what a prepared dataset holds, what its steps left out, and documents of it.

    Args:
        path: The dataset's directory.
        documents: How many documents of each source to show, drawn at random.
        seed: Of the draw.
        find: Show only where this text stands: shard, document, source file and row.
        verify: Compare every file with its sha256.
        figure: Write the funnel and histograms of lengths and quality to this PNG.
        tensorboard: Write the same to TensorBoard event files in this folder.
    """
    where = Path(path)
    manifest = Manifest.load(where)
    if documents < 0:
        raise UserError(f"--documents={documents} must not be negative")
    if find is not None:
        return _found(where, manifest, find)
    if figure is not None:
        check_output(figure, f"--figure={figure}")
    if tensorboard is not None:
        check_output(Path(tensorboard) / "events", f"--tensorboard={tensorboard}")
    lines = [
        f"{path}: {manifest.hash}",
        (
            f"tokenizer {manifest.tokenizer.hash} ({manifest.tokenizer.vocab_size} ids,"
            f" {manifest.tokenizer.pattern}), {manifest.dtype}"
        ),
        (
            "made by"
            f" {', '.join(f'{name} {version}' for name, version in manifest.versions.items())};"
            f" config {manifest.config_hash[:16]}"
        ),
        *_decontamination_lines(manifest),
        "",
        *_splits(manifest),
        "",
        funnel_table(manifest),
    ]
    if verify:
        if bad := manifests.verify(where, manifest):
            raise UserError(
                f"{len(bad):,} files of {path} are not what the manifest says:\n  "
                + "\n  ".join(bad)
            )
        lines += ["", "every file has the sha256 that the manifest says"]
    if documents:
        tokenizer = _tokenizer(where, manifest)
        for name, source in manifest.sources.items():
            if source.splits["train"].chunks:
                lines += [
                    "",
                    f"{name}, at random:",
                    *_random(where, manifest, tokenizer, name, documents, seed),
                ]
    if figure is not None or tensorboard is not None:
        lines += ["", *_draw(where, manifest, figure, tensorboard)]
    return "\n".join(lines) + "\n"


def _decontamination_lines(manifest: Manifest) -> list[str]:
    """List the evaluation sets that the documents were decontaminated against."""
    if not manifest.decontamination:
        return ["decontaminated against no evaluation set (see `decontaminate`)"]
    return [
        f"decontaminated against {record.name} ({record.content_sha256[:12]},"
        f" {record.ngram}-grams): {record.documents_hit:,} documents hit, action {record.action}"
        for record in manifest.decontamination
    ]


def _splits(manifest: Manifest) -> list[str]:
    """Tabulate documents, bytes and tokens of every source and split, with licences."""
    lines = [
        f"{'source':<12} {'split':<11} {'documents':>10} {'bytes':>14} {'tokens':>14}"
        f" {'bytes/token':>11}  licence"
    ]
    for name, source in manifest.sources.items():
        for split in SPLITS:
            part = source.splits[split]
            ratio, licence = (
                f"{part.bytes / part.tokens:.3f}" if part.tokens else "-",
                source.licence or "not stated",
            )
            lines.append(
                f"{name:<12} {split:<11} {part.documents:>10,} {part.bytes:>14,} {part.tokens:>14,}"
                f" {ratio:>11}  {licence}"
            )
    return lines


def _tokenizer(where: Path, manifest: Manifest) -> Tokenizer:
    return Tokenizer.load(where, bos=manifest.tokenizer.bos, eos=manifest.tokenizer.eos)


def _random(
    where: Path, manifest: Manifest, tokenizer: Tokenizer, name: str, wanted: int, seed: int
) -> list[str]:
    """Show documents drawn with equal chances, and where they lie."""
    rng = random.Random(f"{seed}:{name}")
    drawn: list[tuple[int, DocumentRecord]] = []
    whole = (record for record in read_document_records(where, "train", name) if not record.piece)
    for number, record in enumerate(
        whole
    ):  # a reservoir: a source may have more documents than memory holds
        if len(drawn) < wanted:
            drawn.append((number, record))
        elif (place := rng.randrange(number + 1)) < wanted:
            drawn[place] = (number, record)
    source, lines = manifest.sources[name], []
    chunks = {chunk.filename: chunk for chunk in source.splits["train"].chunks}
    for _, record in sorted(drawn, key=lambda pair: pair[0]):
        chunk = chunks[record.chunk]
        tokens, rows = open_chunk(
            where / "train" / name / chunk.filename, manifest.dtype, chunk.bytes
        )
        ids = np.asarray(
            tokens[
                rows[record.row] : min(rows[record.row + 1], rows[record.row] + _EXCERPT_CHARACTERS)
            ]
        )
        text = " ".join(tokenizer.decode(ids.tolist()).split())[:_EXCERPT_CHARACTERS]
        lies = f"train/{name}/{record.chunk} row {record.row}"
        lines.append(f"  {full_origin(source, record.origin)}  ({record.tokens:,} tokens, {lies})")
        lines += textwrap.wrap(text, 116, initial_indent="    ", subsequent_indent="    ")
    return lines


def _found(where: Path, manifest: Manifest, text: str) -> str:
    """Show where a text stands."""
    if not text:
        raise UserError("--find is empty: give the text to look for")
    tokenizer = _tokenizer(where, manifest)
    lines, count, holders = [], 0, set()
    for hit in find_text(where, manifest, tokenizer, text):
        count += 1
        holders.add((hit.split, hit.source, hit.record.origin))
        if count <= _HITS:
            source = manifest.sources[hit.source]
            lines += [
                (
                    f"{hit.split}/{hit.source}/{hit.record.chunk} row {hit.record.row} token"
                    f" {hit.token}: {full_origin(source, hit.record.origin)}"
                ),
                f"    …{_flat(hit.before)}[{_flat(text)}]{_flat(hit.after)}…",
            ]
    more = f", the first {_HITS} are shown" if count > _HITS else ""
    return (
        "\n".join(
            [f"{text!r}: {count:,} times in {len(holders):,} documents of {where}{more}", *lines]
        )
        + "\n"
    )


def _flat(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", " ")


def _draw(where: Path, manifest: Manifest, png: str | None, tensorboard: str | None) -> list[str]:
    """Write the picture and the event files; return lines that say where."""
    tokenizer = _tokenizer(where, manifest)
    shapes = {
        name: shape_of(where, manifest, tokenizer, name, sample_bytes=_QUALITY_BYTES)
        for name, source in manifest.sources.items()
        if source.splits["train"].chunks
    }
    drawn = figure(manifest, shapes)
    lines = []
    if png is not None:
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png")
        with writing(f"--figure={png}"):
            write_file(Path(png), buffer.getvalue())
        lines.append(f"drawn: {png}")
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        with writing(f"--tensorboard={tensorboard}"), SummaryWriter(tensorboard) as writer:
            writer.add_text("dataset/funnel", f"```\n{funnel_table(manifest)}\n```")
            writer.add_figure("dataset/overview", drawn)
            for name, shape in shapes.items():
                writer.add_histogram(f"document_tokens_log10/{name}", np.log10(shape.tokens))
                writer.add_histogram(f"document_bytes_per_token/{name}", shape.bytes / shape.tokens)
                for column, label in enumerate(("word_length", "lettered_words", "repeated_lines")):
                    writer.add_histogram(f"document_{label}/{name}", shape.quality[:, column])
        lines.append(f"written: {tensorboard} (tensorboard --logdir {tensorboard})")
    return lines


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
    """Draw a dataset.

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
    """Draw a bar for each source: what is stored, and what each step left out.

    Its unit is per cent of the bytes that were read.
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
    """Draw shares of documents by source, as outlines: filled bars would hide each other."""
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
