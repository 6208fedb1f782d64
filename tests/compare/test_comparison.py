"""Comparison: what is measured in packed rows, and parts that add up to what they are parts of."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_pretrain.compare.comparison import Candidate, as_record, compare
from lit_pretrain.compare.held_out_documents import (
    DocumentLosses,
    HeldOutDocument,
    document_losses,
    encode_document,
    held_out_documents,
)
from lit_pretrain.interface import OpenDataset
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def made_documents(count: int = 90) -> list[HeldOutDocument]:
    generator = np.random.default_rng(0)
    words = ["the", " fox", " sees", " 12", "3", ".", "\n", " lake"]
    return [
        HeldOutDocument(
            "abc"[i % 3] if i % 20 else "rare",
            "".join(generator.choice(words, generator.integers(20, 200))),
            whole=bool(i % 7),
        )
        for i in range(count)
    ]


def made_losses(
    documents: list[HeldOutDocument], *, every: int, level: float, seed: int
) -> DocumentLosses:
    """Losses under a tokenizer whose tokens are `every` letters long."""
    generator = np.random.default_rng(seed)
    nats, ends = [], []
    for document in documents:
        size = len(document.text)
        cuts = np.unique([*range(every, size, every), size])
        ends.append(cuts.astype(np.int64))
        count = len(cuts) + document.whole
        nats.append((level + generator.exponential(0.2, count)).astype(np.float32))
    return DocumentLosses(nats, ends, f"tokenizer {every}")


@pytest.mark.parametrize("every", [2, 3])
def test_parts_add_up_and_units_follow_the_tokenizers(every: int) -> None:
    documents = made_documents()
    one = made_losses(documents, every=2, level=1.0, seed=0)
    other = made_losses(documents, every=every, level=0.9, seed=1)
    found = compare(
        documents,
        [Candidate("one", [0], [one]), Candidate("other", [0], [other])],
        resamples=200,
        seed=0,
    )
    base, against = found.configs
    assert found.unit == ("nats per token" if every == 2 else "bits per byte")
    assert base.nats == 0
    assert base.difference == (0.0, 0.0, 0.0)
    total = math.fsum(float(x) for each in other.nats for x in each) - math.fsum(
        float(x) for each in one.nats for x in each
    )
    assert against.nats == pytest.approx(total, abs=1e-4)
    for parts in against.views.values():
        assert sum(part.nats for part in parts) == against.nats
        assert sum(part.interval.value for part in parts) == pytest.approx(against.difference.value)
        assert sum(part.share for part in parts) == pytest.approx(1)
    weight = found.tokens if every == 2 else found.bytes * math.log(2)
    assert against.difference.value == pytest.approx(against.nats / weight)
    assert found.bytes == sum(len(d.text.encode()) for d in documents)
    # Of five documents no interval could be made; blocks of them are resampled.
    assert found.blocks == ["rare"]
    assert as_record(found)["unit"] == found.unit


def test_seeds_are_averaged_and_widen_the_interval() -> None:
    documents = made_documents()
    runs = {
        name: [made_losses(documents, every=2, level=level + d, seed=s) for s, d in enumerate(off)]
        for name, level, off in (("one", 1.0, (0.0, 0.3, -0.1)), ("two", 1.0, (0.2, 0.0, 0.1)))
    }
    several = compare(
        documents,
        [Candidate(name, [2, 0, 1], losses) for name, losses in runs.items()],
        resamples=200,
        seed=0,
    ).configs[1]
    alone = compare(
        documents,
        [Candidate(name, [0], losses[:1]) for name, losses in runs.items()],
        resamples=200,
        seed=0,
    ).configs[1]
    assert several.seeds == 3
    assert several.difference.value == pytest.approx(0.1 / 3, abs=0.01)
    assert several.difference.low is not None
    assert several.difference.high is not None
    assert alone.difference.low is not None
    assert alone.difference.high is not None
    # One run of each says nothing of seeds: its interval leaves out what three differ by.
    wide = several.difference.high - several.difference.low
    assert wide > 5 * (alone.difference.high - alone.difference.low)
    assert several.difference.low < 0 < several.difference.high
    # Seeds are matched by their values, in whatever order they come.
    order = [Candidate("one", [2, 0, 1], runs["one"])]
    turned = Candidate("two", [1, 2, 0], [runs["two"][i] for i in (2, 0, 1)])
    again = compare(documents, [*order, turned], resamples=200, seed=0).configs[1]
    assert again.difference == several.difference


@pytest.fixture(scope="module")
def net() -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=320, n_layer=1, width=16, n_head=2, max_seq_len=32)
    net = Transformer(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def test_a_document_in_a_row_is_read_as_if_alone(net: Transformer, tokenizer: Tokenizer) -> None:
    texts = ["The owl", "def f(x):\n    return x + 1\n" * 8, "", "Grüße 🦊", "12 + 34 = 46"]
    documents = [HeldOutDocument("s", text, whole=i != 3) for i, text in enumerate(texts)]
    found = document_losses(net, tokenizer, documents, seq_len=16, label="net")
    for document, nats, ends in zip(documents, found.nats, found.ends, strict=True):
        ids = encode_document(document, tokenizer)
        assert len(nats) == len(ids) - 1 == len(ends) + document.whole
        assert ends.tolist() == sorted(ends)
        assert not len(ends) or ends[-1] == len(document.text.encode())
        for begin in range(0, len(ids) - 1, 16):
            piece = torch.tensor([ids[begin : begin + 17]])
            with torch.no_grad():
                logits = net.logits(net(piece[:, :-1]))[0]
            expected = torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none")
            torch.testing.assert_close(
                torch.from_numpy(nats[begin : begin + 16]), expected, atol=1e-5, rtol=1e-5
            )


def test_documents_are_an_equal_share_of_every_source(dataset: Path) -> None:
    data = OpenDataset(str(dataset))
    every = held_out_documents(data, "validation", None)
    assert {d.source for d in every} == {"story", "sums", "code"}
    assert all(d.whole for d in every)
    tokens = {
        name: sum(len(encode_document(d, data.tokenizer)) - 1 for d in every if d.source == name)
        for name in data.sources
    }
    stored = {
        name: sum(c.tokens for c in data.manifest.sources[name].splits["validation"].chunks)
        for name in data.sources
    }
    assert tokens == stored
    few = held_out_documents(data, "validation", 900)
    for name in data.sources:
        some = [d for d in few if d.source == name]
        assert sum(len(encode_document(d, data.tokenizer)) - 1 for d in some) <= 300
        # More tokens add documents, they change none but the one that was cut.
        assert some[:-1] == [d for d in every if d.source == name][: len(some) - 1]
