"""Survivors: the documents of a part that are left after everything that looks at the corpus as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.dedup.decide import Removed
from lit_pretrain.prepare.dedup.lines import Repeated
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.store import read_documents


def clean_file(work: Path, number: int) -> Path:
    """Where the documents of a part lie that passed its filters."""
    return work / "clean" / f"{number:05d}.parquet"


def removed_file(work: Path, group: int) -> Path:
    """Where the verdicts on a group of candidates lie."""
    return work / "removed" / f"{group:05d}.npz"


def repeated_file(work: Path, number: int) -> Path:
    """Where a range of repeated lines lies."""
    return work / "repeated" / f"{number:05d}.npz"


def all_removed(work: Path) -> Removed:
    """The verdicts on all groups."""
    return Removed.join([Removed.load(path) for path in sorted((work / "removed").glob("*.npz"))])


class Survivors:
    """Iterates over them; the same ones in every stage that asks.

    Args:
        config: What was compared, None when nothing was.
        work: The directory of the preparation.
        number: The part.
        begin: Number of its first document in the corpus.
        lines: Whether repeated lines are taken out.
    """

    def __init__(self, config: DedupConfig | None, work: Path, number: int, begin: int, *, lines: bool = True) -> None:
        self._config = config
        self._file = clean_file(work, number)
        self._begin = begin
        self._removed: frozenset[int] = frozenset()
        self._repeated: Repeated | None = None
        self.changed = 0
        """Documents that lost lines."""
        self.lines = 0
        """Lines that they lost."""
        self.emptied = 0
        """Documents of which nothing was left."""
        if config is not None:
            found = all_removed(work).document
            self._removed = frozenset(found[np.searchsorted(found, begin) :].tolist())
            if lines and config.lines is not None:
                self._repeated = Repeated(sorted((work / "repeated").glob("*.npz")))

    def __iter__(self) -> Iterator[Document]:
        for _, document in self.numbered():
            yield document

    def numbered(self) -> Iterator[tuple[int, Document]]:
        """(number in the corpus, document)."""
        for number, document in enumerate(read_documents(self._file), start=self._begin):
            if number in self._removed:
                continue
            if self._repeated is not None:
                assert self._config is not None
                assert self._config.lines is not None
                text, gone = self._repeated.without(document.text, number, self._config.lines)
                if gone:
                    self.changed += 1
                    self.lines += gone
                    if not text.strip():
                        self.emptied += 1
                        continue
                    document = dataclasses.replace(document, text=text)
            yield number, document
