"""What is kept of the documents instead of their texts: sketches of all, shingles of a few.

Sketches find the pairs that may be duplicates. On disk, a document takes 20 bytes of exact hash, 12
a band (240 by default), 20 of sizes, and 12 a sampled shingle (with sample = 32, about 0.4 bytes a
word). A corpus of 10 GB in documents of 5 kB has sketches of 0.6 GB. All columns are sorted by key,
so that a task that looks for equal keys reads its range of them alone. While a part is sketched,
its sketch is held at twice that size.

All shingles are kept only of documents that a pair joins, to compare them truly.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.files import atomic_path
from lit_pretrain.hashing import hash_ngrams, hash_words, plain_words, splitmix64
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig, NearConfig
from lit_pretrain.prepare.dedup.dedup_files import Numbers, load_column, save_columns
from lit_pretrain.prepare.document_store import Document

NO_KEY = np.uint64(0)
"""Band key of a document without shingles, which joins nobody."""
_BATCH_SHINGLES = 1 << 19
"""Shingles held at a time: 4 MiB."""
_FLAT = "shingles.u64"
_OPEN_FILES = 100
"""Parts whose shingles are mapped at a time: there may be more parts than files that a process may
open.
"""


def shingles(text: str, words: int) -> npt.NDArray[np.uint64]:
    """Hash the distinct shingles of a text, sorted; a text of fewer words has none."""
    return np.unique(hash_ngrams(hash_words(plain_words(text)), words))


def sketch(documents: Iterable[Document], out: Path, config: DedupConfig) -> tuple[int, int]:
    """Write the sketches of the documents of a part, in order.

    Args:
        documents: The documents of the part.
        out: A directory of arrays. Sorted by key, equal keys by document: exact_keys [N, 2] with
            exact_documents [N], band_keys [bands, N] with band_documents [bands, N], sample_keys
            [S] with sample_documents [S] (numbers within the part). By document: distinct [N]
            (shingles), sampled [N] (of them), bytes [N] (UTF-8).
        config: What will be compared.

    Returns:
        (documents, sampled shingles).
    """
    bands = np.zeros((0, 0 if config.near is None else config.near.bands), dtype=np.uint64)
    exact, keys, distinct, sampled, sizes = [], [bands], [], [], []
    samples, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    batch: list[npt.NDArray[np.uint64]] = []
    held = 0
    one_in = 1 if config.containment is None else config.containment.sample
    sample_below = np.uint64(2**64 // one_in if one_in > 1 else 2**64 - 1)
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
            # Hashed again: the smallest hashes are also what MinHash looks at.
            some = found[splitmix64(found) < sample_below]
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
    """Compute MinHashes of sets of shingles, [sets, count].

    Two sets agree in each of them with a probability of their Jaccard similarity.
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
    """Hash the MinHashes of each band to a key, [sets, bands]; NO_KEY only without shingles."""
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


def store_shingles(
    documents: Iterable[Document], begin: int, end: int, candidates: Path, out: Path, words: int
) -> int:
    """Write the shingles of the candidates of a part: the documents that an edge joins.

    Args:
        documents: The documents of the part.
        begin: Number of its first document in the corpus.
        end: Number of the document after its last.
        candidates: The directory that `group_candidates` wrote.
        out: A directory for: documents [D], the numbers of the candidates; offsets [D + 1], where
            the shingles of each begin; and a file of all shingles one after the other, which
            readers map.
        words: Words in a shingle.

    Returns:
        Number of candidates.
    """
    compared = load_column(candidates, "compared")
    first, last = np.searchsorted(compared, [begin, end]).tolist()
    numbers = np.asarray(compared[first:last])
    wanted = set(numbers.tolist())
    lengths = [0]  # shingles of each candidate, behind a 0 for the first offset
    with atomic_path(out) as scratch:
        scratch.mkdir()
        with (scratch / _FLAT).open("wb") as flat:
            for number, document in enumerate(documents if wanted else (), start=begin):
                if number in wanted:
                    hashes = shingles(document.text, words)
                    flat.write(hashes.tobytes())
                    lengths.append(len(hashes))
        np.save(scratch / "documents.npy", numbers)
        np.save(scratch / "offsets.npy", np.cumsum(np.array(lengths, dtype=np.int64)))
    return len(numbers)


class Shingles:
    """The shingles of some documents, mapped from the files of the parts and read on demand.

    Args:
        paths: Files of `store_shingles`, of all parts.
        begins: Number of the first document of each part.
        documents: The documents, sorted; about 200 bytes each are held. Those without stored
            shingles are left out.
    """

    def __init__(self, paths: Sequence[Path], begins: Sequence[int], documents: Numbers) -> None:
        self._paths = paths
        self._of: dict[int, tuple[int, int, int]] = {}
        self._open: OrderedDict[int, npt.NDArray[np.uint64]] = OrderedDict()
        cuts = np.searchsorted(documents, [*begins, np.iinfo(np.int64).max])
        for part in np.flatnonzero(np.diff(cuts)).tolist():
            mine = documents[cuts[part] : cuts[part + 1]]
            stored = load_column(paths[part], "documents")
            offsets = load_column(paths[part], "offsets")
            places = np.searchsorted(stored, mine)
            there = places < len(stored)
            there[there] = stored[places[there]] == mine[there]
            places = places[there]
            for number, low, high in zip(
                mine[there].tolist(),
                offsets[places].tolist(),
                offsets[places + 1].tolist(),
                strict=True,
            ):
                self._of[number] = (part, low, high)

    def __getitem__(self, document: int) -> npt.NDArray[np.uint64]:
        """Return the sorted distinct shingles of a document."""
        part, begin, end = self._of[document]
        return np.asarray(self._flat(part)[begin:end])

    def size(self, document: int) -> int:
        """Count the shingles of a document."""
        _, begin, end = self._of[document]
        return end - begin

    def _flat(self, part: int) -> npt.NDArray[np.uint64]:
        """Map the shingles of a part."""
        if part not in self._open:
            path = self._paths[part] / _FLAT
            self._open[part] = (
                np.memmap(path, dtype=np.uint64, mode="r")
                if path.stat().st_size
                else np.empty(0, np.uint64)
            )
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(part)
        return self._open[part]


def count_shared(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> int:
    """Count the shingles that two sorted sets have in common."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not len(small):
        return 0
    place = np.searchsorted(large, small)
    place[place == len(large)] = 0
    return int(np.count_nonzero(large[place] == small))
