"""Examples of a classifier: texts in files and folders, each once, in an order of their own."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from lit_pretrain.corpus.manifest import MANIFEST_FILENAME
from lit_pretrain.errors import UserError
from lit_pretrain.files import is_remote
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.inputs import InputFile
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.file_choice import choose_suffix
from lit_pretrain.prepare.read.read_source import SourceReader
from lit_pretrain.prepare.read.reader import BadRecord, ReadPolicy, reader_class

_KINDS = ("text", "jsonl", "parquet")
"""Kinds of sources whose files may hold examples."""
_MOST_BAD = 0.01
"""Share of the records that may be unusable, as `max_bad_fraction` of `prepare`."""


@dataclass
class Examples:
    """Distinct texts of one side, by the hash of their content."""

    texts: dict[int, str] = field(default_factory=dict)
    """Hash -> text, in the order of the hashes, so that neither files nor their order matter."""
    bytes: int = 0
    """UTF-8 bytes of `texts`."""
    read: int = 0
    """Documents in the files."""
    copies: int = 0
    """Those of them that repeat an earlier one."""
    bad: int = 0
    """Records that could not be used."""


def read_examples(
    option: str,
    paths: Sequence[str],
    *,
    text_field: str = "text",
    separator: str | None = None,
    max_bytes: int | None = None,
) -> Examples:
    """Read the texts of files and folders.

    Args:
        option: What named them, for messages.
        paths: Files (.txt, .md, .jsonl, .parquet, also packed), or folders of them. A text file is
            one text.
        text_field: Field of .jsonl and .parquet that holds the text.
        separator: What separates the texts within a .txt or .md file. A backslash before n or t
            makes it a line feed or a tab.
        max_bytes: UTF-8 bytes to keep: the texts with the smallest hashes, a random choice that is
            the same every time.

    Raises:
        UserError: A path holds no text, or too many of its records cannot be used.
    """
    for name, value in (("--separator", separator), ("--text_field", text_field)):
        if value == "":
            raise UserError(f"{name} is empty; give it a value, or leave it out")
    if separator is not None:  # as a shell passes them on
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    found = Examples()
    heap: list[tuple[int, str]] = []  # (-hash, text): the largest hash first
    seen: set[int] = set()
    for path in paths:
        for text in _texts(option, path, text_field, separator, found):
            found.read += 1
            utf8 = text.encode("utf-8", "surrogatepass")
            key = xxhash.xxh3_64_intdigest(utf8)
            if key in seen:
                found.copies += 1
                continue
            seen.add(key)
            heapq.heappush(heap, (-key, text))
            found.bytes += len(utf8)
            while max_bytes is not None and len(heap) > 1 and found.bytes > max_bytes:
                found.bytes -= len(heapq.heappop(heap)[1].encode("utf-8", "surrogatepass"))
    found.texts = {-key: text for key, text in sorted(heap, reverse=True)}
    if not found.texts:
        raise UserError(f"{option} {' '.join(paths)} holds no text")
    return found


def _texts(
    option: str, path: str, text_field: str, separator: str | None, found: Examples
) -> Iterator[str]:
    """Yield the texts of one file or folder, and count bad records."""
    sources = list(_sources(option, path, text_field, separator))
    records, first = 0, None
    for source, files in sources:
        reader = SourceReader(source, files, ReadPolicy())
        for document in reader:
            if isinstance(document, Document):
                yield document.text
            elif first is None:
                first = document
        records += reader.counts.records
        found.bad += reader.counts.bad.total()
        if reader.counts.bad.total() > _MOST_BAD * reader.counts.records:
            raise _too_bad(option, path, reader, first)
    if not records:
        raise UserError(f"{option} {path} holds no record")


def _too_bad(option: str, path: str, reader: SourceReader, first: BadRecord | None) -> UserError:
    assert first is not None
    cure = {
        "missing_field": "name the field with the text by --text_field",
        "wrong_type": "name the field with the text by --text_field",
        "undecodable": "convert it to UTF-8, e.g. by `iconv -t utf-8`",
        "too_large": "cut it by --separator",
    }.get(first.reason, "mend or remove the file")
    counts = reader.counts
    return UserError(
        f"{option} {path}: {counts.bad.total():,} of {counts.records:,} records cannot be used, the"
        f" first in {first.origin}: {first.detail}; {cure}"
    )


def _sources(
    option: str, path: str, text_field: str, separator: str | None
) -> Iterator[tuple[SourceConfig, list[InputFile]]]:
    """Yield what a path holds, kind by kind: how to read it, and its files."""
    if is_remote(path):
        raise UserError(f"{option} {path} is an address; name a file or folder on this machine")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{option} {path} does not exist (relative paths start at {Path.cwd()})")
    if (place / MANIFEST_FILENAME).is_file():
        raise UserError(
            f"{option} {path} is a prepared dataset, whose text is ids; name the files that it was"
            " made of"
        )
    any_file = False
    for kind in _KINDS:
        reader = reader_class(kind)
        source = SourceConfig(
            kind=kind,
            path=str(path),
            separator=separator if kind == "text" else None,
            fields={} if kind == "text" else {"text": text_field},
        )
        source.validate("examples")
        if place.is_file():
            base = place.parent
            files = [place] if choose_suffix([place.name], reader.suffixes) else []
        else:
            base, files, _ = reader.files_below(option, place, source)
        if files:
            any_file = True
            yield (
                source,
                [
                    InputFile(file.relative_to(base).as_posix(), str(file), file.stat().st_size)
                    for file in sorted(files)
                ],
            )
    if not any_file:
        endings = ", ".join(ending for kind in _KINDS for ending in reader_class(kind).suffixes[:2])
        raise UserError(
            f"{option} {path} holds no file that can be read; their names end in {endings}, or the"
            " like"
        )
