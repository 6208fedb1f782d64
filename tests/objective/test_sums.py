"""Sums: bits per byte against closed forms, ragged batches, merging over ranks, and its import."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.errors import UserError
from lit_pretrain.objective import BitsPerByte

TOKEN_BYTES = torch.tensor([0, 1, 2, 5])


def rows(seed: int, count: int, length: int, sources: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count, length), generator=generator)
    labels[torch.rand(count, length, generator=generator) < 0.3] = IGNORE_INDEX
    nll = torch.rand(count, length, generator=generator) * (labels != IGNORE_INDEX)
    return nll, labels, torch.randint(0, sources, (count,), generator=generator)


def test_uniform_bytes_cost_eight_bits() -> None:
    """A model that knows nothing about bytes, one byte per token, pays ln 256 nats a token and
    8 bits a byte.
    """
    metric = BitsPerByte()
    metric.update(
        torch.full((2, 5), math.log(256.0)),
        torch.ones(2, 5).long(),
        torch.zeros(2).long(),
        torch.ones(256).long(),
    )
    found = metric.compute()
    assert found["loss"].item() == pytest.approx(math.log(256.0), rel=1e-7)
    assert found["bits_per_byte"].item() == pytest.approx(8.0, rel=1e-7)


def test_closed_form_per_source() -> None:
    metric = BitsPerByte(num_sources=3)
    labels = torch.tensor([[3, 2, IGNORE_INDEX], [0, 1, 1]])
    nll = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    metric.update(nll, labels, torch.tensor([2, 0]), TOKEN_BYTES)
    found = metric.compute()
    torch.testing.assert_close(
        found["loss_S"], torch.tensor([1 / 3, math.nan, 1.5]).double(), equal_nan=True
    )
    expected = torch.tensor([1.0 / 2, math.nan, 3.0 / 7]).double() / math.log(2.0)
    torch.testing.assert_close(found["bits_per_byte_S"], expected, equal_nan=True)
    assert found["loss"].item() == pytest.approx(4.0 / 5)
    assert found["bits_per_byte"].item() == pytest.approx(4.0 / 9 / math.log(2.0))


def test_ignored_positions_count_for_nothing_whatever_they_hold() -> None:
    clean, dirty = BitsPerByte(), BitsPerByte()
    nll, labels, source = rows(0, 4, 6, 1)
    clean.update(nll, labels, source, TOKEN_BYTES)
    dirty.update(torch.where(labels == IGNORE_INDEX, math.nan, nll), labels, source, TOKEN_BYTES)
    assert clean.compute()["bits_per_byte"] == dirty.compute()["bits_per_byte"]


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=6),
    split=st.integers(0, 6),
)
def test_any_split_into_batches_and_ranks_gives_the_same(
    shapes: list[tuple[int, int]], split: int
) -> None:
    batches = [rows(seed, count, length, 3) for seed, (count, length) in enumerate(shapes)]
    whole = BitsPerByte(num_sources=3)
    nats, tokens, text_bytes = 0.0, 0, 0
    for nll, labels, source in batches:
        whole.update(nll, labels, source, TOKEN_BYTES)
        valid = labels != IGNORE_INDEX
        nats += nll[valid].double().sum().item()
        tokens += int(valid.sum())
        text_bytes += int(TOKEN_BYTES[labels[valid]].sum())
    ranks = [BitsPerByte(num_sources=3), BitsPerByte(num_sources=3)]
    for index, (nll, labels, source) in enumerate(batches):
        ranks[index >= split].update(nll, labels, source, TOKEN_BYTES)
    merged = BitsPerByte(num_sources=3)
    for name in ("nats_S", "tokens_S", "bytes_S"):  # what the reduction "sum" does over ranks
        setattr(merged, name, getattr(ranks[0], name) + getattr(ranks[1], name))
        assert merged._reductions[name] is not None
    merged._update_count = 1
    for key, expected in whole.compute().items():
        torch.testing.assert_close(merged.compute()[key], expected, equal_nan=True)
    if tokens:
        assert whole.compute()["loss"].item() == pytest.approx(nats / tokens, rel=1e-12)
    if text_bytes:
        assert whole.compute()["bits_per_byte"].item() == pytest.approx(
            nats / text_bytes / math.log(2.0), rel=1e-12
        )


def test_sums_do_not_stall_or_lose_precision() -> None:
    metric = BitsPerByte()
    metric.nats_S += 2.0**30  # as after a billion nats: an fp32 sum would drop the next token
    metric.tokens_S += 2.0**30
    metric.update(torch.tensor([[1e-3]]), torch.tensor([[1]]), torch.tensor([0]), TOKEN_BYTES)
    assert metric.nats_S.item() == 2.0**30 + float(torch.tensor(1e-3))


def test_half_precision_does_not_touch_the_sums() -> None:
    metric = BitsPerByte().bfloat16().half()
    assert metric.nats_S.dtype == torch.float64


def test_reset_starts_over() -> None:
    metric = BitsPerByte(num_sources=2)
    metric.update(*rows(0, 3, 4, 2), TOKEN_BYTES)
    metric.reset()
    assert metric.nats_S.tolist() == [0.0, 0.0]


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="num_sources"):
        BitsPerByte(num_sources=0)
