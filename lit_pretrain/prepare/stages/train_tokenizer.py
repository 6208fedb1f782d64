"""Learn: a tokenizer from the text that is left, and whether the fast encoder agrees with the
reference on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.corpus.chunk_writer import write_durably
from lit_pretrain.errors import UserError
from lit_pretrain.prepare import tokenize
from lit_pretrain.prepare.document_store import Document, DocumentWriter, read_documents
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import say, working
from lit_pretrain.prepare.stages.encode import Splitter, TokenizerSample
from lit_pretrain.prepare.survivors import Survivors, clean_file
from lit_pretrain.tokenizer.tokenizer import Tokenizer

# Sample: training text for the tokenizer, drawn evenly over all parts.


_SLACK = 4
"""How much more text than wanted lies below the threshold, so that enough is left when
deduplication takes most of it.
"""
_DOCUMENTS = 1_000
"""How many documents should lie below it, so that chance does not leave too few large ones."""


@dataclass(frozen=True)
class SampleTask:
    """Draws the documents of one part that the whole sample may want: at most its size in
    memory.
    """

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
        share = max(
            _SLACK * limit / max(1, self.total_bytes), _DOCUMENTS / max(1, self.total_documents)
        )
        below = round(min(1.0, share) * 2**64)
        splitter = Splitter.load(self.config, self.work)
        sample = TokenizerSample(limit)
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
    sample = TokenizerSample(config.tokenizer.sample_bytes)
    for number in range(parts):
        for document in read_documents(sample_file(work, number)):
            sample.offer(int(document.origin), document.text, len(document.utf8))
    return sample.texts()


def sample_file(work: Path, number: int) -> Path:
    """Where a part's sample lies."""
    return work / "sample" / f"{number:05d}.parquet"


_EQUALITY_SAMPLE_BYTES = 1_000_000
"""Text of the data itself on which tiktoken must agree with `tokenizers` before it encodes the
rest.
"""


def learn_tokenizer(run: Preparation) -> Tokenizer:
    """Learns from a uniform sample of the training split over all sources; once for all
    attempts.
    """
    config = run.config.tokenizer
    saved = run.work / "tokenizer"
    if (saved / "done").exists():
        return Tokenizer.load(saved)
    documents = sum(result["funnel"][-1]["documents"] for result in run.clean)
    run.do(
        "sample",
        "sample text for the tokenizer",
        SampleTask(run.config, run.work, sum(run.left), documents, run.begins),
        run.bytes_left(),
    )
    texts = gather(run.config, run.work, len(run.parts))
    if not texts:
        raise UserError(
            "no source holds any training text: every document fell to validation or test"
        )
    size = sum(len(text.encode()) for text in texts)
    with working(f"train a tokenizer on {sum(map(len, texts)):,} characters", size) as (
        advance,
        figures,
    ):
        tokenizer = tokenize.train_bpe(texts, config, advance)
        figures.append(f"{tokenizer.vocab_size:,} ids")
    saved.mkdir(exist_ok=True)
    tokenizer.save(saved)
    write_durably(saved / "done", "")
    return tokenizer


def check_encoder(run: Preparation, tokenizer: Tokenizer) -> None:
    """Compares the fast encoder with the reference on the data's own text."""
    texts: list[str] = []
    for name in run.inputs:
        size, share = 0, _EQUALITY_SAMPLE_BYTES // len(run.inputs)
        for document in read_documents(clean_file(run.work, run.of(name)[0])):
            texts.append(document.text[:_EQUALITY_SAMPLE_BYTES])
            size += len(document.utf8)
            if size >= share:
                break
    tokenizer.check_equality(texts)
    if tokenizer.fallback_reason is not None:
        say(
            "encoding with `tokenizers`, several times slower than tiktoken, because"
            f" {tokenizer.fallback_reason}"
        )
