"""TextData: the same samples for every split of the work, and the same held-out rows for every
number of ranks.
"""

import os
import signal
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.data.batches import PAD_ROW
from lit_pretrain.data.text.mixture import Phase
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError


def text_data(
    dataset: Path, *, rank: int = 0, ranks: int = 1, step: int = 0, **options: Any
) -> TextData:
    data = TextData(
        path=str(dataset),
        **{"seq_len": 64, "global_batch_tokens": 64 * 16, "micro_batch_size": 4, **options},
    )
    strategy = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": ranks},
        root_device=torch.device("cpu"),
    )
    data.trainer = SimpleNamespace(strategy=strategy, global_step=step)
    return data


def steps(loader: DataLoader[list[Batch]], count: int) -> list[list[Batch]]:
    return list(islice(loader, count))


def same(a: list[list[Batch]], b: list[list[Batch]]) -> bool:
    flat_a, flat_b = (
        [part for step in steps for micro in step for part in micro] for steps in (a, b)
    )
    return len(flat_a) == len(flat_b) and all(
        torch.equal(x, y) for x, y in zip(flat_a, flat_b, strict=True)
    )


def rows_of(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def test_a_step_is_the_same_for_every_split_of_the_work(dataset: Path) -> None:
    whole = [
        rows_of(step)
        for step in steps(text_data(dataset, micro_batch_size=16).train_dataloader(), 4)
    ]
    for asked, ranks in ((1, 1), (2, 2), (8, 2), (4, 4), (16, 4), (5, 1)):
        micro = {16: 4, 5: 4}.get(asked, asked)  # lowered to what divides
        options = {"micro_batch_size": asked, "ranks": ranks}
        loaders = [text_data(dataset, rank=r, **options).train_dataloader() for r in range(ranks)]
        for n, parts in enumerate(islice(zip(*loaders, strict=True), 4)):
            assert all(
                len(micro_batch.tokens_BT) == micro for part in parts for micro_batch in part
            )
            together = rows_of([micro_batch for part in parts for micro_batch in part])
            assert all(torch.equal(x, y) for x, y in zip(together, whole[n], strict=True))


def test_the_rows_of_a_step_are_those_of_the_order(dataset: Path) -> None:
    phases = [Phase(from_tokens=3 * 64 * 16, temperature=2.0)]  # the fourth of five steps
    data = text_data(
        dataset,
        weights={"story": 1, "code": 3},
        phases=phases,
        max_epochs={"code": 0.06},
        seed=5,
        cycle=40,
    )
    order = data.order()
    sources = data.readers("train")
    assert [stretch.begin for stretch in order.stretches[1:]] == [
        pytest.approx(20, abs=8),
        48,
    ]  # code leaves in the second
    for n, step in enumerate(steps(data.train_dataloader(), 5)):
        batch = rows_of(step)
        assert batch.index_B.tolist() == list(range(16 * n, 16 * n + 16))
        for i, index in enumerate(batch.index_B.tolist()):
            sample = order(index)
            assert batch.source_B[i] == sample.source
            assert (
                batch.tokens_BT[i].tolist()
                == sources[sample.source][sample.block].tokens[:-1].tolist()
            )


def test_a_resumed_loader_continues_where_the_other_stopped(dataset: Path) -> None:
    whole = steps(text_data(dataset).train_dataloader(), 7)
    assert same(whole[3:], steps(text_data(dataset, step=3).train_dataloader(), 4))


def test_a_loader_ends_with_its_order(dataset: Path) -> None:
    data = text_data(dataset, max_epochs=0.1)
    end = data.order().end
    assert end is not None
    batches = steps(data.train_dataloader(), 10**6)
    assert len(batches) == end // 16
    assert rows_of(batches[-1]).index_B.tolist() == list(range(end // 16 * 16 - 16, end // 16 * 16))


def test_workers_change_nothing_and_outlive_signals(dataset: Path) -> None:
    """A scheduler signals every process of a job: workers must stay until the step is saved."""
    plain, pooled = text_data(dataset), text_data(dataset, num_workers=2)
    expected = steps(plain.train_dataloader(), 8)
    iterator = iter(pooled.train_dataloader())
    got = [next(iterator) for _ in range(2)]
    for worker in iterator._workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGUSR1)
    got += [next(iterator) for _ in range(6)]
    assert same(expected, got)
    assert all(worker.is_alive() for worker in iterator._workers)


def test_validation_rows_are_the_same_for_every_number_of_ranks(dataset: Path) -> None:
    def supervised(ranks: int, micro: int) -> dict[int, Batch]:
        seen: dict[int, Batch] = {}
        lengths = set()
        for rank in range(ranks):
            data = text_data(
                dataset, rank=rank, ranks=ranks, micro_batch_size=micro, val_tokens=64 * 20
            )
            batches = [batch for step in data.val_dataloader() for batch in step]
            lengths.add(len(batches))
            for batch in batches:
                assert len(batch.tokens_BT) == micro  # every forward pass has one shape
                for i, index in enumerate(batch.index_B.tolist()):
                    if index == PAD_ROW:
                        assert (batch.labels_BT[i] == IGNORE_INDEX).all()
                    else:
                        assert index not in seen
                        seen[index] = Batch(*(part[i] for part in batch))
        assert (
            len(lengths) == 1
        )  # ranks that run unequally many batches would wait for each other for ever
        return seen

    reference = supervised(1, 1)
    assert len(reference) == 18  # 20 rows over 3 sources, 6 each
    for ranks, micro in ((1, 4), (2, 4), (2, 1), (3, 8)):
        other = supervised(ranks, micro)
        assert other.keys() == reference.keys()
        assert all(
            torch.equal(x, y)
            for n in reference
            for x, y in zip(reference[n], other[n], strict=True)
        )


def test_validation_without_a_limit_reads_every_held_out_row(dataset: Path) -> None:
    data = text_data(dataset, val_tokens=None)
    rows = sum(
        (chunk.tokens - 1) // 64
        for source in data.manifest.sources.values()
        for chunk in source.splits["validation"].chunks
    )
    assert (
        sum(
            int((batch.index_B != PAD_ROW).sum())
            for step in data.val_dataloader()
            for batch in step
        )
        == rows
    )
    tests = sum(
        (chunk.tokens - 1) // 64
        for source in data.manifest.sources.values()
        for chunk in source.splits["test"].chunks
    )
    assert (
        sum(
            int((batch.index_B != PAD_ROW).sum())
            for step in data.test_dataloader()
            for batch in step
        )
        == tests
    )


def test_the_contract_says_what_the_data_is(dataset: Path) -> None:
    contract = text_data(dataset).contract
    assert contract.sources == ("story", "sums", "code")
    assert contract.vocab_size == 512
    assert len(contract.token_bytes) == 512
    assert (contract.seq_len, contract.batch_tokens) == (64, BatchSizes.one(1024))


# ---------------------------------------------------------------------- what cannot be


def test_rows_longer_than_all_chunks_are_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match="holds no complete row"):
        text_data(dataset, seq_len=100_000).setup("fit")


@pytest.mark.parametrize("options", [{"seq_len": 0}, {"micro_batch_size": 0}, {"num_workers": -1}])
def test_impossible_numbers_are_refused(dataset: Path, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        text_data(dataset, **options)
