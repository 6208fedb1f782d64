"""Ids: remove documents whose `id` an earlier document of their source has, in whatever file.

Within one file the reader rejects them. Over files and parts, each part writes a 64-bit hash of the
id of every document that its filters kept. Then tasks, each on one range of at most 2^23 hashes
(about 250 MB), find the hashes that occur twice, and each part removes its documents with such an
id, except the first in the corpus. Among 10^9 ids, the chance that two share a hash is 3 %.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import xxhash

from lit_pretrain.files import atomic_path
from lit_pretrain.prepare.dedup.dedup_files import save_column
from lit_pretrain.prepare.document_store import (
    Document,
    DocumentWriter,
    clean_file,
    read_documents,
)
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.funnel import Rejects
from lit_pretrain.prepare.preparation import DropResult, Preparation

_RANGE = 2**23
"""Hashes that a task compares at a time."""


def drop_ids(run: Preparation) -> None:
    """Remove the documents whose id an earlier one of their source has, in whatever file."""
    parts = tuple(
        number for number, part in enumerate(run.parts) if run.config.sources[part.source].has_ids
    )
    if not parts:
        return
    last = [run.clean[part]["funnel"][-1] for part in parts]
    ranges = 1 + sum(step["documents"] for step in last) // _RANGE
    run.do(
        "twice",
        "find ids that occur twice",
        RepeatedIdsTask(run.work, parts, ranges),
        [1] * ranges,
        "tasks",
    )
    names = list(run.config.sources)
    task = DropTask(
        run.work,
        parts,
        tuple(names.index(run.parts[part].source) for part in parts),
        tuple(step["bytes"] for step in last),
        tuple(frozenset(document for _, _, document in step["sample"]) for step in last),
        ranges,
        run.config.keep_rejects,
    )
    results = run.do("ids", "remove documents with a repeated id", task, task.sizes)
    for part, found in zip(parts, results, strict=True):
        run.record_removal(part, "ids", "duplicate_id", found)
        with_ids_file(run.work, part).unlink(missing_ok=True)


class RepeatedIdsResult(TypedDict):
    """The result of a RepeatedIdsTask."""

    twice: int
    """Ids that occur twice or more."""


@dataclass(frozen=True)
class RepeatedIdsTask:
    """Find the ids that occur twice, in one range of their hashes."""

    work: Path
    parts: tuple[int, ...]
    """Those whose source has ids."""
    ranges: int

    def __call__(self, number: int, advance: Advance) -> RepeatedIdsResult:
        """Write ids/twice-<number>.npy: [N, 2], hash and first part, sorted by hash."""
        low, high = (2**64 * bound // self.ranges for bound in (number, number + 1))
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for part in self.parts:
            found: npt.NDArray[np.uint64] = np.load(hashes_file(self.work, part), mmap_mode="r")
            begin = np.searchsorted(found, np.uint64(low))
            # The end of the last range is one more than fits 64 bits.
            end = len(found) if high == 2**64 else np.searchsorted(found, np.uint64(high))
            hashes.append(np.array(found[begin:end]))
            owners.append(np.full(len(hashes[-1]), part, dtype=np.uint64))
        flat, owner = np.concatenate(hashes), np.concatenate(owners)
        # The sort is stable: of equal hashes, that of the first part stays first.
        order = np.argsort(flat, kind="stable")
        flat, owner = flat[order], owner[order]
        again = flat[1:] == flat[:-1]
        first = (
            np.flatnonzero(np.append(again, False) & ~np.insert(again, 0, False))
            if len(flat)
            else np.empty(0, np.int64)
        )
        save_column(
            repeated_ids_file(self.work, number), np.stack([flat[first], owner[first]], axis=1)
        )
        advance(1)
        return RepeatedIdsResult(twice=len(first))


@dataclass(frozen=True)
class DropTask:
    """Remove the documents of one part whose id an earlier one has."""

    work: Path
    parts: tuple[int, ...]
    """Those whose source has ids."""
    sources: tuple[int, ...]
    """Number of the source of each of them."""
    sizes: tuple[int, ...]
    """UTF-8 bytes of each of them."""
    sampled: tuple[frozenset[int], ...]
    """Numbers of the documents of each of them that the funnel's sample holds text of."""
    ranges: int
    keep_rejects: int

    def __call__(self, number: int, advance: Advance) -> DropResult:
        """Write clean/<part>.parquet."""
        part = self.parts[number]
        before, after = with_ids_file(self.work, part), clean_file(self.work, part)
        own: npt.NDArray[np.uint64] = np.load(hashes_file(self.work, part), mmap_mode="r")
        owner: dict[int, int] = {}
        for range_ in range(self.ranges):
            twice = np.load(repeated_ids_file(self.work, range_), mmap_mode="r")
            # Only ids of this part: those of all ranges together may not fit into memory.
            owner.update(twice[np.isin(twice[:, 0], own)].tolist())
        if not owner:
            _link_or_copy(before, after)
            advance(self.sizes[number])
            unmoved = [(position, position) for position in sorted(self.sampled[number])]
            return DropResult(removed=0, bytes=0, sampled=unmoved, rejects=[])
        removed = size = 0
        kept: list[tuple[int, int]] = []
        seen: set[int | None] = set()
        rejects = Rejects(self.keep_rejects)
        with DocumentWriter(after) as writer:
            for position, document in enumerate(read_documents(before)):
                key = id_hash(document, self.sources[number])
                # The first part keeps its first document with the id; all others lose theirs.
                if key in owner and (owner[key] != part or key in seen):
                    removed, size = removed + 1, size + len(document.utf8)
                    text = f"id: {document.fields['id']}\n{document.text}"
                    rejects.offer("ids", "duplicate_id", document.origin, text)
                else:
                    writer.add(document)
                    if position in self.sampled[number]:
                        kept.append((position, position - removed))
                seen.add(key)
                advance(len(document.utf8))
        return DropResult(removed=removed, bytes=size, sampled=kept, rejects=rejects.dump())


def id_hash(document: Document, source: int) -> int | None:
    """Hash a document's id, differently for each source; return None if it has no id."""
    identity = document.fields.get("id")
    if identity is None:
        return None
    return xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed=source)


def save_hashes(path: Path, hashes: Iterable[int]) -> None:
    """Write the hashes of a part sorted; the file appears whole."""
    save_column(path, np.sort(np.fromiter(hashes, dtype=np.uint64)))


def with_ids_file(work: Path, number: int) -> Path:
    """Name the file of a part that passed its filters, before repeated ids are taken out."""
    return work / "ids" / f"{number:05d}.parquet"


def hashes_file(work: Path, number: int) -> Path:
    """Name the file with the sorted hashes of the ids of a part."""
    return work / "ids" / f"{number:05d}.npy"


def repeated_ids_file(work: Path, number: int) -> Path:
    """Name the file with the hashes of a range that occur twice, and the first part of each."""
    return work / "ids" / f"twice-{number:05d}.npy"


def _link_or_copy(before: Path, after: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    with atomic_path(after) as scratch:
        try:
            os.link(before, scratch)
        except OSError:
            shutil.copyfile(before, scratch)
