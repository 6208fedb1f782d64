"""Trace: the documents that are named for a step are those whose tokens it read."""

import json
from pathlib import Path

import numpy as np
import pytest

from lit_pretrain.corpus.manifest import Manifest, rows_in
from lit_pretrain.corpus.rows import open_rows
from lit_pretrain.data.text.mixture import order_of
from lit_pretrain.data.text.order import Tracer
from lit_pretrain.errors import UserError


@pytest.mark.parametrize(
    ("chunk_tokens", "seq_len", "rows"),
    [(0, 4, 0), (1, 4, 0), (4, 4, 0), (5, 4, 1), (8, 4, 1), (9, 4, 2), (7, 1, 6)],
)
def test_rows_of_a_chunk(chunk_tokens: int, seq_len: int, rows: int) -> None:
    assert rows_in(chunk_tokens, seq_len) == rows


@pytest.mark.parametrize("seq_len", [16, 300])
def test_a_traced_row_names_exactly_the_documents_it_reads(dataset: Path, seq_len: int) -> None:
    manifest = Manifest.load(dataset)
    # The second phase begins in the middle of the samples that are traced, and `code` leaves soon
    # after.
    phases = [{"from_tokens": 600 * seq_len, "weights": {"code": 3, "sums": 1}}]
    options = {
        "seed": 7,
        "cycle": 64,
        "shuffle_chunks": 2,
        "phases": phases,
        "max_epochs": {"code": 0.5},
    }
    order = order_of(manifest, {"seq_len": seq_len, "global_batch_tokens": 8 * seq_len, **options})
    tracer = Tracer(dataset, manifest, order, seq_len=seq_len)
    readers = [
        open_rows(
            dataset / "train" / name,
            seq_len=seq_len,
            vocab_size=512,
            chunks=source.splits["train"].chunks,
        )
        for name, source in manifest.sources.items()
    ]
    documents = {
        name: [
            json.loads(line)
            for line in (dataset / "train" / name / "documents.jsonl").read_text().splitlines()
        ]
        for name in manifest.sources
    }
    for traced in tracer.rows(range(500, 700)):
        sample = order(traced.sample)
        row = readers[sample.source][sample.block]
        assert (traced.source, traced.epoch, traced.block) == (
            manifest.sources and list(manifest.sources)[sample.source],
            sample.epoch,
            sample.block,
        )
        assert len(traced.documents) == row.doc[-1] + 1
        # The edges inside the row are where the named documents begin in their chunk.
        listed = [d for d in documents[traced.source] if d["chunk"] == traced.chunk]
        begins = dict(
            zip(
                (d["row_in_chunk"] for d in listed),
                np.cumsum([0] + [d["tokens"] for d in listed[:-1]]),
                strict=True,
            )
        )
        edges = np.flatnonzero(np.diff(row.doc)) + 1
        assert [begins[d.row] - traced.first_token for d in traced.documents[1:]] == edges.tolist()
        assert begins[traced.documents[0].row] <= traced.first_token


def test_without_the_list_of_documents_it_says_so(dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(dataset)
    order = order_of(manifest, {"seq_len": 64, "global_batch_tokens": 64})
    with pytest.raises(UserError, match=r"documents\.jsonl is missing"):
        list(Tracer(tmp_path, manifest, order, seq_len=64).rows(range(4)))
