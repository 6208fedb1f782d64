"""Hold out: choose which text of each source is kept from training, once for all later stages.

A hash of each document decides, as long as that gives every split of a source about the share of
bytes that it should have. With few documents, or very unequal ones, it does not: a single file
would go to training as a whole. Then `choose_by_bytes` holds out text of that source by its bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from lit_pretrain.files import write_file
from lit_pretrain.prepare.dedup.dedup_files import save_column
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.prepare_config import PrepareConfig, SplitsConfig
from lit_pretrain.prepare.stages.compare import Survivors

Segments = list[tuple[str, int]]
"""The pieces of a document: the split of each and the byte at which it begins, the first at 0."""
Chosen = Mapping[int, Segments]
"""The documents that do not follow their hash, by key."""

_SCALE = 2**64
_BOUND = 4
"""The hash stands while every split has from a quarter of its share to four times as much. A share
of ten documents of one size falls below that once in 360 times, one of twenty in 60,000."""
_LEAST_BYTES = 64
"""A smaller share stays empty: the loss of a sentence says nothing."""


class Splitter:
    """Assign texts to splits by a key: a hash of the text that is uniform over 64 bits.

    Equal texts go to the same split wherever they stand, so that validation holds no copy of a
    training document. While the hash decides, a document keeps its split when others are added.
    """

    def __init__(self, splits: SplitsConfig, seed: int, chosen: Chosen | None = None) -> None:
        self._seed = str(seed).encode()
        self._chosen = chosen or {}
        # The test comes first, so that another share of validation leaves the test as it was.
        self._test_below = round(splits.test * _SCALE)
        self._validation_below = round((splits.test + splits.validation) * _SCALE)

    @classmethod
    def load(cls, config: PrepareConfig, work: Path) -> Splitter:
        """Read what `hold_out` has chosen for a preparation."""
        raw = json.loads(_chosen_file(work).read_text(encoding="utf-8"))
        chosen = {int(key): [(split, begin) for split, begin in raw[key]] for key in raw}
        return cls(config.splits, config.seed, chosen)

    def key(self, utf8: bytes) -> int:
        """Compute a number in [0, 2^64) that depends on the text and the seed."""
        return int.from_bytes(hashlib.blake2b(utf8, digest_size=8, key=self._seed).digest(), "big")

    def split(self, key: int) -> str:
        """Find the split that a key alone decides."""
        if key < self._test_below:
            return "test"
        return "validation" if key < self._validation_below else "train"

    def pieces(self, document: Document) -> Iterator[tuple[int, str, Document]]:
        """Yield key, split and text of each piece of a document, which nearly always is whole.

        A later piece begins at a paragraph, a line or a word, or at least at a character. Its field
        `bytes` says which bytes of the cleaned text it is.
        """
        utf8 = document.utf8
        key = self.key(utf8)
        segments = self._chosen.get(key) or [(self.split(key), 0)]
        ends = [*(begin for _, begin in segments[1:]), len(utf8)]
        stops = [
            _cut(utf8, end, after) for end, after in zip(ends, [*ends[1:], len(utf8)], strict=True)
        ]
        start = 0
        for (split, _), stop in zip(segments, stops, strict=True):
            if stop - start == len(utf8):
                yield key, split, document
            elif start < stop:
                fields = {**document.fields, "bytes": f"{start}-{stop}"}
                text = utf8[start:stop].decode()
                yield key, split, dataclasses.replace(document, text=text, fields=fields)
            start = stop


def _cut(utf8: bytes, place: int, end: int) -> int:
    """Find where to cut: at a good beginning in the first quarter up to `end`, else at `place`."""
    for separator in (b"\n\n", b"\n", b" "):
        found = utf8.find(separator, place, place + (end - place) // 4)
        if found >= 0:
            return found + len(separator)
    while place < len(utf8) and utf8[place] & 0xC0 == 0x80:  # within a character
        place += 1
    return place


class SplitBytes(TypedDict):
    """The result of a MeasureTask: UTF-8 bytes that the hash gives to each split."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class MeasureTask:
    """Measure what the hash of the documents of one part gives to each split."""

    config: PrepareConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> SplitBytes:
        """Write keys/<number>.npy: [documents, 2], the key and UTF-8 bytes of each document."""
        splitter = Splitter(self.config.splits, self.config.seed)
        held = {"train": 0, "validation": 0, "test": 0}
        rows = array("Q")
        for document in Survivors(self.config.dedup, self.work, number, self.begins[number]):
            utf8 = document.utf8
            key = splitter.key(utf8)
            held[splitter.split(key)] += len(utf8)
            rows.extend((key, len(utf8)))
            advance(len(utf8))
        save_column(_keys_file(self.work, number), np.array(rows, dtype=np.uint64).reshape(-1, 2))
        return SplitBytes(train=held["train"], validation=held["validation"], test=held["test"])


def hold_out(run: Preparation) -> None:
    """Decide for every source whether the hash of its documents stands, and choose otherwise."""
    config = run.config
    task = MeasureTask(config, run.work, run.begins)
    measured = run.do("measure", "measure the splits", task, run.bytes_left())
    chosen: dict[int, Segments] = {}
    for name in run.inputs:
        parts = run.parts_of(name)
        held = {
            "train": sum(measured[n]["train"] for n in parts),
            "validation": sum(measured[n]["validation"] for n in parts),
            "test": sum(measured[n]["test"] for n in parts),
        }
        shares = target_bytes(sum(held.values()), config.splits)
        if close_to_targets(held, shares):
            run.held_out[name] = {
                split: "hash" for split in ("validation", "test") if shares[split]
            }
            continue
        keys, sizes = np.concatenate([np.load(_keys_file(run.work, n)) for n in parts]).T
        found, run.held_out[name] = choose_by_bytes(keys, sizes, config.splits, chosen)
        chosen |= found
    write_file(_chosen_file(run.work), json.dumps(chosen))


def target_bytes(total: int, splits: SplitsConfig) -> dict[str, int]:
    """Compute the bytes that each split of a source should have."""
    held_out = {"test": round(splits.test * total), "validation": round(splits.validation * total)}
    return {**held_out, "train": total - sum(held_out.values())}


def close_to_targets(held: Mapping[str, int], shares: Mapping[str, int]) -> bool:
    """Check whether the bytes that the hash gives to each split are close enough to its share."""
    return all(
        (held[split] * _BOUND >= share or share < _LEAST_BYTES) and held[split] <= share * _BOUND
        for split, share in shares.items()
    )


def choose_by_bytes(
    keys: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    splits: SplitsConfig,
    before: Chosen,
) -> tuple[dict[int, Segments], dict[str, str]]:
    """Hold out text of a source by its bytes.

    The test split, and then validation, takes documents in the order of their keys, each that still
    fits into its share, until one does not fit and half of the share is filled. If whole documents
    fill less than half, the end of a larger document is added. So each split gets between half of
    its share and all of it, and training gets at least its own.

    Args:
        keys: [documents], of the whole source, copies included.
        sizes: [documents], in UTF-8 bytes.
        splits: The shares.
        before: The choices for earlier sources; a copy of such a document follows them.

    Returns:
        The documents that do not follow their hash, and how each split was filled: `bytes` with
        whole documents, `tail` with the end of one among them. A split whose share is too small
        for a sentence is missing.
    """
    by_hash = Splitter(splits, 0).split
    # Sorted by key, which is a hash of the text: neither parts nor file names change the order.
    unique, first, counts = np.unique(keys, return_index=True, return_counts=True)
    documents = zip(unique.tolist(), sizes[first].tolist(), counts.tolist(), strict=True)
    shares = target_bytes(int(sizes.sum()), splits)
    held = dict.fromkeys(shares, 0)
    free: dict[int, tuple[int, int]] = {}  # size and number of copies, in the order of the keys
    for key, size, count in documents:
        if key not in before:
            free[key] = size, count
            continue
        # What an earlier source has decided about a copy counts towards the shares of this source,
        # too.
        ends = [*(begin for _, begin in before[key][1:]), size]
        for (split, begin), end in zip(before[key], ends, strict=True):
            held[split] += count * (end - begin)
    found: dict[int, Segments] = {}
    how = {}
    for split in ("test", "validation"):
        share = shares[split]
        if share < _LEAST_BYTES:
            continue
        how[split] = "bytes"
        for key, (size, count) in free.items():
            if key in found:
                continue
            if held[split] + size * count <= share:
                found[key] = [(split, 0)]
                held[split] += size * count
            elif held[split] * 2 >= share:
                break
        if held[split] * 2 < share:
            # Documents that are still whole did not fit: only the end of one can.
            whole = (key for key in free if key not in found)
            cut = (key for key, segments in found.items() if len(segments) > 1)
            for key in (*whole, *cut):
                size, count = free[key]
                segments = found.get(key, [("train", 0)])
                end = segments[1][1] if len(segments) > 1 else size
                # All copies are cut alike, and each gives its part of what is missing.
                begin = end - (share - held[split]) // count
                if begin > 0:
                    found[key] = [("train", 0), (split, begin), *segments[1:]]
                    held[split] += (end - begin) * count
                    how[split] = "tail"
                    break
    chosen = {key: found.get(key, [("train", 0)]) for key in free}
    # The hash itself tells of all others.
    return {key: s for key, s in chosen.items() if s != [(by_hash(key), 0)]}, how


def _keys_file(work: Path, number: int) -> Path:
    """Name the file with the keys and sizes of the documents of a part."""
    return work / "keys" / f"{number:05d}.npy"


def _chosen_file(work: Path) -> Path:
    """Name the file with the documents that do not follow their hash."""
    return work / "chosen.json"
