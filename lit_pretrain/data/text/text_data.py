"""TextData: prepared text as micro-batches of packed rows, in an order that depends on the step."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from lit_pretrain.batch import Batch
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
from lit_pretrain.step_size import StepSize
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class TextData(BaseData):
    """Streams a prepared dataset.

    Args:
        path: A directory written by `lit_pretrain prepare`, or an s3:// URL of one.
        seq_len: Inputs per row, T.
        global_batch_tokens: Inputs per optimizer step over all devices; micro-batches are
            accumulated to reach it.
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
    default_steps: ClassVar[int | None] = 100
    scaling_laws_apply: ClassVar[bool] = True

    def __init__(
        self,
        path: str = "data/embedded",
        seq_len: int = 512,
        global_batch_tokens: int = 4096,
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
        self.global_batch_tokens = global_batch_tokens
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
    def tokens_per_step(self) -> int:
        """Inputs per optimizer step over all devices."""
        return self.global_batch_tokens

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
            global_batch_tokens=self.global_batch_tokens,
            seed=self.seed,
            cycle=self.cycle,
            shuffle_chunks=self.shuffle_chunks,
            skips=self.skips,
        )

    # ------------------------------------------------------------------ size of a step and a run

    def _rows(self) -> int:
        return max(1, self.global_batch_tokens // self.seq_len)

    @property
    def step_size(self) -> StepSize:
        """Size of an optimizer step over all devices."""
        return StepSize(self.global_batch_tokens, self.seq_len)

    def batch_line(self, devices: int) -> str:
        """Describe the size of a step in words."""
        division = self.divide(devices).text(self.unit, self.seq_len)
        return f"{self.global_batch_tokens:,} tokens a step = {division}"

    def epochs(self, steps: int) -> float:
        """Return how many epochs a run of `steps` optimizer steps reads, over all sources."""
        return steps * self.global_batch_tokens / max(self.manifest.tokens("train"), 1)

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
        check_length(self.order(), steps=steps, rows=self._rows(), seq_len=self.seq_len)

    def check_fork(
        self, saved: Mapping[str, Any], now: Mapping[str, Any], *, step: int, checkpoint: str
    ) -> None:
        """Refuse a fork whose mixture would have read other samples before its first step."""
        check_past(self.manifest, saved, now, step=step, checkpoint=checkpoint, skips=self.skips)

    def exposure(self, steps: int) -> str:
        """Tabulate how much of each source a run reads."""
        return exposure(
            self.order(), self.manifest, steps=steps, rows=self._rows(), seq_len=self.seq_len
        )

    def unique_tokens(self, steps: int) -> int:
        """Count the distinct training tokens that a run reads."""
        return unique_tokens(self.order(), steps=steps, rows=self._rows(), seq_len=self.seq_len)

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
        ordered, first = OrderedRows(self.order(), self.readers("train")), step * self._rows()
        return self._collate()([ordered[n] for n in range(first, first + min(rows, self._rows()))])

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
                global_batch_tokens=self.global_batch_tokens,
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
        # A run has lowered it already.
        self.micro_batch_size = self.divide(replicas * self.devices_together).micro_batch_size
        rows, order, first = self.step_size.rows, self.order(), self.trainer.global_step
        sampler = StepSampler(
            rows=rows, rank=rank, world_size=replicas, first_step=first, samples=order.end
        )
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
