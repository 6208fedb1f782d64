"""Lines: what stood in an earlier document is taken out of later ones.

Three steps, each in parallel: hashes of the lines of every part; for a range of hashes over all parts, which of them occur how often and
where first; and the texts without what was there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from lit_pretrain.prepare.dedup.config import LinesConfig
from lit_pretrain.prepare.dedup.sketch import save
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.words import words

RANGE_LINES = 50_000_000
"""Lines of a range: 16 bytes each are held, and as many again to sort them."""


def line_hashes(text: str, min_words: int) -> list[tuple[int, int]]:
    """(number of the line, hash) of the lines that are long enough; white space at their ends does not count."""
    found = []
    for number, line in enumerate(text.split("\n")):
        if len(words(line)) >= min_words:
            found.append((number, xxhash.xxh3_64_intdigest(line.strip().encode())))
    return found


def store_lines(documents: Iterable[tuple[int, Document]], out: Path, config: LinesConfig) -> int:
    """Writes the lines of a part.

    Args:
        documents: (number in the corpus, document) of those of the part that are left.
        out: A .npz file. Arrays: hash [L], document [L].
        config: Which lines count.

    Returns:
        Number of lines, each counted once per document.
    """
    hashes: list[int] = []
    owners: list[int] = []
    for number, document in documents:
        distinct = {value for _, value in line_hashes(document.text, config.min_words)}  # a refrain is no copy
        hashes += sorted(distinct)
        owners += [number] * len(distinct)
    save(out, {"hash": np.array(hashes, dtype=np.uint64), "document": np.array(owners, dtype=np.int64)})
    return len(hashes)


def find_repeated(files: Sequence[Path], number: int, ranges: int, out: Path, config: LinesConfig) -> int:
    """Writes the lines of one range of hashes that occur in `min_count` documents, with the document that keeps each.

    Args:
        files: Of all parts.
        number: The range, 0 to ranges - 1.
        ranges: How many there are.
        out: A .npz file. Arrays: hash [R] (sorted), document [R].
        config: How often is often.

    Returns:
        Number of such lines.
    """
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    width = 2**64 // ranges
    low, high = np.uint64(number * width), np.uint64(2**64 - 1 if number == ranges - 1 else (number + 1) * width - 1)
    for path in files:
        with np.load(path) as arrays:
            here = (arrays["hash"] >= low) & (arrays["hash"] <= high)
            hashes.append(arrays["hash"][here])
            owners.append(arrays["document"][here])
    values, documents = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((documents, values))
    values, documents = values[order], documents[order]
    found, first, counts = np.unique(values, return_index=True, return_counts=True)
    often = counts >= config.min_count
    save(out, {"hash": found[often], "document": documents[first[often]]})
    return int(often.sum())


class Repeated:
    """The repeated lines of the corpus; held: 16 bytes each."""

    def __init__(self, files: Sequence[Path]) -> None:
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for path in files:  # ranges rise, so the whole is sorted
            with np.load(path) as arrays:
                hashes.append(arrays["hash"])
                owners.append(arrays["document"])
        self._hashes: npt.NDArray[np.uint64] = np.concatenate(hashes)
        self._owners: npt.NDArray[np.int64] = np.concatenate(owners)

    def without(self, text: str, document: int, config: LinesConfig) -> tuple[str, int]:
        """A text without the lines that an earlier document holds, and how many went.

        Args:
            text: Of the document.
            document: Its number, as in `store_lines`.
            config: Which lines count.
        """
        long = line_hashes(text, config.min_words)
        if not long or not len(self._hashes):
            return text, 0
        values = np.array([value for _, value in long], dtype=np.uint64)
        place = np.minimum(np.searchsorted(self._hashes, values), len(self._hashes) - 1)
        gone = {
            number
            for (number, value), at in zip(long, place.tolist(), strict=True)
            if int(self._hashes[at]) == value and int(self._owners[at]) != document
        }
        if not gone:
            return text, 0
        return "\n".join(line for number, line in enumerate(text.split("\n")) if number not in gone), len(gone)


def ranges_for(lines: int) -> int:
    """How many ranges so many lines are cut into."""
    return max(1, -(-lines // RANGE_LINES))
