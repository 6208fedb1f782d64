"""Survivors: the documents of a part that are left after everything that looks at the corpus as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.store import read_documents


def clean_file(work: Path, number: int) -> Path:
    """Where the documents of a part lie that passed its filters."""
    return work / "clean" / f"{number:05d}.parquet"


class Survivors:
    """Iterates over them; the same ones in every stage that asks."""

    def __init__(self, config: PrepareConfig, work: Path, number: int) -> None:
        self._config = config
        self._work = work
        self._number = number

    def __iter__(self) -> Iterator[Document]:
        yield from read_documents(clean_file(self._work, self._number))
