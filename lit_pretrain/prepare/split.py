"""Splits: which split a document belongs to, from its text alone."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from lit_pretrain.prepare.config import SplitsConfig

_SCALE = 2**64


class Splitter:
    """Hashes a text to a key that is uniform over 64 bits, and a key to a split.

    Equal texts go to the same split, wherever they stand, so that no copy of a training document is in validation; and a document
    keeps its split when others are added.
    """

    def __init__(self, splits: SplitsConfig, seed: int) -> None:
        self._seed = str(seed).encode()
        self._test_below = round(splits.test * _SCALE)
        self._validation_below = round((splits.test + splits.validation) * _SCALE)

    def key(self, utf8: bytes) -> int:
        """A number in [0, 2^64) that depends on the text and the seed."""
        return int.from_bytes(hashlib.blake2b(utf8, digest_size=8, key=self._seed).digest(), "big")

    def split(self, key: int) -> str:
        """The split of a key."""
        if key < self._test_below:
            return "test"
        return "validation" if key < self._validation_below else "train"


class Sample:
    """A uniform sample of documents of bounded size, which does not depend on their order: those with the smallest keys."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._heap: list[tuple[int, int, int, str]] = []  # (-key, -number, bytes, text): the largest key first
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
