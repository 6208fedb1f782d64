"""Sample: training text for the tokenizer, drawn evenly over all parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.engine.stage import Advance
from lit_pretrain.prepare.split import Sample, Splitter
from lit_pretrain.prepare.store import DocumentWriter, read_documents
from lit_pretrain.prepare.survivors import Survivors

_SLACK = 4
"""How much more text than wanted lies below the threshold, so that enough is left when deduplication takes most of it."""
_DOCUMENTS = 1_000
"""How many documents should lie below it, so that chance does not leave too few large ones."""


@dataclass(frozen=True)
class SampleTask:
    """Draws the documents of one part that the whole sample may want: at most its size in memory."""

    config: PrepareConfig
    work: Path
    total_bytes: int
    """Of all parts; with the next, what share of the keys may count."""
    total_documents: int
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes sample/<number>.parquet, the keys as origins."""
        limit = self.config.tokenizer.sample_bytes
        share = max(_SLACK * limit / max(1, self.total_bytes), _DOCUMENTS / max(1, self.total_documents))
        below = round(min(1.0, share) * 2**64)
        splitter = Splitter.load(self.config, self.work)
        sample = Sample(limit)
        for document in Survivors(self.config.dedup, self.work, number, self.begins[number]):
            for key, split, piece in splitter.pieces(document):
                size = len(piece.utf8)
                if key < below and split == "train":
                    sample.offer(key, piece.text, size)
                advance(size)
        with DocumentWriter(sample_file(self.work, number)) as writer:
            for key, text in sample.documents():
                writer.add(Document(text, str(key)))
        return {}


def gather(config: PrepareConfig, work: Path, parts: int) -> list[str]:
    """The texts to learn from: the documents with the smallest keys of all parts."""
    sample = Sample(config.tokenizer.sample_bytes)
    for number in range(parts):
        for document in read_documents(sample_file(work, number)):
            sample.offer(int(document.origin), document.text, len(document.utf8))
    return sample.texts()


def sample_file(work: Path, number: int) -> Path:
    """Where a part's sample lies."""
    return work / "sample" / f"{number:05d}.parquet"
