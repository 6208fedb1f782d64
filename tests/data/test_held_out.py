"""Held out: a selection that nothing but the data decides."""

from pathlib import Path

import pytest

from lit_pretrain.data.held_out import chosen_rows, complete_rows, spread_rows
from lit_pretrain.data.manifest import Manifest
from lit_pretrain.errors import UserError


def test_fewer_rows_are_some_of_the_same_and_never_the_first_ones_only() -> None:
    some, more = (chosen_rows(1000, split="validation", source="a", limit=limit) for limit in (20, 200))
    assert set(some) < set(more)
    assert some == sorted(some)
    assert max(some) > 500 > min(some)
    assert chosen_rows(7, split="test", source="a", limit=None) == list(range(7))
    assert chosen_rows(1000, split="validation", source="b", limit=20) != some


def test_tokens_are_spread_evenly_over_the_sources(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    rows = complete_rows(manifest, "validation", seq_len=64, where="here")
    for tokens in (64, 64 * 20, 64 * 1000, None):
        read = spread_rows(manifest, "validation", seq_len=64, tokens=tokens, where="here")
        share = max(rows) if tokens is None else max(1, tokens // 64 // 3)
        assert [sum(s == source for s, _ in read) for source in range(3)] == [min(n, share) for n in rows]
        assert len(set(read)) == len(read)
        assert all(0 <= row < rows[s] for s, row in read)


def test_a_split_without_a_row_is_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"validation split of here holds no complete row of 8000 tokens"):
        spread_rows(Manifest.load(dataset), "validation", seq_len=8000, tokens=None, where="here")
