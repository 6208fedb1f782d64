"""Loader: batches of samples by number, for the replica that this process feeds."""

import signal
from collections.abc import Callable
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Optional

from torch.utils.data import DataLoader, Dataset


def replica_of(trainer: Any) -> tuple[int, int]:
    """(rank, number) of the data-parallel replica that this process feeds.

    Args:
        trainer: Lightning's, or None: one process alone.
    """
    strategy = trainer.strategy if trainer is not None else None
    kwargs = getattr(strategy, "distributed_sampler_kwargs", None) or {}
    return int(kwargs.get("rank", 0)), int(kwargs.get("num_replicas", 1))


class _Worker(SpawnProcess):
    """A process that a Ctrl-C does not reach: one that is still importing would die of it, noisily."""

    def start(self) -> None:
        """Start with SIGINT ignored; `start_worker` does the same for signals that come later."""
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
    start_worker: Optional[Callable[[int], None]] = None,
) -> DataLoader[Any]:
    """A loader that needs no state of its own: `batches` says what it reads.

    Args:
        dataset: Samples by number.
        batches: Lists of such numbers.
        collate: What makes a batch of samples.
        trainer: Whose device is fed; None: the CPU.
        workers: Processes; 0 reads in this one.
        start_worker: How each of them begins.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=start_worker,
        collate_fn=collate,
        persistent_workers=workers > 0,
        # Not fork: a fork of a process with OpenMP threads can hang. Not forkserver: a signal to the whole job ends the server, and
        # with it the workers.
        multiprocessing_context=_Workers() if workers > 0 else None,
        pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
    )
