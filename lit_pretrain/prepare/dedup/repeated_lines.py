"""Repeated lines: a line that stood in an earlier document is taken out of later ones.

It takes three steps, each in parallel: hash the lines of every part; for a range of hashes, over
all parts, find how often each occurs and where first; and take out what was there before. A task
holds 16 bytes for each line of its part, or 50 for each line of its range.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from lit_pretrain.prepare.dedup.dedup_config import LinesConfig
from lit_pretrain.prepare.dedup.dedup_files import in_range, load_column, save_columns
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.words import words


def line_hashes(text: str, min_words: int) -> list[tuple[int, int]]:
    """Return number and hash of each line that is long enough; outer white space does not count."""
    found = []
    for number, line in enumerate(text.split("\n")):
        if len(words(line)) >= min_words:
            found.append((number, xxhash.xxh3_64_intdigest(line.strip().encode())))
    return found


def store_lines(documents: Iterable[tuple[int, Document]], out: Path, config: LinesConfig) -> int:
    """Write the hashes of the lines of a part.

    Args:
        documents: (number in the corpus, document) of the documents of the part that are left.
        out: A directory of arrays: hash [L] (sorted), document [L].
        config: Which lines count.

    Returns:
        Number of lines, each counted once per document.
    """
    hashes, owners = array("Q"), array("q")
    for number, document in documents:
        # Each line counts once: a refrain is no copy.
        distinct = {value for _, value in line_hashes(document.text, config.min_words)}
        hashes.extend(distinct)
        owners.extend([number] * len(distinct))
    values, numbers = np.array(hashes, dtype=np.uint64), np.array(owners, dtype=np.int64)
    order = np.lexsort((numbers, values))
    save_columns(out, {"hash": values[order], "document": numbers[order]})
    return len(hashes)


def find_repeated_lines(
    files: Sequence[Path], number: int, ranges: int, out: Path, config: LinesConfig
) -> int:
    """Write the lines of one range that occur in `min_count` documents, with the first of these.

    Args:
        files: Files of `store_lines`, of all parts.
        number: The range, 0 to ranges - 1.
        ranges: Number of ranges.
        out: A directory of arrays: hash [R] (sorted), document [R].
        config: How many documents a line must occur in.

    Returns:
        Number of such lines.
    """
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for path in files:
        here = in_range(load_column(path, "hash"), number, ranges)
        hashes.append(load_column(path, "hash")[here])
        owners.append(load_column(path, "document")[here])
    values, documents = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((documents, values))
    values, documents = values[order], documents[order]
    found, first, counts = np.unique(values, return_index=True, return_counts=True)
    often = counts >= config.min_count
    save_columns(out, {"hash": found[often], "document": documents[first[often]]})
    return int(often.sum())


class RepeatedLines:
    """The repeated lines of a part.

    Args:
        files: Files of `find_repeated_lines`, of all ranges.
        lines: File of `store_lines`, of the part.
    """

    def __init__(self, files: Sequence[Path], lines: Path) -> None:
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        mine = np.unique(load_column(lines, "hash"))
        for number, path in enumerate(files):  # Ranges ascend, so the whole is sorted.
            repeated = load_column(path, "hash")
            here = mine[in_range(mine, number, len(files))]
            place = np.searchsorted(repeated, here)
            there = place < len(repeated)
            there[there] = repeated[place[there]] == here[there]
            hashes.append(here[there])
            owners.append(load_column(path, "document")[place[there]])
        self._hashes: npt.NDArray[np.uint64] = np.concatenate(hashes)
        self._owners: npt.NDArray[np.int64] = np.concatenate(owners)

    def drop_from(self, text: str, document: int, config: LinesConfig) -> tuple[str, int]:
        """Take out the lines that an earlier document holds, and count them.

        Args:
            text: The document's text.
            document: Its number, as given to `store_lines`.
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
        return "\n".join(
            line for number, line in enumerate(text.split("\n")) if number not in gone
        ), len(gone)
