"""Shape: how long the documents of a source are, and how much they look like text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.documents import read_records
from lit_pretrain.data.manifest import Manifest
from lit_pretrain.data.stored import sample_documents
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.prepare.filters.view import View

QUALITY = ("characters per word", "words with a letter", "characters in repeated lines")
"""What is measured of a text; the last two are shares."""


@dataclass(frozen=True)
class Shape:
    """The documents of one source in the training split."""

    tokens: npt.NDArray[np.int64]
    """Of every document, separators included, [documents]."""
    bytes: npt.NDArray[np.int64]
    """Of every document, [documents]."""
    quality: npt.NDArray[np.float64]
    """Of a sample of documents, [sampled, len(QUALITY)]."""


def shape_of(path: Path, manifest: Manifest, tokenizer: Tokenizer, source: str, *, sample_bytes: int) -> Shape:
    """Measures one source: lengths of all its documents, quality of a sample of them.

    Args:
        path: The dataset's directory.
        manifest: Its manifest.
        tokenizer: Its tokenizer.
        source: Name of the source; its training split must hold something.
        sample_bytes: Text to measure quality on.
    """
    tokens: list[int] = []
    sizes: list[int] = []
    for record in read_records(path, "train", source):
        if record.piece:  # goes on with the document before
            tokens[-1] += record.tokens
        else:
            tokens.append(record.tokens)
            sizes.append(record.bytes)
    measured = [quality(text) for text in sample_documents(path, manifest, source, tokenizer, size=sample_bytes)]
    return Shape(
        tokens=np.array(tokens, dtype=np.int64),
        bytes=np.array(sizes, dtype=np.int64),
        quality=np.array(measured, dtype=np.float64).reshape(-1, len(QUALITY)),
    )


def quality(text: str) -> tuple[float, float, float]:
    """The figures `QUALITY` of one text: what Gopher's rules (Rae et al. 2021, section A.1.1) set limits to, as numbers."""
    view = View(text)
    total = len(view.words)
    if not total:
        return 0.0, 0.0, 0.0
    length = float((view.counts * view.lengths).sum()) / total
    lettered = np.fromiter((any(map(str.isalpha, word)) for word in view.vocabulary), dtype=bool, count=len(view.vocabulary))
    lines = [line for line in view.rows if line.strip()]
    repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
    return length, int(view.counts[lettered].sum()) / total, repeated / len(text)
