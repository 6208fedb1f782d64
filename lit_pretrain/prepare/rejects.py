"""Rejects: a few of the documents that each step left behind, to be read."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import Any

FILENAME = "rejects.jsonl"
_TEXT_CHARACTERS = 2_000
"""Kept of each."""


class Rejects:
    """A sample of fixed size per (step, reason) that does not depend on the order of the documents: those with the smallest hashes."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._heaps: dict[tuple[str, str], list[tuple[int, str, str]]] = {}

    def offer(self, step: str, reason: str, origin: str, text: str) -> None:
        """Takes a rejected document."""
        if not self._keep:
            return
        content = f"{origin}\0{text[:_TEXT_CHARACTERS]}".encode(errors="replace")
        key = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        heap = self._heaps.setdefault((step, reason), [])
        entry = (-key, origin, text[:_TEXT_CHARACTERS])
        if len(heap) < self._keep:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)

    def dump(self) -> list[dict[str, Any]]:
        """By step and reason."""
        return [
            {"step": step, "reason": reason, "origin": origin, "text": text}
            for (step, reason), heap in sorted(self._heaps.items())
            for _, origin, text in sorted(heap, reverse=True)
        ]

    def add(self, dumped: Iterable[dict[str, Any]]) -> None:
        """Takes what another part kept."""
        for entry in dumped:
            self.offer(entry["step"], entry["reason"], entry["origin"], entry["text"])
