"""Held out: a selection that nothing but the data decides."""

import dataclasses
from pathlib import Path

import pytest

from lit_pretrain.corpus.manifest import Manifest, SourceSplit
from lit_pretrain.data.held_out import chosen_rows, rows_held_out, spread_rows
from lit_pretrain.errors import UserError


def test_fewer_rows_are_some_of_the_same_and_never_the_first_ones_only() -> None:
    some, more = (
        chosen_rows(1000, split="validation", source="a", limit=limit) for limit in (20, 200)
    )
    assert set(some) < set(more)
    assert some == sorted(some)
    assert max(some) > 500 > min(some)
    assert chosen_rows(7, split="test", source="a", limit=None) == list(range(7))
    assert chosen_rows(1000, split="validation", source="b", limit=20) != some


def test_tokens_are_spread_evenly_over_the_sources(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    rows = rows_held_out(manifest, "validation", seq_len=64, location="here")
    for tokens in (64, 64 * 20, 64 * 1000, None):
        read = spread_rows(manifest, "validation", seq_len=64, tokens=tokens, location="here")
        share = max(rows) if tokens is None else max(1, tokens // 64 // 3)
        assert [sum(s == source for s, _ in read) for source in range(3)] == [
            min(n, share) for n in rows
        ]
        assert len(set(read)) == len(read)
        assert all(0 <= row < rows[s] for s, row in read)


def test_text_that_fills_no_row_gives_what_there_is(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    assert rows_held_out(manifest, "validation", seq_len=100_000, location="here") == [1, 1, 1]
    assert spread_rows(manifest, "validation", seq_len=100_000, tokens=64, location="here") == [
        (0, 0),
        (1, 0),
        (2, 0),
    ]


def test_a_split_without_text_is_refused(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    empty = SourceSplit(0, 0, 0, ())
    sources = {
        name: dataclasses.replace(source, splits={**source.splits, "validation": empty})
        for name, source in manifest.sources.items()
    }
    with pytest.raises(
        UserError, match=r"validation split of here holds no text; .*splits\.validation"
    ):
        rows_held_out(
            dataclasses.replace(manifest, sources=sources),
            "validation",
            seq_len=64,
            location="here",
        )
