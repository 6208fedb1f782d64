"""Encode: the documents of a part that are left, as chunks of their splits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.corpus.chunk_writer import ShardWriter
from lit_pretrain.corpus.manifest import SPLITS, Chunk, SourceSplit
from lit_pretrain.files import scratch_name
from lit_pretrain.prepare import tokenize
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.inputs import Part
from lit_pretrain.prepare.prepare_config import PrepareConfig, SplitsConfig
from lit_pretrain.prepare.survivors import Survivors
from lit_pretrain.tokenizer.tokenizer import Tokenizer

# Splits: which split a document, or a piece of one, belongs to.
#
# A hash of each document decides, as long as that gives every split of a source about the share of
# bytes it should have. With few documents, or very unequal ones, it does not: a single file would
# be training text as a whole. `choose` then holds text of that source out by its bytes.


Segments = list[tuple[str, int]]
"""Of a document: the splits of its pieces, and the byte at which each begins; the first at 0."""
Chosen = Mapping[int, Segments]
"""By key: the documents that do not go by their hash."""

_SCALE = 2**64
_BOUND = 4
"""The hash stands while every split has from a quarter of its share to four times as much. A share
of ten documents of one size falls below that once in 360 times, one of twenty in 60,000."""
_LEAST_BYTES = 64
"""A smaller share stays empty: the loss of a sentence says nothing."""


class Splitter:
    """Hashes a text to a key that is uniform over 64 bits, and a key to a split.

    Equal texts go to the same split, wherever they stand, so that no copy of a training document
    is in validation; and while the hash decides, a document keeps its split when others are added.
    """

    def __init__(self, splits: SplitsConfig, seed: int, chosen: Chosen | None = None) -> None:
        self._seed = str(seed).encode()
        self._chosen = chosen or {}
        self._test_below = round(splits.test * _SCALE)
        self._validation_below = round((splits.test + splits.validation) * _SCALE)

    @classmethod
    def load(cls, config: PrepareConfig, work: Path) -> Splitter:
        """Read what was chosen for a preparation."""
        raw = json.loads(chosen_file(work).read_text(encoding="utf-8"))
        chosen = {int(key): [(split, begin) for split, begin in raw[key]] for key in raw}
        return cls(config.splits, config.seed, chosen)

    def key(self, utf8: bytes) -> int:
        """A number in [0, 2^64) that depends on the text and the seed."""
        return int.from_bytes(hashlib.blake2b(utf8, digest_size=8, key=self._seed).digest(), "big")

    def split(self, key: int) -> str:
        """The split that a key alone decides."""
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
    """Find where to cut at a place or, so as to begin well, in the next quarter up to the end."""
    for separator in (b"\n\n", b"\n", b" "):
        found = utf8.find(separator, place, place + (end - place) // 4)
        if found >= 0:
            return found + len(separator)
    while place < len(utf8) and utf8[place] & 0xC0 == 0x80:  # within a character
        place += 1
    return place


def chosen_file(work: Path) -> Path:
    """Where the documents of a preparation lie that do not go by their hash."""
    return work / "chosen.json"


def wished(total: int, splits: SplitsConfig) -> dict[str, int]:
    """Bytes that each split of a source should have."""
    held_out = {"test": round(splits.test * total), "validation": round(splits.validation * total)}
    return {**held_out, "train": total - sum(held_out.values())}


def stands(held: Mapping[str, int], shares: Mapping[str, int]) -> bool:
    """Whether what the hash gives to the splits is near enough to what they should have."""
    return all(
        (held[split] * _BOUND >= share or share < _LEAST_BYTES) and held[split] <= share * _BOUND
        for split, share in shares.items()
    )


def choose(
    keys: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    splits: SplitsConfig,
    before: Chosen,
) -> tuple[dict[int, Segments], dict[str, str]]:
    """Hold text of a source out by its bytes.

    The test, and then validation, takes documents in the order of their keys: each that still fits
    into its share, until one does not and half of the share is there. If that much does not fit,
    the end of a larger document fills it up. So each gets between half of its share and all of it,
    and training gets its own at least.

    Args:
        keys: [documents], of the whole source, copies included.
        sizes: [documents], in UTF-8 bytes.
        splits: The shares.
        before: What was chosen in earlier sources; copies of it in this one go with it.

    Returns:
        The documents that do not go by their hash, and how each split was filled: `bytes` with
        whole documents, `tail` with the end of one among them; a split whose share is too small for
        a sentence is left out.
    """
    by_hash = Splitter(splits, 0).split
    unique, first, counts = np.unique(keys, return_index=True, return_counts=True)
    documents = zip(unique.tolist(), sizes[first].tolist(), counts.tolist(), strict=True)
    shares = wished(int(sizes.sum()), splits)
    held = dict.fromkeys(shares, 0)
    free: dict[int, tuple[int, int]] = {}  # size and number of copies, in the order of the keys
    for key, size, count in documents:
        if key not in before:
            free[key] = size, count
            continue
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
            # Whatever is still whole did not fit, so its end alone will do.
            whole = (key for key in free if key not in found)
            cut = (key for key, segments in found.items() if len(segments) > 1)
            for key in (*whole, *cut):
                size, count = free[key]
                segments = found.get(key, [("train", 0)])
                end = segments[1][1] if len(segments) > 1 else size
                begin = end - (share - held[split]) // count
                if begin > 0:
                    found[key] = [("train", 0), (split, begin), *segments[1:]]
                    held[split] += (end - begin) * count
                    how[split] = "tail"
                    break
    chosen = {key: found.get(key, [("train", 0)]) for key in free}
    return {key: s for key, s in chosen.items() if s != [(by_hash(key), 0)]}, how


class TokenizerSample:
    """A uniform sample of documents of bounded size, which does not depend on their order:
    those with the smallest keys.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._heap: list[
            tuple[int, int, int, str]
        ] = []  # (-key, -number, bytes, text): the largest key first
        self._bytes = 0

    def offer(self, key: int, text: str, size: int) -> None:
        """Takes a document, and drops those with the largest keys while the rest suffices."""
        if self._bytes >= self._max_bytes and key > -self._heap[0][0]:
            return
        heapq.heappush(self._heap, (-key, -len(self._heap), size, text))
        self._bytes += size
        while self._bytes - self._heap[0][2] >= self._max_bytes:
            self._bytes -= heapq.heappop(self._heap)[2]

    def documents(self) -> Iterator[tuple[int, str]]:
        """(key, text) in the order of their keys."""
        for key, _, _, text in sorted(self._heap, key=lambda entry: (-entry[0], entry[3])):
            yield -key, text

    def texts(self) -> list[str]:
        """The documents in the order of their keys, the last one cut at the limit."""
        texts, left = [], self._max_bytes
        for _, text in self.documents():
            size = len(text.encode())
            texts.append(text if size <= left else text.encode()[:left].decode(errors="ignore"))
            left -= size
        return texts


@dataclass(frozen=True)
class EncodeTask:
    """Encodes one part."""

    config: PrepareConfig
    parts: tuple[Part, ...]
    work: Path
    tokenizer: Tokenizer
    dtype: str
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes shards/<number>/<split>/; returns the record of each split."""
        config, part = self.config, self.parts[number]
        final = part_directory(self.work, number)
        scratch = scratch_name(final)
        splitter = Splitter.load(config, self.work)
        documents = cut = 0
        writers: dict[str, ShardWriter] = {}
        splits_of: deque[str] = deque()  # of the pieces that are being encoded, a batch at a time

        survivors = Survivors(config.dedup, self.work, number, self.begins[number])

        def pieces() -> Iterator[Document]:
            nonlocal documents, cut
            for document in survivors:
                advance(len(document.utf8))
                documents += 1
                for _, split, piece in splitter.pieces(document):
                    cut += split == "train" and piece is not document
                    splits_of.append(split)
                    yield piece

        try:
            with contextlib.closing(
                tokenize.encode(pieces(), self.tokenizer, self.dtype)
            ) as encoding:
                for encoded in encoding:
                    document, split = encoded.document, splits_of.popleft()
                    if split not in writers:
                        writers[split] = ShardWriter(
                            scratch / split,
                            part=part.number,
                            dtype=self.dtype,
                            chunk_tokens=config.chunk_tokens,
                            vocab_size=self.tokenizer.vocab_size,
                        )
                    writers[split].add(
                        encoded.ids,
                        origin=document.origin,
                        utf8_bytes=len(document.utf8),
                        fields=document.fields,
                    )
            splits = {
                split: writers[split].close() if split in writers else SourceSplit(0, 0, 0, ())
                for split in SPLITS
            }
            if writers:
                shutil.rmtree(
                    final, ignore_errors=True
                )  # of a run that was killed before its result was written
                os.rename(scratch, final)
        finally:
            for writer in writers.values():
                writer.abort()
            shutil.rmtree(scratch, ignore_errors=True)
        return {
            "splits": {name: dataclasses.asdict(split) for name, split in splits.items()},
            "cut": sum(writer.cut for writer in writers.values()),
            "documents": documents,
            "end_held_out": cut,
            "lines": {
                "lines": survivors.lines,
                "changed": survivors.changed,
                "emptied": survivors.emptied,
            },
        }


def part_directory(work: Path, number: int) -> Path:
    """Where the chunks of a part lie until they are assembled."""
    return work / "shards" / f"{number:05d}"


def document_split_of(result: dict[str, Any], name: str) -> SourceSplit:
    """One split of a task's result."""
    raw = result["splits"][name]
    return SourceSplit(**{**raw, "chunks": tuple(Chunk(**chunk) for chunk in raw["chunks"])})
