"""Batches: which rows every optimizer step and every rank reads, and how rows become micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.data.order import Order

if TYPE_CHECKING:
    from lit_pretrain.data.rows import Row  # imports litdata, which `fit --help` need not wait for

PAD_ROW = -1
"""Sample number of a row that fills up the last validation batch and supervises nothing."""


def held_out_batches(samples: int, *, size: int, rank: int, replicas: int) -> list[list[int]]:
    """Sample numbers of one rank, batch by batch, of `samples` that are held out; `PAD_ROW` fills up.

    Every rank has as many batches of the same size: collectives inside a sharded forward must match.

    Args:
        samples: How many there are.
        size: Of a batch.
        rank: Of this replica.
        replicas: How many share the samples.
    """
    numbers = list(range(samples)) + [PAD_ROW] * (-samples % (size * replicas))
    return [numbers[i : i + size] for i in range(rank * size, len(numbers), size * replicas)]


class StepSampler(Sampler[list[int]]):
    """Sample numbers of one rank, one list per optimizer step, from `first_step` on, without end unless the order has one.

    Rank r of W reads the r-th of W equal parts of every step's samples: a step holds the same samples for every world
    size, micro-batch size and worker count.
    """

    def __init__(self, *, rows: int, rank: int, world_size: int, first_step: int, samples: int | None = None, updates: int = 1) -> None:
        self.rows = rows
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.samples = samples
        """Samples of the whole order; None without end. Prefetching must not ask for more."""
        self.updates = updates
        """Steps that read the same samples."""

    def __iter__(self) -> Iterator[list[int]]:
        share = self.rows // self.world_size
        step = self.first_step
        while self.samples is None or (step // self.updates + 1) * self.rows <= self.samples:
            begin = step // self.updates * self.rows + self.rank * share
            yield list(range(begin, begin + share))
            step += 1


class OrderedRows(Dataset[tuple[int, int, "Row"]]):
    """Training rows by global sample number: (sample number, source, row)."""

    def __init__(self, order: Order, sources: Sequence[Sequence[Row]]) -> None:
        self.order = order
        self.sources = sources

    def __getitem__(self, n: int) -> tuple[int, int, Row]:
        sample = self.order(n)
        return n, sample.source, self.sources[sample.source][sample.block]


class ListedRows(Dataset[tuple[int, int, "Row"]]):
    """A fixed list of (source, block) rows, for validation; `PAD_ROW` gives a row that supervises nothing."""

    def __init__(self, listed: Sequence[tuple[int, int]], sources: Sequence[Sequence[Row]]) -> None:
        self.listed = listed
        self.sources = sources

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, i: int) -> tuple[int, int, Row]:
        source, block = self.listed[max(i, 0)]
        return i, source, self.sources[source][block]


class Collate:
    """Rows -> micro-batches of `micro_batch_size` rows.

    Args:
        micro_batch_size: Rows per micro-batch.
        eos_id: The one id that may be a target across the edge of a document: it ends the document it follows.
        cross_documents: Treat a row as one document (attention and targets ignore the edges).
    """

    def __init__(self, *, micro_batch_size: int, eos_id: int, cross_documents: bool) -> None:
        self.micro_batch_size = micro_batch_size
        self.eos_id = eos_id
        self.cross_documents = cross_documents

    def __call__(self, items: Sequence[tuple[int, int, Row]]) -> list[Batch]:
        """Pack (sample number, source, row) items, as many as a multiple of the micro-batch, in their order."""
        tokens = np.stack([row.tokens for _, _, row in items])
        doc = np.stack([row.doc for _, _, row in items])
        labels = tokens[:, 1:].copy()
        if self.cross_documents:
            doc = np.zeros_like(doc)
        labels[(doc[:, 1:] != doc[:, :-1]) & (labels != self.eos_id)] = IGNORE_INDEX
        index = np.array([n for n, _, _ in items])
        labels[index == PAD_ROW] = IGNORE_INDEX
        tokens[tokens == IGNORE_INDEX] = self.eos_id  # fills up a short row: an input that nothing before it sees
        source = np.array([s for _, s, _ in items])
        whole = [torch.from_numpy(np.ascontiguousarray(x)) for x in (tokens[:, :-1], labels, doc[:, :-1], source, index)]
        return [Batch(*parts) for parts in zip(*(torch.split(x, self.micro_batch_size) for x in whole), strict=True)]
