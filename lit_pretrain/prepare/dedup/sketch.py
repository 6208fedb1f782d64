"""Sketch: what is kept of each document for finding candidates, instead of its text.

Per document: 16 bytes of exact hash, 8 bytes a band (160 by default) and 8 a sampled shingle (with sample = 32, about a quarter of a
byte per word): a corpus of 10 GB in documents of 5 kB has sketches of 0.4 GB on disk, of which a bucket task holds one column.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.permutation import splitmix64
from lit_pretrain.prepare.dedup.config import DedupConfig, NearConfig
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.words import hash_ngrams, hash_words, plain_words

NO_KEY = np.uint64(0)
"""Band key of a document that has no shingle: it meets nobody."""
_BATCH_SHINGLES = 1 << 19
"""Held at a time: 4 MiB."""


def shingles(text: str, words: int) -> npt.NDArray[np.uint64]:
    """Hashes of the distinct shingles of a text, sorted; none for a text of fewer words."""
    return np.unique(hash_ngrams(hash_words(plain_words(text)), words))


def sketch(documents: Iterable[Document], out: Path, config: DedupConfig) -> int:
    """Writes the sketches of the documents of a part, in order.

    Args:
        documents: The part.
        out: A .npz file, which appears whole. Arrays: exact [N, 2], band-0 [N] and so on (each is read alone), distinct [N] (shingles of a
            document), bytes [N] (UTF-8), sample [S] and sample_document [S] (sampled shingles, and whose they are).
        config: What is compared.

    Returns:
        Number of documents.
    """
    bands = np.zeros((0, 0 if config.near is None else config.near.bands), dtype=np.uint64)
    exact, keys, distinct, sizes, samples, owners = [], [bands], [], [], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    batch: list[npt.NDArray[np.uint64]] = []
    held = 0
    for number, document in enumerate(documents):
        utf8 = document.utf8
        exact.append(np.frombuffer(hashlib.blake2b(utf8, digest_size=16).digest(), dtype="<u8"))
        found = shingles(document.text, config.shingle_words) if config.near or config.containment else np.empty(0, np.uint64)
        distinct.append(len(found))
        sizes.append(len(utf8))
        if config.containment is not None and len(found) + config.shingle_words > config.containment.min_words:
            # Mixed again: the smallest hashes are also what MinHash looks at.
            some = found[splitmix64(found) < np.uint64(2**64 // config.containment.sample if config.containment.sample > 1 else 2**64 - 1)]
            samples.append(some)
            owners.append(np.full(len(some), number))
        if config.near is not None:
            batch.append(found)
            held += len(found)
            if held >= _BATCH_SHINGLES:
                keys.append(_band_keys(batch, config.near))
                batch, held = [], 0
    if config.near is not None and batch:
        keys.append(_band_keys(batch, config.near))
    save(
        out,
        {
            "exact": np.array(exact, dtype=np.uint64).reshape(-1, 2),
            **{f"band-{band}": column for band, column in enumerate(np.concatenate(keys).T)},
            "distinct": np.array(distinct, dtype=np.int64),
            "bytes": np.array(sizes, dtype=np.int64),
            "sample": np.concatenate(samples),
            "sample_document": np.concatenate(owners),
        },
    )
    return len(exact)


def min_hashes(sets: list[npt.NDArray[np.uint64]], count: int, seed: int) -> npt.NDArray[np.uint32]:
    """MinHashes of sets of shingles, [sets, count]: two sets agree in each with the chance of their Jaccard similarity."""
    from rensa import RMinHash

    offsets = np.concatenate([[0], np.cumsum([len(found) for found in sets])])
    flat = np.concatenate([*sets, np.empty(0, np.uint64)])
    return np.array(RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets.tolist(), count, seed).to_rows(), dtype=np.uint32)


def _band_keys(sets: list[npt.NDArray[np.uint64]], config: NearConfig) -> npt.NDArray[np.uint64]:
    """One key per band, [sets, bands]; never NO_KEY where there are shingles."""
    hashes = min_hashes(sets, config.bands * config.rows, config.seed).reshape(len(sets), config.bands, config.rows).astype(np.uint64)
    keys = np.zeros((len(sets), config.bands), dtype=np.uint64)
    for row in range(config.rows):
        keys = splitmix64(keys ^ hashes[:, :, row])
    keys |= np.uint64(1)
    keys[[len(found) == 0 for found in sets]] = NO_KEY
    return keys


def sizes_of(path: Path) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of the documents of a part."""
    with np.load(path) as arrays:
        sizes: npt.NDArray[np.int64] = arrays["bytes"]
        return sizes


def save(out: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Writes arrays to one .npz file, which appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with scratch.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, out)
