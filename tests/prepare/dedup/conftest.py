"""Tests of deduplication write many small files: they need not outlive the machine."""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_pretrain.prepare.dedup.decide import Removed
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.dedup.dedup_files import load_column
from lit_pretrain.prepare.document_store import Document, DocumentWriter, clean_file
from lit_pretrain.prepare.stages.compare import Comparison, find_duplicates

Deduplicate = Callable[[Sequence[Sequence[Document]], DedupConfig], Removed]


@pytest.fixture(autouse=True, scope="package")
def _no_fsync() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def _do(name: str, title: str, task: Any, sizes: Sequence[int], unit: str = "bytes") -> list[Any]:
    """Runs a stage in this process, without files of results."""
    return [task(number, lambda done: None) for number in range(len(sizes))]


def _deduplicate(parts: Sequence[Sequence[Document]], config: DedupConfig) -> Removed:
    counts = [len(part) for part in parts]
    begins = tuple(itertools.accumulate(counts[:-1], initial=0))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number, part in enumerate(parts):
            with DocumentWriter(clean_file(work, number)) as writer:
                for document in part:
                    writer.add(document)
        corpus = Comparison(config, work, begins, sum(counts), tuple(counts))
        groups, _ = find_duplicates(corpus, _do)
        found = {
            name: np.concatenate(
                [load_column(corpus.places.verdicts(n), name) for n in range(len(groups))]
                or [np.empty(0, np.int64)]
            )
            for name in ("document", "kept", "reason", "similarity")
        }
    order = np.argsort(found["document"], kind="stable")
    return Removed(**{name: column[order] for name, column in found.items()})


@pytest.fixture(scope="session")
def deduplicate() -> Deduplicate:
    """What the comparison of a corpus removes, by the stages of `prepare` in this process."""
    return _deduplicate
