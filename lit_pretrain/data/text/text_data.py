"""TextData: prepared text as micro-batches of packed rows, in an order that depends on the step."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from lit_pretrain.batch import Batch
from lit_pretrain.batch_sizes import (
    BATCH_SETTINGS,
    BatchSizes,
    ScheduledBatch,
    scheduled_batches,
)
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.corpus.prepared import PreparedText
from lit_pretrain.data.batches import (
    Collate,
    ListedRows,
    OrderedRows,
    StepSampler,
    held_out_batches,
    make_loader,
    replica_of,
    start_worker,
)
from lit_pretrain.data.data_module import BaseData, RowPart
from lit_pretrain.data.text.mixture import (
    Mixture,
    Phase,
    check_amount,
    check_length,
    check_past,
    exposure,
    make_order,
    order_of,
    unique_tokens,
)
from lit_pretrain.data.text.order import (
    Order,
    named_rows,
    row_documents,
    rows_held_out,
    spread_rows,
)
from lit_pretrain.data_lineage import DataRecord, SourceRecord
from lit_pretrain.errors import UserError
from lit_pretrain.step_size import StepSize, sizes_in_tokens
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class TextData(BaseData):
    """Streams a prepared dataset.

    Args:
        path: A directory written by `lit_pretrain prepare`, or an s3:// URL of one.
        seq_len: Inputs per row, T.
        global_batch_tokens: Inputs per optimizer step over all devices, 4096 unless it or
            `batch_schedule` is given; micro-batches are accumulated to reach it.
        batch_schedule: Sizes of the optimizer step that follow one another, in place of
            `global_batch_tokens`: [{from_tokens: 0, tokens: 2048}, {from_tokens: 1000000, tokens:
            4096}]. The run reads the same rows in the same order as with one size.
        micro_batch_size: The most rows that one device processes at once; it limits memory and
            changes nothing else. It is lowered where it does not divide a device's rows of a step.
        weights: Share of the samples by source name; null gives shares in proportion to the amount
            of text.
        temperature: Shares in proportion to tokens^(1/temperature), in place of weights: 1 follows
            the amount of text, larger values even the sources out.
        max_epochs: How often a source may be read, one number for all or by source name. When a
            source reaches its cap, the others take its place in proportion to their weights. null
            sets no limit.
        phases: Changes of the mixture, each with from_tokens and weights or temperature; the first
            may begin at 0 in place of weights.
        seed: Seed of the data order.
        cycle: Samples per cycle of the mixture; every cycle holds exactly its share of every
            source.
        shuffle_chunks: Chunks whose rows are shuffled together; 1 reads remote chunks one after the
            other.
        cross_documents: Let attention and targets cross the edges of documents.
        val_tokens: Held-out inputs used by each validation, spread evenly over the sources; null
            uses all.
        num_workers: Loader processes; 0 is fastest for tokens, because copying between processes
            costs more than reading. With remote data, 1 hides the time of downloads.
        cache_dir: Directory that caches remote chunks.
        max_cache_size: Most bytes of chunks in that cache, such as 20GB; null sets no limit.
        storage_options: Options of the object store's client, such as {endpoint_url:
            http://127.0.0.1:5000}.
    """

    # Minutes on a laptop, enough to see text take shape.
    default_steps: ClassVar[int | None] = 300
    scaling_laws_apply: ClassVar[bool] = True

    def __init__(
        self,
        path: str = "data/embedded",
        seq_len: int = 512,
        global_batch_tokens: int | None = None,
        batch_schedule: list[ScheduledBatch] | None = None,
        micro_batch_size: int = 8,
        weights: dict[str, float] | None = None,
        temperature: float | None = None,
        max_epochs: float | dict[str, float] | None = None,
        phases: list[Phase] | None = None,
        seed: int = 0,
        cycle: int = 1024,
        shuffle_chunks: int = 1,
        cross_documents: bool = False,
        val_tokens: int | None = 262_144,
        num_workers: int = 0,
        cache_dir: str | None = None,
        max_cache_size: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("seq_len", seq_len), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1")
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} must not be negative")
        self.path = path
        self.seq_len = seq_len
        self.batch_schedule = scheduled_batches(batch_schedule)
        self._sizes = BatchSizes.of(
            {"global_batch_tokens": global_batch_tokens, "batch_schedule": self.batch_schedule}
        )
        self.global_batch_tokens = None if self.batch_schedule else self._sizes.sizes[0]
        self.micro_batch_size = micro_batch_size
        self.mixture = Mixture(
            weights=weights, temperature=temperature, max_epochs=max_epochs, phases=_phases(phases)
        )
        self.seed = seed
        self.cycle = cycle
        self.shuffle_chunks = shuffle_chunks
        self.cross_documents = cross_documents
        self.val_tokens = val_tokens
        self.num_workers = num_workers
        self.prepared = PreparedText(
            path,
            cache_dir=cache_dir,
            max_cache_size=max_cache_size,
            storage_options=storage_options,
        )

    # ------------------------------------------------------------------ identity

    @property
    def manifest(self) -> Manifest:
        """The dataset's manifest."""
        return self.prepared.manifest

    @property
    def tokenizer(self) -> Tokenizer:
        """The dataset's tokenizer."""
        return self.prepared.tokenizer

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of `Batch.source_B`."""
        return list(self.manifest.sources)

    @property
    def manifest_hash(self) -> str:
        """Identity of the data."""
        return self.manifest.hash

    @property
    def tokenizer_hash(self) -> str:
        """Identity of the tokenizer."""
        return self.manifest.tokenizer.hash

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.manifest.tokenizer.vocab_size

    @property
    def batch_tokens(self) -> BatchSizes:
        """Inputs of every optimizer step over all devices."""
        return dataclasses.replace(self._sizes, skips=self.skips)

    @property
    def _batch_rows(self) -> BatchSizes:
        """Rows of every optimizer step over all devices."""
        return self.batch_tokens.over(self.seq_len)

    @property
    def location(self) -> str:
        """Where the data lies."""
        return self.path

    @property
    def provides(self) -> frozenset[str]:
        """What the batches hold: rows to learn as they are."""
        return frozenset({"labels"})

    @property
    def tokenizer_advice(self) -> None:
        """None: prepared text is bound to the tokenizer that encoded it."""
        return None

    def record(self) -> DataRecord:
        """Return what the lineage of a run says of this data."""
        return prepared_record(self.path, self.manifest)

    def order(self) -> Order:
        """Build the data order of training."""
        return make_order(
            self.manifest,
            self.mixture,
            seq_len=self.seq_len,
            batch=self.batch_tokens,
            seed=self.seed,
            cycle=self.cycle,
            shuffle_chunks=self.shuffle_chunks,
        )

    # ------------------------------------------------------------------ size of a step and a run

    @property
    def step_sizes(self) -> tuple[StepSize, ...]:
        """The sizes that an optimizer step has over all devices."""
        scheduled = self.batch_schedule is not None
        return sizes_in_tokens(self._sizes, self.seq_len, scheduled=scheduled)

    @property
    def batch_settings(self) -> dict[str, int | None]:
        """Settings of the batch, with the default size where the config gives none."""
        return super().batch_settings | {"global_batch_tokens": self.global_batch_tokens}

    def batch_line(self, devices: int) -> str:
        """Describe the size of a step in words."""
        divisions = {
            size.total: division.text(self.unit, self.seq_len)
            for size, division in zip(self.step_sizes, self.divide(devices), strict=True)
        }
        sizes, said = self._sizes, []
        for begin, tokens in zip(sizes.begins, sizes.sizes, strict=True):
            where = f"from step {begin:,} ({sizes.until(begin):,} tokens) on " if begin else ""
            said.append(f"{where}{tokens:,} tokens a step = {divisions[tokens]}")
        return ", ".join(said)

    def epochs(self, steps: int) -> float:
        """Return how many epochs a run of `steps` optimizer steps reads, over all sources."""
        return self.batch_tokens.first(steps) / max(self.manifest.tokens("train"), 1)

    def steps_of(self, epochs: float) -> int:
        """Refuse, because each source has epochs of its own.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"max_epochs={epochs}: epochs of prepared text differ by source; set max_steps,"
            " max_tokens or max_flops"
        )

    def check_length(self, steps: int) -> None:
        """Refuse a run that continues after every source has reached its cap of epochs."""
        check_length(self.order(), steps=steps, batch=self._batch_rows, seq_len=self.seq_len)

    def why_other_batches(
        self, saved: Mapping[str, Any], now: Mapping[str, Any], *, step: int
    ) -> str | None:
        """Say that the steps before a checkpoint had other sizes; None if they had the same."""
        before, after, places = BatchSizes.of(saved), BatchSizes.of(now), self.skips.gone(step)
        if after == before:
            return None
        if after.begins_as(before, places):
            same = {**saved, **{name: now.get(name) for name in BATCH_SETTINGS}}
            rows = before.until(places) // self.seq_len
            old, new = (order_of(self.manifest, data) for data in (saved, same))
            if new.begins_as(old, rows):
                return None
            return (
                f"phases begin at multiples of {before.unit:,} tokens, the greatest common divisor"
                f" of the sizes, and would have begun at multiples of {after.unit:,}; take sizes"
                f" that are multiples of {before.unit:,}"
            )
        begins = zip(before.begins, before.sizes, strict=True)
        kept = [(before.until(begin), size) for begin, size in begins if begin < places]
        schedule = ", ".join(f"{{from_tokens: {t}, tokens: {size}}}" for t, size in kept)
        return (
            f"the {step:,} steps before the checkpoint have other sizes in this run. Only those"
            f" after it may change: data.batch_schedule: [{schedule}, {{from_tokens:"
            f" {before.until(places)}, tokens: ...}}]"
        )

    def check_fork(
        self, saved: Mapping[str, Any], now: Mapping[str, Any], *, step: int, checkpoint: str
    ) -> None:
        """Refuse a fork whose mixture would have read other samples before its first step."""
        check_past(self.manifest, saved, now, step=step, checkpoint=checkpoint, skips=self.skips)

    def exposure(self, steps: int) -> str:
        """Tabulate how much of each source a run reads."""
        samples = self._batch_rows.first(steps)
        return exposure(self.order(), self.manifest, samples=samples, seq_len=self.seq_len)

    def unique_tokens(self, steps: int) -> int:
        """Count the distinct training tokens that a run reads."""
        samples = self._batch_rows.first(steps)
        return unique_tokens(self.order(), samples=samples, seq_len=self.seq_len)

    def describe(self, samples: Sequence[int]) -> str:
        """Name source, epoch and row of a few samples and, of local data, the documents."""
        return named_rows(
            samples,
            path=self.path,
            manifest=self.manifest,
            order=self.order(),
            seq_len=self.seq_len,
        )

    def row_parts(self, batch: Any) -> list[list[RowPart]]:
        """Return the documents in each row of a training micro-batch."""
        found = row_documents(
            batch.index_B.tolist(),
            path=self.path,
            manifest=self.manifest,
            order=self.order(),
            seq_len=self.seq_len,
        )
        return [[RowPart(*part) for part in row] for row in found]

    def step_batches(self, step: int, rows: int) -> list[Batch]:
        """Return the first rows of an optimizer step, as micro-batches."""
        ordered, batch = OrderedRows(self.order(), self.readers("train")), self._batch_rows
        first, most = batch.first(step), batch.size(step)
        return self._collate()([ordered[n] for n in range(first, first + min(rows, most))])

    def save(self, folder: Path) -> None:
        """Write the tokenizer to a run's folder."""
        self.tokenizer.save(folder)

    # ------------------------------------------------------------------ loaders

    def setup(self, stage: str) -> None:
        """Check before the first step that there is enough text and that local chunks are whole."""
        if stage == "fit":
            check_amount(
                self.order(),
                seq_len=self.seq_len,
                batch=self._sizes,
                scheduled=self.batch_schedule is not None,
                location=self.path,
            )
            rows_held_out(self.manifest, "validation", seq_len=self.seq_len, location=self.path)
        self.prepared.check_whole(
            ("train", "validation") if stage == "fit" else ("validation", "test")
        )

    def readers(self, split: str) -> list[Any]:
        """Open one row reader per source; None if the split holds nothing of a source."""
        return self.prepared.open(split, seq_len=self.seq_len, shuffle_chunks=self.shuffle_chunks)

    def _loader(self, dataset: Any, batches: Any, *, workers: int) -> DataLoader[list[Batch]]:
        start = partial(start_worker, self.prepared.storage_options)
        return make_loader(
            dataset,
            batches,
            self._collate(),
            trainer=self.trainer,
            workers=workers,
            start_worker=start,
        )

    def _collate(self) -> Collate:
        eos = self.manifest.tokenizer.eos_id
        return Collate(
            micro_batch_size=self.micro_batch_size, eos_id=eos, cross_documents=self.cross_documents
        )

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        """Yield one batch per optimizer step, from the trainer's step on."""
        assert self.trainer is not None
        rank, replicas = replica_of(self.trainer)
        self.lower_micro_batch(replicas * self.devices_together)  # a run has done so already
        order, first = self.order(), self.trainer.global_step
        sampler = StepSampler(
            batch=self._batch_rows, rank=rank, world_size=replicas, first_step=first,
            samples=order.end,
        )  # fmt: skip
        return self._loader(
            OrderedRows(order, self.readers("train")), sampler, workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[list[Batch]]:
        """Yield the held-out rows of a validation, the same ones every time."""
        return self._held_out("validation", self.val_tokens)

    def test_dataloader(self) -> DataLoader[list[Batch]]:
        """Yield all rows of the test split."""
        return self._held_out("test", None)

    def _held_out(self, split: str, tokens: int | None) -> DataLoader[list[Batch]]:
        listed = spread_rows(
            self.manifest, split, seq_len=self.seq_len, tokens=tokens, location=self.path
        )
        rank, replicas = replica_of(self.trainer)
        batches = held_out_batches(
            len(listed), size=self.micro_batch_size, rank=rank, replicas=replicas
        )
        # Starting a worker process takes longer than reading the held-out rows.
        return self._loader(ListedRows(listed, self.readers(split)), batches, workers=0)


def _phases(phases: Sequence[Any] | None) -> list[Phase]:
    """Build phases that a config gives as plain values."""
    return [phase if isinstance(phase, Phase) else Phase(**phase) for phase in phases or ()]


def prepared_record(location: str, manifest: Manifest) -> DataRecord:
    """Describe prepared text: its sources and the evaluation sets that it was compared with."""
    sources: dict[str, SourceRecord] = {
        name: {
            "kind": source.kind, "origin": source.origin, "licence": source.licence,
            "path": source.path,
            "documents": sum(split.documents for split in source.splits.values()),
            "tokens": source.tokens,
            "sha256": source.content_sha256,
        }
        for name, source in manifest.sources.items()
    }  # fmt: skip
    return {
        "where": location,
        "hash": manifest.hash,
        "sources": sources,
        "gate": [dataclasses.asdict(record) for record in manifest.decontamination],
    }
