"""Shape: how long the documents of a source are, and how much they look like text."""

from __future__ import annotations

import io
import random
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

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
from lit_pretrain.prepare.filters.filter import View
from lit_pretrain.prepare.progress_table import funnel_table
from lit_pretrain.tokenizer.tokenizer import Tokenizer

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
    """Measures one source: lengths of all its documents, quality of a sample of them.

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
    """The figures `QUALITY` of one text: what Gopher's rules (Rae et al. 2021, section A.1.1)
    set limits to, as numbers.
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
    find: Optional[str] = None,
    verify: bool = False,
    figure: Optional[str] = None,
    tensorboard: Optional[str] = None,
) -> str:
    """What a prepared dataset holds, what its steps left out, and documents of it.

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
    """Documents, bytes and tokens of every source and split, with licences."""
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
    """Documents drawn with equal chances, and where they lie."""
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
    """Where a text stands."""
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


def _draw(
    where: Path, manifest: Manifest, png: Optional[str], tensorboard: Optional[str]
) -> list[str]:
    """Writes the picture and the event files; says where."""
    from lit_pretrain.cli.inspect.dataset_figure import figure
    from lit_pretrain.files import write_file

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
        try:
            write_file(Path(png), buffer.getvalue())
        except OSError as error:
            raise UserError(
                f"--figure={png} cannot be written: {error.strerror or error}; choose another place"
            ) from None
        lines.append(f"drawn: {png}")
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tensorboard) as writer:
            writer.add_text("dataset/funnel", f"```\n{funnel_table(manifest)}\n```")
            writer.add_figure("dataset/overview", drawn)
            for name, shape in shapes.items():
                writer.add_histogram(f"document_tokens_log10/{name}", np.log10(shape.tokens))
                writer.add_histogram(f"document_bytes_per_token/{name}", shape.bytes / shape.tokens)
                for column, label in enumerate(("word_length", "lettered_words", "repeated_lines")):
                    writer.add_histogram(f"document_{label}/{name}", shape.quality[:, column])
        lines.append(f"written: {tensorboard} (tensorboard --logdir {tensorboard})")
    return lines
