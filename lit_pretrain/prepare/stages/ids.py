"""Ids: documents of a source whose `id` an earlier one has, in whatever file.

Within one file the reader sees them. Over files and parts, each part writes down a 64-bit hash of
the id of every document that its filters kept; tasks that see a range of the hashes each, of at
most 2^23 at a time (about 250 MB), find those that occur twice; and each part leaves out what it
holds of them, except where it is the first to hold it. Two ids of 10^9 share a hash with a chance
of 3 %.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from lit_pretrain.files import whole
from lit_pretrain.prepare.dedup.columns import save_column
from lit_pretrain.prepare.document_store import Document, DocumentWriter, read_documents
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.survivors import clean_file

_RANGE = 2**23
"""Hashes that a task looks at."""


def with_ids_file(work: Path, number: int) -> Path:
    """Where the documents of a part lie that passed its filters, until those with the id of
    another one are taken out.
    """
    return work / "ids" / f"{number:05d}.parquet"


def hashes_file(work: Path, number: int) -> Path:
    """Where the hashes of the ids of a part lie, sorted."""
    return work / "ids" / f"{number:05d}.npy"


def twice_file(work: Path, number: int) -> Path:
    """Where the hashes of a range lie that occur twice, with the first part that has them."""
    return work / "ids" / f"twice-{number:05d}.npy"


def id_ranges(documents: int) -> int:
    """How many ranges the hashes are cut into."""
    return 1 + documents // _RANGE


def id_hash(document: Document, source: int) -> int | None:
    """Hash of a document's id; the same id is another one in another source. None: it has no id."""
    identity = document.fields.get("id")
    return (
        None
        if identity is None
        else xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed=source)
    )


def save_hashes(path: Path, hashes: Iterable[int]) -> None:
    """Writes them sorted; the file appears whole."""
    save_column(path, np.sort(np.fromiter(hashes, dtype=np.uint64)))


@dataclass(frozen=True)
class TwiceTask:
    """Finds what occurs twice in one range."""

    work: Path
    parts: tuple[int, ...]
    """Those whose source has ids."""
    ranges: int

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes ids/twice-<number>.npy: [N, 2], hash and part, sorted by hash."""
        low, high = (2**64 * bound // self.ranges for bound in (number, number + 1))
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for part in self.parts:
            found: npt.NDArray[np.uint64] = np.load(hashes_file(self.work, part), mmap_mode="r")
            begin = np.searchsorted(found, np.uint64(low))
            end = len(found) if high == 2**64 else np.searchsorted(found, np.uint64(high))
            hashes.append(np.array(found[begin:end]))
            owners.append(np.full(len(hashes[-1]), part, dtype=np.uint64))
        flat, owner = np.concatenate(hashes), np.concatenate(owners)
        order = np.argsort(
            flat, kind="stable"
        )  # of equal hashes, that of the first part comes first
        flat, owner = flat[order], owner[order]
        again = flat[1:] == flat[:-1]
        first = (
            np.flatnonzero(np.append(again, False) & ~np.insert(again, 0, False))
            if len(flat)
            else np.empty(0, np.int64)
        )
        save_column(twice_file(self.work, number), np.stack([flat[first], owner[first]], axis=1))
        advance(1)
        return {"twice": len(first)}


@dataclass(frozen=True)
class DropTask:
    """Takes the documents of one part out whose id an earlier one has."""

    work: Path
    parts: tuple[int, ...]
    """Those whose source has ids."""
    sources: tuple[int, ...]
    """Number of the source of each of them."""
    sizes: tuple[int, ...]
    """UTF-8 bytes of each of them."""
    sampled: tuple[frozenset[int], ...]
    """Numbers of the documents of each of them that the funnel's sample looks at."""
    ranges: int

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes clean/<part>.parquet; returns how much is gone, and the old and new number of
        sampled documents that are left.
        """
        part = self.parts[number]
        before, after = with_ids_file(self.work, part), clean_file(self.work, part)
        own: npt.NDArray[np.uint64] = np.load(hashes_file(self.work, part), mmap_mode="r")
        owner: dict[int, int] = {}
        for range_ in range(self.ranges):
            twice = np.load(twice_file(self.work, range_), mmap_mode="r")
            owner.update(twice[np.isin(twice[:, 0], own)].tolist())
        if not owner:
            _link(before, after)
            advance(self.sizes[number])
            return {
                "removed": 0,
                "bytes": 0,
                "sampled": [(position, position) for position in sorted(self.sampled[number])],
            }
        removed = size = 0
        kept: list[tuple[int, int]] = []
        seen: set[int | None] = set()
        with DocumentWriter(after) as writer:
            for position, document in enumerate(read_documents(before)):
                key = id_hash(document, self.sources[number])
                if key in owner and (owner[key] != part or key in seen):
                    removed, size = removed + 1, size + len(document.utf8)
                else:
                    writer.add(document)
                    if position in self.sampled[number]:
                        kept.append((position, position - removed))
                seen.add(key)
                advance(len(document.utf8))
        return {"removed": removed, "bytes": size, "sampled": kept}


def _link(before: Path, after: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    with whole(after) as scratch:
        try:
            os.link(before, scratch)
        except OSError:
            shutil.copyfile(before, scratch)
