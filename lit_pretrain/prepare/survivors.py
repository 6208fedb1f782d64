"""Survivors: the documents of a part that are left after everything that looks at the corpus as
a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.dedup.lines import Repeated
from lit_pretrain.prepare.document_store import Document, read_documents


def clean_file(work: Path, number: int) -> Path:
    """Where the documents of a part lie that passed its filters."""
    return work / "clean" / f"{number:05d}.parquet"


def removed_file(work: Path, number: int) -> Path:
    """Where the numbers of the documents of a part lie that went."""
    return work / "removed" / f"{number:05d}.npy"


def lines_file(work: Path, number: int) -> Path:
    """Where the hashes of the lines of a part lie."""
    return work / "lines" / f"{number:05d}"


def repeated_file(work: Path, number: int) -> Path:
    """Where a range of repeated lines lies."""
    return work / "repeated" / f"{number:05d}"


class Survivors:
    """Iterates over them; the same ones in every stage that asks. Holds what went of the part, and
    its repeated lines.

    Args:
        config: What was compared, None when nothing was.
        work: The directory of the preparation.
        number: The part.
        begin: Number of its first document in the corpus.
        lines: Whether repeated lines are taken out.
    """

    def __init__(
        self, config: DedupConfig | None, work: Path, number: int, begin: int, *, lines: bool = True
    ) -> None:
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
            if config.compares:
                self._removed = frozenset(np.load(removed_file(work, number)).tolist())
            if lines and config.lines is not None:
                self._repeated = Repeated(
                    sorted((work / "repeated").glob("[0-9]*")), lines_file(work, number)
                )

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
