"""TextData: prepared text as micro-batches of packed rows, in an order that is a pure function of the step."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

import lightning as L
from torch.utils.data import DataLoader

from lit_pretrain.batch import Batch, DataContract
from lit_pretrain.data.batches import PAD_ROW, Collate, ListedRows, OrderedRows, StepSampler, rows_per_step
from lit_pretrain.data.chunk_cache import ChunkCache, size_in_bytes
from lit_pretrain.data.documents import full_origin
from lit_pretrain.data.exposure import check_length, exposure, unique_tokens
from lit_pretrain.data.manifest import Manifest
from lit_pretrain.data.mixture import Mixture, Phase, make_order
from lit_pretrain.data.order import Order
from lit_pretrain.data.permutation import permutation
from lit_pretrain.data.remote import cache_folder, fetch, is_remote, load_manifest
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.data.trace import Tracer, rows_in
from lit_pretrain.data.worker import start_worker
from lit_pretrain.errors import UserError

_ROWS_NAMED, _DOCUMENTS_NAMED = 8, 4
"""Of a step that diverged."""


class TextData(L.LightningDataModule):
    """Streams a prepared dataset; no loader state is ever saved.

    Args:
        path: A directory made by `lit_pretrain prepare`, or an s3:// URL of one.
        seq_len: Inputs per row, T.
        global_batch_tokens: Inputs per optimizer step over all ranks; micro-batches are accumulated to reach it.
        micro_batch_size: Rows that one device processes at once; limits memory and changes nothing else.
        weights: Share of the samples by source name; null follows the amount of text in each source.
        temperature: Shares in proportion to tokens^(1/temperature), in place of weights: 1 follows the amount of text, larger evens the
            sources out.
        max_epochs: How often a source may be read, one number for all or by source name; one that has been read as often leaves its place
            to the others, in proportion to their weights. null reads on for ever.
        phases: Changes of the mixture, each with from_tokens and weights or temperature; the first may begin at 0 in place of weights.
        seed: Seed of the data order.
        cycle: Samples per cycle of the mixture; every cycle holds exactly its share of every source.
        shuffle_chunks: Chunks whose rows are shuffled together; 1 reads remote chunks one after the other.
        cross_documents: Let attention and targets cross the edges of documents.
        val_tokens: Held-out inputs used by each validation, spread evenly over the sources; null uses all.
        num_workers: Loader processes; 0 is fastest for tokens, because copying between processes costs more than reading. With remote data
            1 hides the time in which a chunk is fetched.
        cache_dir: Where remote chunks are kept.
        max_cache_size: Limit of the chunks in that cache, such as 20GB; null for none.
        storage_options: Passed to the object store's client, such as {endpoint_url: http://127.0.0.1:5000}.
    """

    unit = "rows"

    sequences_per_row: ClassVar[int] = 1
    """Sequences that the network sees for each sample."""

    def __init__(
        self,
        path: str = "data/embedded",
        seq_len: int = 512,
        global_batch_tokens: int = 4096,
        micro_batch_size: int = 8,
        weights: Optional[dict[str, float]] = None,
        temperature: Optional[float] = None,
        max_epochs: Optional[Union[float, dict[str, float]]] = None,
        phases: Optional[list[Phase]] = None,
        seed: int = 0,
        cycle: int = 1024,
        shuffle_chunks: int = 1,
        cross_documents: bool = False,
        val_tokens: Optional[int] = 262_144,
        num_workers: int = 0,
        cache_dir: Optional[str] = None,
        max_cache_size: Optional[str] = None,
        storage_options: Optional[dict[str, Any]] = None,
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
        self.mixture = Mixture(weights=weights, temperature=temperature, max_epochs=max_epochs, phases=_phases(phases))
        self.seed = seed
        self.cycle = cycle
        self.shuffle_chunks = shuffle_chunks
        self.cross_documents = cross_documents
        self.val_tokens = val_tokens
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.max_cache_size = max_cache_size
        self.storage_options = storage_options
        self._manifest: Optional[Manifest] = None
        self._tokenizer: Optional[Tokenizer] = None

    # ------------------------------------------------------------------ what the data is

    @property
    def manifest(self) -> Manifest:
        """The dataset's manifest, read once."""
        if self._manifest is None:
            self._manifest = load_manifest(self.path, cache_dir=self.cache_dir, storage_options=self.storage_options)
        return self._manifest

    @property
    def tokenizer(self) -> Tokenizer:
        """The dataset's tokenizer, checked against the manifest."""
        if self._tokenizer is None:
            file = fetch(self.path, "tokenizer.json", cache_dir=self.cache_dir, storage_options=self.storage_options)
            record = self.manifest.tokenizer
            tokenizer = Tokenizer.load(str(file), bos=record.bos, eos=record.eos)
            wanted = record.hash
            if tokenizer.hash != wanted:
                raise UserError(
                    f"{file} is not the tokenizer that encoded the data: its hash is {tokenizer.hash}, the manifest says "
                    f"{wanted}; restore the file or run `lit_pretrain prepare` again"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of `Batch.source_B`."""
        return list(self.manifest.sources)

    @property
    def contract(self) -> DataContract:
        """What this data promises to a stage."""
        return DataContract(
            sources=tuple(self.sources),
            vocab_size=self.manifest.tokenizer.vocab_size,
            tokenizer_hash=self.manifest.tokenizer.hash,
            manifest_hash=self.manifest.hash,
            token_bytes=tuple(int(n) for n in self.tokenizer.token_bytes()),
            seq_len=self.seq_len,
            global_batch_tokens=self.global_batch_tokens,
        )

    @property
    def manifest_hash(self) -> str:
        """Identity of the data."""
        return self.manifest.hash

    @property
    def tokenizer_hash(self) -> str:
        """Identity of the tokenizer."""
        return self.manifest.tokenizer.hash

    @property
    def template_hash(self) -> Optional[str]:
        """None: text has no chat template."""
        return None

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.manifest.tokenizer.vocab_size

    @property
    def tokens_per_step(self) -> int:
        """Inputs per optimizer step over all ranks."""
        return self.global_batch_tokens

    @property
    def where(self) -> str:
        """Where the data lies."""
        return self.path

    def order(self) -> Order:
        """The data order of training."""
        return make_order(
            self.manifest,
            self.mixture,
            seq_len=self.seq_len,
            global_batch_tokens=self.global_batch_tokens,
            seed=self.seed,
            cycle=self.cycle,
            shuffle_chunks=self.shuffle_chunks,
        )

    # ------------------------------------------------------------------ what the command line asks

    def _rows(self) -> int:
        return max(1, self.global_batch_tokens // self.seq_len)

    def batch_line(self, world_size: int) -> str:
        """A step in words.

        Raises:
            UserError: The rows of a step do not divide.
        """
        rows, accumulation = rows_per_step(
            global_batch_tokens=self.global_batch_tokens,
            seq_len=self.seq_len,
            micro_batch_size=self.micro_batch_size,
            world_size=world_size,
        )
        return (
            f"{rows} rows × {self.seq_len} = {self.global_batch_tokens:,} tokens a step ({world_size} ranks × "
            f"{self.micro_batch_size} rows × {accumulation} accumulation)"
        )

    def epochs(self, steps: int) -> float:
        """How often a run reads as much text as there is."""
        return steps * self.global_batch_tokens / max(self.manifest.tokens("train"), 1)

    def steps_of(self, epochs: float) -> int:
        """Refuse: sources are read at their own pace.

        Raises:
            UserError: Always.
        """
        raise UserError(f"max_epochs={epochs}: epochs of prepared text differ by source; set max_steps, max_tokens or max_flops")

    def check_length(self, steps: int) -> None:
        """Refuse a run that goes on when no source may be read any more."""
        check_length(self.order(), steps=steps, rows=self._rows(), seq_len=self.seq_len)

    def exposure(self, steps: int) -> str:
        """How much of every source a run reads, as a table."""
        return exposure(self.order(), self.manifest, steps=steps, rows=self._rows(), seq_len=self.seq_len)

    def unique_tokens(self, steps: int) -> int:
        """Distinct training tokens that a run reads; fewer than it trains on where sources are read again."""
        return unique_tokens(self.order(), steps=steps, rows=self._rows(), seq_len=self.seq_len)

    def describe(self, samples: Sequence[int]) -> str:
        """The rows of some samples, a few of them: source, epoch, row and, of local data, documents."""
        order, shown = self.order(), samples[:_ROWS_NAMED]
        if is_remote(self.path):  # the list of documents lies with the data
            found = [f"{self.sources[s.source]} epoch {s.epoch} row {s.block}" for s in map(order, shown)]
        else:
            found = []
            for row in Tracer(Path(self.path), self.manifest, order, seq_len=self.seq_len).rows(shown):
                source = self.manifest.sources[row.source]
                names = [full_origin(source, document.origin) for document in row.documents]
                rest = f" and {len(names) - _DOCUMENTS_NAMED} more" if len(names) > _DOCUMENTS_NAMED else ""
                found.append(f"{row.source} epoch {row.epoch} row {row.block}: {', '.join(names[:_DOCUMENTS_NAMED])}{rest}")
        more = [f"and {len(samples) - _ROWS_NAMED} more rows (`lit_pretrain inspect order --step` names them all)"]
        return "\n  ".join(["", *found, *(more if len(samples) > _ROWS_NAMED else [])])

    def step_batches(self, step: int, rows: int) -> list[Batch]:
        """The first rows of an optimizer step, as micro-batches."""
        ordered, first = OrderedRows(self.order(), self._open("train")), step * self._rows()
        collate = Collate(
            micro_batch_size=self.micro_batch_size, eos_id=self.manifest.tokenizer.eos_id, cross_documents=self.cross_documents
        )
        return collate([ordered[n] for n in range(first, first + min(rows, self._rows()))])

    def save(self, folder: Path) -> None:
        """Write the tokenizer to a run's folder."""
        self.tokenizer.save(folder)

    # ------------------------------------------------------------------ loaders

    def setup(self, stage: str) -> None:
        """Check what can be checked before the first step: that there is enough text, and that local chunks are there and whole."""
        if stage == "fit":
            order = self.order()
            used = [max(weights) > 0 for weights in zip(*order.weights, strict=True)]
            rows = sum(source.blocks for source, is_used in zip(order.sources, used, strict=True) if is_used)
            if rows * self.seq_len < self.global_batch_tokens:
                raise UserError(
                    f"{self.path} holds {rows:,} rows × {self.seq_len} = {rows * self.seq_len:,} training tokens in the sources of the "
                    f"mixture, fewer than one batch of data.global_batch_tokens={self.global_batch_tokens:,}; add text, or lower it"
                )
            self._held_out_rows("validation")
        if is_remote(self.path):
            return
        for split in ("train", "validation") if stage == "fit" else ("validation", "test"):
            for name, source in self.manifest.sources.items():
                for chunk in source.splits[split].chunks:
                    file = self._location(split, name) / chunk.filename
                    size = file.stat().st_size if file.is_file() else None
                    if size != chunk.bytes:
                        found = "it is missing" if size is None else f"it has {size:,} bytes"
                        raise UserError(
                            f"chunk {file} is not whole: {found}, the manifest says {chunk.bytes:,} bytes with sha256 "
                            f"{chunk.sha256}; restore it from a good copy, or delete {self.path} and run "
                            "`lit_pretrain prepare` again"
                        )

    def _location(self, split: str, source: str) -> Path:
        return Path(self.path) / split / source

    def _open(self, split: str) -> list[Any]:
        """One row reader per source; None where the split holds nothing of it."""
        from lit_pretrain.data.rows import INDEX, open_rows  # imports litdata, which `fit --help` need not wait for

        cache = self._cache() if is_remote(self.path) else None
        readers: list[Any] = []
        for name, source in self.manifest.sources.items():
            chunks, folder = source.splits[split].chunks, f"{split}/{name}"
            if not chunks:
                readers.append(None)
                continue
            # LitData reads index.json where it expects the chunks; of a remote source both are copies.
            index = fetch(self.path, f"{folder}/{INDEX}", cache_dir=self.cache_dir, storage_options=self.storage_options)
            readers.append(
                open_rows(
                    index.parent,
                    seq_len=self.seq_len,
                    vocab_size=self.manifest.tokenizer.vocab_size,
                    chunks=chunks,
                    folder=folder,
                    cache=cache,
                    keep_open=self.shuffle_chunks if split == "train" else 1,
                )
            )
        return readers

    def _cache(self) -> ChunkCache:
        limit = None if self.max_cache_size is None else size_in_bytes(self.max_cache_size)
        largest = [max((c.bytes for c in s.splits["train"].chunks), default=0) for s in self.manifest.sources.values()]
        needed = sum(largest) * self.shuffle_chunks
        if limit is not None and limit < needed:
            raise UserError(
                f"data.max_cache_size={self.max_cache_size} does not hold the chunks that are read at the same time: "
                f"{len(largest)} sources × {self.shuffle_chunks} (data.shuffle_chunks) = {needed / 1e6:,.1f} MB; raise it"
            )
        root = cache_folder(self.path, self.cache_dir)
        return ChunkCache(self.path, root, limit=limit, storage_options=self.storage_options)

    def _replicas(self) -> tuple[int, int]:
        """(rank, number) of the data-parallel replica that this process feeds."""
        strategy = self.trainer.strategy if self.trainer is not None else None
        kwargs = getattr(strategy, "distributed_sampler_kwargs", None) or {}
        return int(kwargs.get("rank", 0)), int(kwargs.get("num_replicas", 1))

    def _loader(self, dataset: Any, batches: Any, *, workers: int) -> DataLoader[list[Batch]]:
        eos = self.manifest.tokenizer.eos_id
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=partial(start_worker, self.storage_options),
            collate_fn=Collate(micro_batch_size=self.micro_batch_size, eos_id=eos, cross_documents=self.cross_documents),
            persistent_workers=workers > 0,
            # Not fork: a fork of a process with OpenMP threads can hang. Not forkserver: a signal to the whole job ends the server, and
            # with it the workers.
            multiprocessing_context="spawn" if workers > 0 else None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        """One batch per optimizer step, from the trainer's step on, without end."""
        assert self.trainer is not None
        rank, replicas = self._replicas()
        rows, _ = rows_per_step(
            global_batch_tokens=self.global_batch_tokens,
            seq_len=self.seq_len,
            micro_batch_size=self.micro_batch_size,
            world_size=replicas,
        )
        order, first = self.order(), self.trainer.global_step
        sampler = StepSampler(rows=rows, rank=rank, world_size=replicas, first_step=first, samples=order.end)
        return self._loader(OrderedRows(order, self._open("train")), sampler, workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[list[Batch]]:
        """A fixed selection of held-out rows, the same at every validation and for every number of ranks."""
        return self._held_out("validation", self.val_tokens)

    def test_dataloader(self) -> DataLoader[list[Batch]]:
        """All rows of the test split."""
        return self._held_out("test", None)

    def _held_out_rows(self, split: str) -> list[int]:
        """Complete rows of each source in a split that is held out.

        Raises:
            UserError: There is none at all.
        """
        held = [self.manifest.sources[name].splits[split].chunks for name in self.sources]
        rows = [sum(rows_in(chunk.tokens, self.seq_len) for chunk in chunks) for chunks in held]
        if not any(rows):
            raise UserError(
                f"the {split} split of {self.path} holds no complete row of {self.seq_len} tokens; prepare more text, "
                f"raise splits.{split} of the prepare config, or lower data.seq_len"
            )
        return rows

    def _held_out(self, split: str, tokens: Optional[int]) -> DataLoader[list[Batch]]:
        rows = self._held_out_rows(split)
        share = max(rows) if tokens is None else max(1, tokens // self.seq_len // sum(n > 0 for n in rows))
        listed = [
            (s, int(block))
            for s, n in enumerate(rows)
            for block in sorted(permutation(n, "held-out", split, self.sources[s])[: min(n, share)])
        ]
        rank, replicas = self._replicas()
        step = self.micro_batch_size * replicas
        # Every rank runs as many batches of the same shape: collectives inside a sharded forward must match.
        numbers = list(range(len(listed))) + [PAD_ROW] * (-len(listed) % step)
        size = self.micro_batch_size
        batches = [numbers[i : i + size] for i in range(rank * size, len(numbers), step)]
        # The start of a process costs more than it takes to read what is held out.
        return self._loader(ListedRows(listed, self._open(split)), batches, workers=0)


def _phases(phases: Optional[Sequence[Any]]) -> list[Phase]:
    """Phases, also as plain values of a config."""
    return [phase if isinstance(phase, Phase) else Phase(**phase) for phase in phases or ()]
