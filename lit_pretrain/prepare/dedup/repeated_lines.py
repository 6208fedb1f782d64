"""Lines: what stood in an earlier document is taken out of later ones.

Three steps, each in parallel: hashes of the lines of every part; for a range of hashes over all
parts, which of them occur how often and where first; and the texts without what was there before. A
task holds 16 bytes a line of its part, or 50 a line of its range.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from lit_pretrain.hashing import words
from lit_pretrain.prepare.dedup.columns import in_range, load_columns, save_columns
from lit_pretrain.prepare.dedup.dedup_config import LinesConfig
from lit_pretrain.prepare.document_store import Document


def line_hashes(text: str, min_words: int) -> list[tuple[int, int]]:
    """(number of the line, hash) of the lines that are long enough; white space at their ends
    does not count.
    """
    found = []
    for number, line in enumerate(text.split("\n")):
        if len(words(line)) >= min_words:
            found.append((number, xxhash.xxh3_64_intdigest(line.strip().encode())))
    return found


def store_lines(documents: Iterable[tuple[int, Document]], out: Path, config: LinesConfig) -> int:
    """Writes the lines of a part.

    Args:
        documents: (number in the corpus, document) of those of the part that are left.
        out: A directory of arrays: hash [L] (sorted), document [L].
        config: Which lines count.

    Returns:
        Number of lines, each counted once per document.
    """
    hashes, owners = array("Q"), array("q")
    for number, document in documents:
        distinct = {
            value for _, value in line_hashes(document.text, config.min_words)
        }  # a refrain is no copy
        hashes.extend(distinct)
        owners.extend([number] * len(distinct))
    values, numbers = np.array(hashes, dtype=np.uint64), np.array(owners, dtype=np.int64)
    order = np.lexsort((numbers, values))
    save_columns(out, {"hash": values[order], "document": numbers[order]})
    return len(hashes)


def find_repeated(
    files: Sequence[Path], number: int, ranges: int, out: Path, config: LinesConfig
) -> int:
    """Writes the lines of one range of hashes that occur in `min_count` documents, with the
    document that keeps each.

    Args:
        files: Of all parts.
        number: The range, 0 to ranges - 1.
        ranges: How many there are.
        out: A directory of arrays: hash [R] (sorted), document [R].
        config: How often is often.

    Returns:
        Number of such lines.
    """
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for path in files:
        here = in_range(load_columns(path, "hash"), number, ranges)
        hashes.append(load_columns(path, "hash")[here])
        owners.append(load_columns(path, "document")[here])
    values, documents = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((documents, values))
    values, documents = values[order], documents[order]
    found, first, counts = np.unique(values, return_index=True, return_counts=True)
    often = counts >= config.min_count
    save_columns(out, {"hash": found[often], "document": documents[first[often]]})
    return int(often.sum())


class Repeated:
    """The repeated lines of a part.

    Args:
        files: Of `find_repeated`, all ranges.
        lines: Of `store_lines`, the part.
    """

    def __init__(self, files: Sequence[Path], lines: Path) -> None:
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        mine = np.unique(load_columns(lines, "hash"))
        for number, path in enumerate(files):  # ranges rise, so the whole is sorted
            repeated = load_columns(path, "hash")
            here = mine[in_range(mine, number, len(files))]
            place = np.searchsorted(repeated, here)
            there = place < len(repeated)
            there[there] = repeated[place[there]] == here[there]
            hashes.append(here[there])
            owners.append(load_columns(path, "document")[place[there]])
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
        return "\n".join(
            line for number, line in enumerate(text.split("\n")) if number not in gone
        ), len(gone)
