"""Sketch: what is kept of each document for finding candidates, instead of its text.

On disk per document: 20 bytes of exact hash, 12 a band (240 by default), 20 of sizes, and 12 a
sampled shingle (with sample = 32, about 0.4 bytes a word). A corpus of 10 GB in documents of 5 kB
has sketches of 0.6 GB. All columns are sorted by key, so that a task that looks for equal keys
reads its range of them alone. While it is made, the sketch of one part is held: twice as much a
document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.hashing import hash_ngrams, hash_words, plain_words, splitmix64
from lit_pretrain.prepare.dedup.columns import (
    Copies,
    Numbers,
    in_range,
    load_columns,
    save_columns,
    save_edges,
)
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig, NearConfig
from lit_pretrain.prepare.document_store import Document

# Overlap: which documents may lie within which longer ones, from the sampled shingles that both
# hold.
#
# A document with s sampled shingles, of which a share c lies in another one, shows c·s of them
# there give or take √(s·c·(1-c)): pairs are taken from three such deviations below the threshold.
#
# A phrase of everybody would make pairs of all with all. So of those that hold a shingle, the
# longest `HOLDERS` alone are paired with the shorter ones, and for the rest it *counts as shared
# with everyone*: no pair is lost that shares one of the others, and a chapter that stands in a
# thousand books is found in the longest of them. Longer means more distinct shingles; of equally
# long ones, the earlier.


HOLDERS = 32
"""Documents with which one is paired over one shingle, at most."""
_SLAB = 1 << 20
"""Sampled shingles whose pairs are made at a time: at most HOLDERS · 24 bytes each, 0.8 GB, and
far less where phrases are rare.
"""


def find_overlap(
    sketches: Sequence[Path],
    begins: Sequence[int],
    number: int,
    ranges: int,
    copies: Copies,
    out: Path,
) -> int:
    """Writes which documents share how many of the sampled shingles in a range.

    Args:
        sketches: Of all parts.
        begins: Number of the first document of each part.
        number: The range, 0 to ranges - 1.
        ranges: How many there are.
        copies: They are left out.
        out: A directory of arrays: small, large and hits [P] (shingles that `large` is known to
            share, of those with few holders), sorted by small; document and common [C] (shingles of
            a document that have too many holders), sorted by document.

    Returns:
        Number of pairs.
    """
    found, documents, sizes = (
        [np.empty(0, np.uint64)],
        [np.empty(0, np.int64)],
        [np.empty(0, np.int64)],
    )
    for path, begin in zip(sketches, begins, strict=True):
        keys = load_columns(path, "sample_keys")
        here = in_range(keys, number, ranges)
        places = load_columns(path, "sample_documents")[here].astype(np.int64)
        first = ~copies.among(places + begin)
        found.append(keys[here][first])
        documents.append(places[first] + begin)
        sizes.append(load_columns(path, "distinct")[places[first]])
    values, owners = np.concatenate(found), np.concatenate(documents)
    order = np.lexsort((owners, -np.concatenate(sizes), values))
    values, owners = values[order], owners[order]
    starts = np.flatnonzero(
        np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])
    )
    lengths = np.diff(np.append(starts, len(values)))
    start = np.repeat(starts, lengths)
    place = np.arange(len(values)) - start  # among the holders of the shingle
    pairs = [np.empty((3, 0), np.int64)]
    later = np.flatnonzero(place > 0)
    for slab in range(0, len(later), _SLAB):
        pairs.append(_pairs(later[slab : slab + _SLAB], start, place, owners))
    small, large, hits = _added(np.concatenate(pairs, axis=1))
    document, common = np.unique(owners[place > HOLDERS], return_counts=True)
    save_columns(
        out, {"small": small, "large": large, "hits": hits, "document": document, "common": common}
    )
    return len(small)


def _pairs(entries: Numbers, start: Numbers, place: Numbers, owners: Numbers) -> Numbers:
    """(small, large, hits) [3, P] of some holders with the first ones of their shingles."""
    made = [np.empty((3, 0), np.int64)]
    for holder in range(HOLDERS):
        entries = entries[place[entries] > holder]
        if not len(entries):
            break
        made.append(
            np.stack([owners[entries], owners[start[entries] + holder], place[entries] <= HOLDERS])
        )
    return _added(np.concatenate(made, axis=1))


def _added(pairs: Numbers) -> Numbers:
    """The same with one column a pair, sorted by small and large, hits added up."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    begins = np.flatnonzero(
        np.concatenate(
            [np.ones(min(1, pairs.shape[1]), bool), (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)]
        )
    )
    hits = np.add.reduceat(pairs[2], begins) if len(begins) else pairs[2]
    return np.concatenate([pairs[:2, begins], hits[None]])


def find_containers(
    overlaps: Sequence[Path],
    sketches: Sequence[Path],
    begins: Sequence[int],
    low: int,
    high: int,
    threshold: float,
    out: Path,
) -> int:
    """Writes the edges from documents to those that may lie within them, for the latter from `low`
    to below `high`.

    Holds about 100 bytes a pair.

    Args:
        overlaps: The files of `find_overlap` of all ranges.
        sketches: Of all parts.
        begins: Number of the first document of each part.
        low: First document.
        high: The one after the last.
        threshold: Of containment.
        out: A directory of arrays, as in `save_edges`.

    Returns:
        Number of edges.
    """
    sampled = np.zeros(high - low, dtype=np.int64)
    for path, begin in zip(sketches, begins, strict=True):
        if begin < high:
            mine = load_columns(path, "sampled")[max(0, low - begin) : high - begin]
            if len(mine):
                sampled[max(0, begin - low) :][: len(mine)] = mine
    common = np.zeros(high - low, dtype=np.int64)
    pairs = [np.empty((3, 0), np.int64)]
    for path in overlaps:
        small = load_columns(path, "small")
        here = slice(*np.searchsorted(small, [low, high]).tolist())
        pairs.append(
            np.stack(
                [np.asarray(load_columns(path, name)[here]) for name in ("small", "large", "hits")]
            )
        )
        document = load_columns(path, "document")
        here = slice(*np.searchsorted(document, [low, high]).tolist())
        common[np.asarray(document[here]) - low] += np.asarray(load_columns(path, "common")[here])
    small, large, hits = _added(np.concatenate(pairs, axis=1))
    size = sampled[small - low]
    enough: npt.NDArray[np.bool_] = hits + common[small - low] >= size * threshold - 3 * np.sqrt(
        size * threshold * (1 - threshold)
    )
    return save_edges(out, large[enough], small[enough])


NO_KEY = np.uint64(0)
"""Band key of a document that has no shingle: it meets nobody."""
_BATCH_SHINGLES = 1 << 19
"""Held at a time: 4 MiB."""


def shingles(text: str, words: int) -> npt.NDArray[np.uint64]:
    """Hashes of the distinct shingles of a text, sorted; none for a text of fewer words."""
    return np.unique(hash_ngrams(hash_words(plain_words(text)), words))


def sketch(documents: Iterable[Document], out: Path, config: DedupConfig) -> tuple[int, int]:
    """Writes the sketches of the documents of a part, in order.

    Args:
        documents: The part.
        out: A directory of arrays. Sorted by key, equal keys by document: exact_keys [N, 2] with
            exact_documents [N], band_keys [bands, N] with band_documents [bands, N], sample_keys
            [S] with sample_documents [S] (numbers within the part). By document: distinct [N]
            (shingles), sampled [N] (of them), bytes [N] (UTF-8).
        config: What is compared.

    Returns:
        (documents, sampled shingles).
    """
    bands = np.zeros((0, 0 if config.near is None else config.near.bands), dtype=np.uint64)
    exact, keys, distinct, sampled, sizes = [], [bands], [], [], []
    samples, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    batch: list[npt.NDArray[np.uint64]] = []
    held = 0
    for number, document in enumerate(documents):
        utf8 = document.utf8
        exact.append(np.frombuffer(hashlib.blake2b(utf8, digest_size=16).digest(), dtype="<u8"))
        found = (
            shingles(document.text, config.shingle_words)
            if config.near or config.containment
            else np.empty(0, np.uint64)
        )
        distinct.append(len(found))
        sizes.append(len(utf8))
        if (
            config.containment is not None
            and len(found) + config.shingle_words > config.containment.min_words
        ):
            # Mixed again: the smallest hashes are also what MinHash looks at.
            some = found[
                splitmix64(found)
                < np.uint64(
                    2**64 // config.containment.sample
                    if config.containment.sample > 1
                    else 2**64 - 1
                )
            ]
            samples.append(some)
            owners.append(np.full(len(some), number))
            sampled.append(len(some))
        else:
            sampled.append(0)
        if config.near is not None:
            batch.append(found)
            held += len(found)
            if held >= _BATCH_SHINGLES:
                keys.append(_band_keys(batch, config.near))
                batch, held = [], 0
    if config.near is not None and batch:
        keys.append(_band_keys(batch, config.near))
    halves = np.array(exact, dtype=np.uint64).reshape(-1, 2)
    by_text = np.lexsort((halves[:, 1], halves[:, 0]))
    columns = np.concatenate(keys).T
    by_band = np.argsort(columns, axis=1, kind="stable")
    sample = np.concatenate(samples)
    by_shingle = np.argsort(sample, kind="stable")
    save_columns(
        out,
        {
            "exact_keys": halves[by_text],
            "exact_documents": by_text.astype(np.uint32),
            "band_keys": np.take_along_axis(columns, by_band, axis=1),
            "band_documents": by_band.astype(np.uint32),
            "sample_keys": sample[by_shingle],
            "sample_documents": np.concatenate(owners)[by_shingle].astype(np.uint32),
            "distinct": np.array(distinct, dtype=np.int64),
            "sampled": np.array(sampled, dtype=np.uint32),
            "bytes": np.array(sizes, dtype=np.int64),
        },
    )
    return len(halves), len(sample)


def min_hashes(sets: list[npt.NDArray[np.uint64]], count: int, seed: int) -> npt.NDArray[np.uint32]:
    """MinHashes of sets of shingles, [sets, count]: two sets agree in each with the chance of
    their Jaccard similarity.
    """
    from rensa import RMinHash

    offsets = np.concatenate([[0], np.cumsum([len(found) for found in sets])])
    flat = np.concatenate([*sets, np.empty(0, np.uint64)])
    return np.array(
        RMinHash.digest_matrix_from_flat_token_hashes(
            flat, offsets.tolist(), count, seed
        ).to_rows(),
        dtype=np.uint32,
    )


def _band_keys(sets: list[npt.NDArray[np.uint64]], config: NearConfig) -> npt.NDArray[np.uint64]:
    """One key per band, [sets, bands]; never NO_KEY where there are shingles."""
    hashes = (
        min_hashes(sets, config.bands * config.rows, config.seed)
        .reshape(len(sets), config.bands, config.rows)
        .astype(np.uint64)
    )
    keys = np.zeros((len(sets), config.bands), dtype=np.uint64)
    for row in range(config.rows):
        keys = splitmix64(keys ^ hashes[:, :, row])
    keys |= np.uint64(1)
    keys[[len(found) == 0 for found in sets]] = NO_KEY
    return keys
