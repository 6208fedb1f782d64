"""Batches: labels stop at the edges of documents, and every split of a step reads the same
samples.
"""

from itertools import chain, islice

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.corpus.rows import TokenRow
from lit_pretrain.data.batches import (
    PAD_ROW,
    Collate,
    ListedRows,
    OrderedRows,
    StepSampler,
    held_out_batches,
)
from lit_pretrain.data.text.order import Order
from lit_pretrain.data.text.stretches import SourceBlocks
from lit_pretrain.step_size import StepSize

BOS, EOS = 1, 2


def stream(lengths: list[int], *, bos: int, eos: int) -> tuple[list[int], list[int]]:
    """Stored tokens and document numbers of documents with so many words each, by the
    convention of `prepare`.
    """
    tokens, doc = [], []
    for number, length in enumerate(lengths):
        words = [10 + (number * 7 + i) % 50 for i in range(length)]
        document = [bos, *words] + ([eos] if eos != bos else [])
        tokens += document
        doc += [number] * len(document)
    return tokens, doc


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[TokenRow], int]:
    eos = draw(st.sampled_from([BOS, EOS]))
    seq_len = draw(st.integers(1, 12))
    found = []
    for _ in range(draw(st.integers(1, 6))):
        tokens, doc = stream(
            draw(st.lists(st.integers(0, 6), min_size=14, max_size=20)), bos=BOS, eos=eos
        )
        begin = draw(st.integers(0, len(tokens) - seq_len - 1))
        part = np.array(doc[begin : begin + seq_len + 1], dtype=np.int32)
        found.append(
            TokenRow(np.array(tokens[begin : begin + seq_len + 1], dtype=np.int64), part - part[0])
        )
    return found, eos


@given(rows(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_target_is_the_next_token_of_the_same_document_or_its_end(
    drawn: tuple[list[TokenRow], int], cross_documents: bool
) -> None:
    found, eos = drawn
    collate = Collate(micro_batch_size=len(found), eos_id=eos, cross_documents=cross_documents)
    (batch,) = collate([(n, 0, row) for n, row in enumerate(found)])
    for b, row in enumerate(found):
        for t in range(len(row.tokens) - 1):
            same, target = row.doc[t] == row.doc[t + 1], int(row.tokens[t + 1])
            wanted = target if cross_documents or same or target == eos else IGNORE_INDEX
            assert batch.tokens_BT[b, t] == row.tokens[t]
            assert batch.labels_BT[b, t] == wanted
            assert batch.doc_BT[b, t] == (0 if cross_documents else row.doc[t])


def test_with_one_separator_every_position_is_supervised() -> None:
    """The separator that opens a document ends the one before: nothing is ignored."""
    tokens, doc = stream([3, 2, 4], bos=BOS, eos=BOS)
    (batch,) = Collate(micro_batch_size=1, eos_id=BOS, cross_documents=False)(
        [(0, 0, TokenRow(np.array(tokens), np.array(doc, dtype=np.int32)))]
    )
    assert (batch.labels_BT != IGNORE_INDEX).all()
    assert batch.labels_BT[0, 3] == BOS  # the last word of the first document predicts that it ends


def test_with_two_separators_the_begin_of_the_next_document_is_not_a_target() -> None:
    tokens, doc = stream([2, 2], bos=BOS, eos=EOS)
    (batch,) = Collate(micro_batch_size=1, eos_id=EOS, cross_documents=False)(
        [(0, 0, TokenRow(np.array(tokens), np.array(doc, dtype=np.int32)))]
    )
    #       inputs: bos w w eos bos w w; the first eos is a target, the second bos is not
    assert batch.labels_BT[0].tolist() == [
        tokens[1],
        tokens[2],
        EOS,
        IGNORE_INDEX,
        tokens[5],
        tokens[6],
        EOS,
    ]


def test_a_padded_row_supervises_nothing_and_keeps_its_shape() -> None:
    row = TokenRow(np.arange(5, dtype=np.int64), np.zeros(5, dtype=np.int32))
    (batch,) = Collate(micro_batch_size=2, eos_id=0, cross_documents=False)(
        [(3, 1, row), (PAD_ROW, 0, row)]
    )
    assert batch.tokens_BT.shape == (2, 4)
    assert (batch.labels_BT[0] != IGNORE_INDEX).all()
    assert (batch.labels_BT[1] == IGNORE_INDEX).all()
    assert batch.index_B.tolist() == [3, PAD_ROW]


def test_dtypes_are_those_of_the_contract() -> None:
    row = TokenRow(np.arange(5, dtype=np.int64), np.zeros(5, dtype=np.int32))
    (batch,) = Collate(micro_batch_size=1, eos_id=0, cross_documents=False)([(0, 0, row)])
    assert [part.dtype for part in batch] == [
        torch.int64,
        torch.int64,
        torch.int32,
        torch.int64,
        torch.int64,
    ]
    assert all(part.is_contiguous() for part in batch)


# ---------------------------------------------------------------------- steps


@given(
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    world=st.integers(1, 4),
    seq_len=st.integers(1, 9),
    first=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_the_ranks_of_a_step_read_its_samples_once(
    micro: int, accumulation: int, world: int, seq_len: int, first: int
) -> None:
    step_size = StepSize(micro * accumulation * world * seq_len, seq_len)
    division, rows = step_size.divide(world, micro), step_size.rows
    assert (division.micro_batch_size, division.micro_batches) == (micro, accumulation)
    ranks = [
        StepSampler(batch=BatchSizes.one(rows), rank=rank, world_size=world, first_step=first)
        for rank in range(world)
    ]
    for step, parts in enumerate(islice(zip(*ranks, strict=True), 3), start=first):
        assert all(len(part) == micro * accumulation for part in parts)
        assert list(chain.from_iterable(parts)) == list(range(step * rows, (step + 1) * rows))


@given(samples=st.integers(1, 60), size=st.integers(1, 7), replicas=st.integers(1, 5))
def test_ranks_share_what_is_held_out_in_batches_of_one_shape(
    samples: int, size: int, replicas: int
) -> None:
    ranks = [
        held_out_batches(samples, size=size, rank=rank, replicas=replicas)
        for rank in range(replicas)
    ]
    assert {len(batches) for batches in ranks} == {
        -(-samples // (size * replicas))
    }  # else some would wait for others for ever
    assert all(len(batch) == size for batches in ranks for batch in batches)
    read = [n for batches in ranks for batch in batches for n in batch]
    assert sorted(n for n in read if n != PAD_ROW) == list(range(samples))


SIX = BatchSizes.one(6)


def test_resuming_goes_on_with_the_next_step() -> None:
    whole = islice(StepSampler(batch=SIX, rank=1, world_size=2, first_step=0), 10)
    assert list(whole)[4:] == list(
        islice(StepSampler(batch=SIX, rank=1, world_size=2, first_step=4), 6)
    )


def test_steps_end_with_the_last_one_that_the_order_fills() -> None:
    """Whoever reads ahead must not ask for more."""
    for samples, steps in ((17, 2), (18, 3), (23, 3)):
        assert (
            len(list(StepSampler(batch=SIX, rank=1, world_size=2, first_step=0, samples=samples)))
            == steps
        )
    assert list(StepSampler(batch=SIX, rank=0, world_size=2, first_step=2, samples=18)) == [
        [12, 13, 14]
    ]
    assert not list(StepSampler(batch=SIX, rank=0, world_size=2, first_step=3, samples=18))


# ---------------------------------------------------------------------- datasets


class Numbered(list[int]):
    """A source whose row b is (its name, b)."""

    def __getitem__(self, block: int) -> tuple[int, int]:
        return (self.copy()[0], block)


def test_ordered_rows_follow_the_order() -> None:
    order = Order([SourceBlocks("a", (4, 3)), SourceBlocks("b", (5,))], seed=3, cycle=12)
    dataset = OrderedRows(order, [Numbered([100]), Numbered([200])])
    for n in range(60):
        sample = order(n)
        assert dataset[n] == (n, sample.source, ([100, 200][sample.source], sample.block))


def test_listed_rows_pad_with_a_row_of_their_own() -> None:
    dataset = ListedRows([(1, 7), (0, 2)], [Numbered([100]), Numbered([200])])
    assert dataset[1] == (1, 0, (100, 2))
    assert dataset[PAD_ROW] == (PAD_ROW, 1, (200, 7))
