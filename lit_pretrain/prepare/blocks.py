"""Blocks: a sample of what a step let through, by which its tokens are estimated.

A text is cut into blocks of 2 KiB, and those with the smallest hashes are kept. So every byte has the same chance, long documents and
short ones count by their size, and the sample depends neither on the order of the documents nor on how they lie in parts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import xxhash

BLOCK_BYTES = 2048
"""A cut may split a word, which makes one token more in about 500."""
MOST = 64
"""Blocks of a sample: 128 KiB. Where blocks differ by 15 % in their bytes per token, the mean of 64 is right to 2 %."""
_SLACK = 16
"""How many more blocks than wanted have hashes that count, so that a step which takes most of a source still leaves enough."""

Block: TypeAlias = tuple[int, str, int]
"""Hash, text, number of the document among those of the part that left the step."""


def threshold(total_bytes: int) -> int:
    """Below which hash a block of a source of this size may count: bounds what the parts of a large source write down."""
    return round(min(1.0, _SLACK * MOST * BLOCK_BYTES / max(1, total_bytes)) * 2**64)


def blocks(text: str, below: int) -> list[tuple[int, str]]:
    """Hash and text of the blocks whose hash lies below a threshold."""
    utf8 = memoryview(text.encode())
    found = []
    for begin in range(0, len(utf8), BLOCK_BYTES):
        block = utf8[begin : begin + BLOCK_BYTES]
        key = xxhash.xxh3_64_intdigest(block)
        if key < below:
            found.append((key, bytes(block).decode(errors="ignore")))  # a character that is cut is left out
    return found


class Sample:
    """The blocks with the smallest hashes."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, int]] = []  # (-hash, text, -document)

    def offer(self, block: Block) -> None:
        """Takes a block."""
        entry = (-block[0], block[1], -block[2])
        if len(self._heap) < MOST:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def update(self, found: Iterable[Block]) -> None:
        """Takes several."""
        for key, text, document in found:
            self.offer((key, text, document))

    def __iter__(self) -> Iterator[Block]:
        """By hash."""
        for key, text, document in sorted(self._heap, reverse=True):
            yield -key, text, -document
