"""Learn: a tokenizer from the text that is left, and whether the fast encoder agrees with the reference on it."""

from __future__ import annotations

from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.prepare import tokenize
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.report import say, working
from lit_pretrain.prepare.shard import write_durably
from lit_pretrain.prepare.store import read_documents
from lit_pretrain.prepare.survivors import clean_file
from lit_pretrain.prepare.tasks.sample import SampleTask, gather

_EQUALITY_SAMPLE_BYTES = 1_000_000
"""Text of the data itself on which tiktoken must agree with `tokenizers` before it encodes the rest."""


def train_tokenizer(run: Preparation) -> Tokenizer:
    """Learns from a uniform sample of the training split over all sources; once for all attempts."""
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
        raise UserError("no source holds any training text: every document fell to validation or test")
    size = sum(len(text.encode()) for text in texts)
    with working(f"train a tokenizer on {sum(map(len, texts)):,} characters", size) as (advance, figures):
        tokenizer = tokenize.train(texts, config, advance)
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
        say(f"encoding with `tokenizers`, several times slower than tiktoken, because {tokenizer.fallback_reason}")
