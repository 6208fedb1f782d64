"""Batches: which samples each step and rank reads, and how rows of text become micro-batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.corpus.chunk_cache import allow_plain_http
from lit_pretrain.data.text.order import Order
from lit_pretrain.step_size import largest_divisor

if TYPE_CHECKING:
    # It imports litdata, for which `fit --help` need not wait.
    from lit_pretrain.corpus.rows import TokenRow

PAD_ROW = -1
"""Sample number of a row that fills up the last validation batch and supervises nothing."""


def held_out_batches(samples: int, *, size: int, rank: int, replicas: int) -> list[list[int]]:
    """List the numbers of the held-out samples of one rank, batch by batch.

    `PAD_ROW` fills up, so that every rank has as many batches of the same size: collectives inside
    a sharded forward pass must match.

    Args:
        samples: Number of held-out samples.
        size: Samples in a batch.
        rank: Rank of this replica.
        replicas: Number of replicas that share the samples.
    """
    numbers = list(range(samples)) + [PAD_ROW] * (-samples % (size * replicas))
    return [numbers[i : i + size] for i in range(rank * size, len(numbers), size * replicas)]


class StepSampler(Sampler[list[int]]):
    """Yields the sample numbers of one rank, one list per optimizer step, from `first_step` on.

    It ends only if the order does. Rank r of W reads the r-th of W equal parts of every step's
    samples, so a step holds the same samples for every world size, micro-batch size and worker
    count.

    Args:
        batch: Samples of every step over all ranks.
        rank: Which part is read.
        world_size: Number of parts.
        first_step: The step to begin with.
        samples: Samples of the whole order; None without end. Prefetching must not ask for more.
        updates: Consecutive steps that read the same samples; then `batch` counts such groups.
    """

    def __init__(
        self,
        *,
        batch: BatchSizes,
        rank: int,
        world_size: int,
        first_step: int,
        samples: int | None = None,
        updates: int = 1,
    ) -> None:
        self.batch = batch
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.samples = samples
        self.updates = updates

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            group = step // self.updates
            first, rows = self.batch.first(group), self.batch.size(group)
            if self.samples is not None and first + rows > self.samples:
                return
            share = rows // self.world_size
            begin = first + self.rank * share
            yield list(range(begin, begin + share))
            step += 1


class OrderedRows(Dataset[tuple[int, int, "TokenRow"]]):
    """Training rows by global sample number, as (sample number, source, row)."""

    def __init__(self, order: Order, sources: Sequence[Sequence[TokenRow]]) -> None:
        self.order = order
        self.sources = sources

    def __getitem__(self, n: int) -> tuple[int, int, TokenRow]:
        sample = self.order(n)
        return n, sample.source, self.sources[sample.source][sample.block]


class ListedRows(Dataset[tuple[int, int, "TokenRow"]]):
    """A fixed list of (source, block) rows, for validation; `PAD_ROW` gives a row to fill up."""

    def __init__(
        self, listed: Sequence[tuple[int, int]], sources: Sequence[Sequence[TokenRow]]
    ) -> None:
        self.listed = listed
        self.sources = sources

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, i: int) -> tuple[int, int, TokenRow]:
        source, block = self.listed[max(i, 0)]
        return i, source, self.sources[source][block]


class Collate:
    """Collates rows into equal micro-batches of at most `micro_batch_size` rows.

    Args:
        micro_batch_size: Most rows per micro-batch; a batch that it does not divide has fewer.
        eos_id: The only id that may be a target across the edge of a document, because it ends the
            document it follows.
        cross_documents: Treat a row as one document; attention and targets ignore edges.
    """

    def __init__(self, *, micro_batch_size: int, eos_id: int, cross_documents: bool) -> None:
        self.micro_batch_size = micro_batch_size
        self.eos_id = eos_id
        self.cross_documents = cross_documents

    def __call__(self, items: Sequence[tuple[int, int, TokenRow]]) -> list[Batch]:
        """Stack (sample number, source, row) items in order."""
        tokens = np.stack([row.tokens for _, _, row in items])
        doc = np.stack([row.doc for _, _, row in items])
        labels = tokens[:, 1:].copy()
        if self.cross_documents:
            doc = np.zeros_like(doc)
        labels[(doc[:, 1:] != doc[:, :-1]) & (labels != self.eos_id)] = IGNORE_INDEX
        index = np.array([n for n, _, _ in items])
        labels[index == PAD_ROW] = IGNORE_INDEX
        # IGNORE_INDEX fills up a short row. As an input any id will do: no token attends to it.
        tokens[tokens == IGNORE_INDEX] = self.eos_id
        source = np.array([s for _, s, _ in items])
        whole = [
            torch.from_numpy(np.ascontiguousarray(x))
            for x in (tokens[:, :-1], labels, doc[:, :-1], source, index)
        ]
        size = largest_divisor(len(items), self.micro_batch_size)
        return [Batch(*parts) for parts in zip(*(torch.split(x, size) for x in whole), strict=True)]


# ---------------------------------------------------------------------- loaders


def replica_of(trainer: Any) -> tuple[int, int]:
    """Return rank and number of the data-parallel replicas for the one that this process feeds.

    Args:
        trainer: Lightning's Trainer; None means a single process.
    """
    strategy = trainer.strategy if trainer is not None else None
    kwargs = getattr(strategy, "distributed_sampler_kwargs", None) or {}
    return int(kwargs.get("rank", 0)), int(kwargs.get("num_replicas", 1))


class _Worker(SpawnProcess):
    """A worker process that ignores Ctrl-C, which would kill it noisily while it still imports."""

    def start(self) -> None:
        """Start with SIGINT ignored; `start_worker` ignores the signals that come later."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            super().start()
        finally:
            signal.signal(signal.SIGINT, before)


class _Workers(SpawnContext):
    Process = _Worker


def make_loader(
    dataset: Dataset[Any],
    batches: Any,
    collate: Callable[[Any], Any],
    *,
    trainer: Any,
    workers: int = 0,
    start_worker: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """Make a loader without state of its own: `batches` decides what it reads.

    Args:
        dataset: Samples by number.
        batches: Lists of sample numbers.
        collate: Turns samples into a batch.
        trainer: Its device is fed; None means the CPU.
        workers: Number of processes; 0 reads in this one.
        start_worker: Prepares a worker process.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=start_worker,
        collate_fn=collate,
        persistent_workers=workers > 0,
        # Not fork: a forked process with OpenMP threads can hang. Not forkserver: a signal to the
        # whole job ends the server and with it the workers.
        multiprocessing_context=_Workers() if workers > 0 else None,
        pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
    )


def start_worker(storage_options: Mapping[str, Any] | None, worker: int) -> None:
    """Prepare a worker process; with the options bound it is a `worker_init_fn`.

    A worker imports the module of this function, so it must not stand beside a data module, which
    would cost every worker the import of Lightning.
    """
    # Schedulers signal every process of a job. The main process must finish the step and save
    # before it ends its workers.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    allow_plain_http(storage_options)  # a setting of the process, which a worker does not inherit
