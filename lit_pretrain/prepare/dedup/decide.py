"""Decide: which candidates go, and for which document that stays.

A document goes when an earlier one *that stays* is the same, or shares a band and has the Jaccard similarity of the threshold. It is
compared with what stays and not with what went, so nobody is removed over a chain of others, and no pair below the threshold is merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.prepare.dedup.candidates import Shingles, load_edges, shared
from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.dedup.sketch import NO_KEY, save

REASONS = ("exact", "near", "contained")
"""Why a document was removed, by the code in the files."""


@dataclass(frozen=True)
class Removed:
    """What was removed, by document: arrays of one length."""

    document: npt.NDArray[np.int64]
    """Number in the corpus, rising."""
    kept: npt.NDArray[np.int64]
    """The document that stays for it."""
    reason: npt.NDArray[np.int8]
    """Index into REASONS."""
    similarity: npt.NDArray[np.float64]
    """Jaccard similarity, of a contained one the share of its shingles in the other."""

    def save(self, out: Path) -> None:
        """Writes them to a .npz file."""
        save(out, vars(self))

    @classmethod
    def load(cls, path: Path) -> Removed:
        """Reads them."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in ("document", "kept", "reason", "similarity")})

    @classmethod
    def join(cls, parts: Sequence[Removed]) -> Removed:
        """Those of several groups."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0))
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
        order = np.argsort(columns["document"], kind="stable")
        return cls(**{name: column[order] for name, column in columns.items()})


def decide(
    sketches: Sequence[Path], candidates: Path, number: int, shingle_files: Sequence[Path], sample: Path | None, config: DedupConfig
) -> Removed:
    """Decides one group.

    Holds the sketches of its documents (176 bytes each by default); shingles are mapped.

    Args:
        sketches: Of all parts.
        candidates: The file of `candidates.group`.
        number: The group.
        shingle_files: Of all parts, as given to `store_shingles`.
        sample: The edges of containment, None when that is off.
        config: What is compared.
    """
    with np.load(candidates) as arrays:
        mine = arrays["document"][arrays["group"] == number]
    exact, bands, distinct = _sketches_of(mine, sketches)
    stored = Shingles(shingle_files)
    removed: dict[int, tuple[int, int, float]] = {}
    by_text: dict[tuple[int, int], int] = {}
    by_band: dict[tuple[int, int], list[int]] = {}
    for place, document in enumerate(mine.tolist()):
        text = (int(exact[place, 0]), int(exact[place, 1]))
        if config.exact and text in by_text:
            removed[document] = (by_text[text], 0, 1.0)
            continue
        keys = [(band, key) for band, key in enumerate(bands[place].tolist()) if key != int(NO_KEY)]
        if config.near is not None and (found := _nearest(document, keys, by_band, stored, config.near.threshold)) is not None:
            removed[document] = (found[0], 1, found[1])
            if config.exact:
                by_text[text] = found[0]  # its copies go for the same one
            continue
        by_text[text] = document
        for key in keys:
            by_band.setdefault(key, []).append(document)
    if sample is not None and config.containment is not None:
        size = dict(zip(mine.tolist(), distinct.tolist(), strict=True))
        _contained(load_edges(sample), size, removed, stored, config.containment.threshold)
    documents = sorted(removed)
    return Removed(
        document=np.array(documents, dtype=np.int64),
        kept=np.array([removed[document][0] for document in documents], dtype=np.int64),
        reason=np.array([removed[document][1] for document in documents], dtype=np.int8),
        similarity=np.array([removed[document][2] for document in documents], dtype=np.float64),
    )


def _nearest(
    document: int, keys: list[tuple[int, int]], by_band: dict[tuple[int, int], list[int]], stored: Shingles, threshold: float
) -> tuple[int, float] | None:
    """The most similar earlier document that stays and shares a band, the first of equals; None below the threshold."""
    best: tuple[int, float] | None = None
    mine = stored[document]
    for other in sorted({other for key in keys for other in by_band.get(key, ())}):
        theirs = stored[other]
        if min(len(mine), len(theirs)) < threshold * max(len(mine), len(theirs)):
            continue  # too different in size to reach it
        common = shared(mine, theirs)
        similarity = common / (len(mine) + len(theirs) - common)
        if similarity >= threshold and (best is None or similarity > best[1]):
            best = (other, similarity)
    return best


def _contained(
    edges: npt.NDArray[np.int64], size: dict[int, int], removed: dict[int, tuple[int, int, float]], stored: Shingles, threshold: float
) -> None:
    """Removes documents within longer ones that stay, the longest first."""
    containers: dict[int, list[int]] = {}
    for large, small in edges.tolist():
        if small in size:
            containers.setdefault(small, []).append(large)
    for small in sorted(containers, key=lambda document: (-size[document], document)):
        if small in removed:
            continue
        mine = stored[small]
        for large in sorted(containers[small], key=lambda document: (-size[document], document)):
            if large in removed:
                continue
            share = shared(mine, stored[large]) / len(mine)
            if share >= threshold:
                removed[small] = (large, 2, share)
                break


def _sketches_of(
    documents: npt.NDArray[np.int64], sketches: Sequence[Path]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Exact [D, 2], bands [D, bands] and distinct [D] of some documents."""
    exact, bands, distinct = [], [], []
    begin = 0
    for path in sketches:
        with np.load(path) as arrays:
            count = len(arrays["distinct"])
            here = documents[(documents >= begin) & (documents < begin + count)] - begin
            if len(here):
                exact.append(arrays["exact"][here])
                columns = [arrays[name][here] for name in arrays.files if name.startswith("band-")]
                bands.append(np.stack(columns, axis=1) if columns else np.empty((len(here), 0), np.uint64))
                distinct.append(arrays["distinct"][here])
            begin += count
    return np.concatenate(exact), np.concatenate(bands), np.concatenate(distinct)
