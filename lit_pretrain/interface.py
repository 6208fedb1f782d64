"""Interface: trained models and prepared data for scripts and notebooks.

`lit_pretrain.load` and `lit_pretrain.open_data` lead here.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.layout import STANDALONE_KEY, artefact_folder, is_hf_folder, resolve
from lit_pretrain.checkpoint.lineage import check_files
from lit_pretrain.checkpoint.network import load_network, read_hf_network
from lit_pretrain.checkpoint.weights import read_metadata
from lit_pretrain.corpus.chunk_reader import (
    DocumentRecord,
    full_origin,
    open_chunk,
    read_document_records,
)
from lit_pretrain.corpus.manifest import SPLITS, Manifest, held_out_rows, rows_in
from lit_pretrain.corpus.prepared import PreparedText
from lit_pretrain.corpus.rows import TokenRow
from lit_pretrain.data.batches import Collate
from lit_pretrain.data.text.order import Order, spread_rows
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.files import check_plain_names, is_remote
from lit_pretrain.generate.conversation import complete, encode_prompt
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer

Ids = Sequence[int] | Sequence[Sequence[int]] | Tensor
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONGEST = 256
"""Tokens of a completion by default, if the model has room for them."""


class LoadedModel:
    """A trained network with its tokenizer, ready to compute and to write.

    Args:
        net: The network, in evaluation mode.
        language: Tokenizer and chat template; None if nothing beside the weights tells them.
        place: What was loaded: a checkpoint or a Hugging Face folder.
    """

    def __init__(self, net: Transformer, language: ModelTokenizer | None, place: Path) -> None:
        self.net = net
        self.place = place
        self._language = language

    @classmethod
    def from_place(
        cls,
        where: str,
        *,
        checkpoint: str = "last",
        device: str = "auto",
        dtype: str = "float32",
        accept: Sequence[str] = (),
    ) -> LoadedModel:
        """Load a model; `lit_pretrain.load` explains the arguments."""
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r} is unknown; give one of {', '.join(DTYPES)}")
        chosen = _device(device)
        path = Path(where)
        if is_hf_folder(path):
            language, net = check_files(path, accept=tuple(accept)), read_hf_network(path)
        else:
            path = resolve(where, which=checkpoint)
            language, net = _language_of(path, tuple(accept)), load_network(path)
        return cls(net.to(chosen, DTYPES[dtype]).eval(), language, path)

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.net.parameters())
        return f"LoadedModel({str(self.place)!r}, {count:,} parameters, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.net.token_embedding.weight.device

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the network was trained with.

        Raises:
            UserError: There is none beside the weights.
        """
        if self._language is None:
            raise UserError(
                f"{self.place} has no tokenizer beside it: put tokenizer.json into its folder;"
                " logits of token ids need none"
            )
        return self._language.tokenizer

    @torch.inference_mode()
    def logits(self, ids: Ids) -> Tensor:
        """Compute the logits of the token that follows each position, in fp32.

        Args:
            ids: Token ids, one sequence (T) or several of one length (B, T). A document begins with
                `tokenizer.bos_id`, which is not added here.

        Returns:
            (T, V) or (B, T, V), on the model's device.

        Raises:
            UserError: These are no ids, none, too many, or ids outside the vocabulary.
        """
        try:
            given = torch.as_tensor(ids)
        except (TypeError, ValueError) as error:
            raise UserError(f"ids must be whole numbers, in rows of one length: {error}") from None
        if given.dim() not in (1, 2) or not given.numel():
            raise UserError(
                f"ids must be one sequence or rows of one length, found the shape"
                f" {tuple(given.shape)}"
            )
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            found = str(given.dtype).removeprefix("torch.")
            raise UserError(f"ids must be whole numbers, found {found}")
        tokens_BT = given.reshape(-1, given.shape[-1]).to(self.device, torch.int64)
        self.net.check_tokens(tokens_BT)
        logits_BTV = self.net.logits(self.net(tokens_BT)).float()
        return logits_BTV[0] if given.dim() == 1 else logits_BTV

    def loss(self, text: str) -> Tensor:
        """Compute the loss of each token of a text, as the beginning of a document.

        Args:
            text: The text.

        Returns:
            Nats of each token of `tokenizer.encode(text)`, (T), fp32 on the CPU. Their sum divided
            by ln 2 and by the text's bytes are bits per byte.

        Raises:
            UserError: The text is longer than the network reads.
        """
        ids = encode_prompt(self.tokenizer, text)
        if len(ids) - 1 > self.net.config.max_seq_len:
            raise UserError(
                f"the text has {len(ids) - 1:,} tokens, and the network reads"
                f" max_seq_len={self.net.config.max_seq_len:,} at most: cut it into parts"
            )
        if len(ids) == 1:
            return torch.zeros(0)
        logits_TV = self.logits(ids[:-1])
        targets_T = torch.tensor(ids[1:], device=logits_TV.device)
        return torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none").cpu()

    def generate(
        self,
        text: str = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Complete a text, with the defaults of `lit_pretrain generate`.

        Args:
            text: Beginning of a document.
            max_new_tokens: Longest completion; None: 256, or as many as there is room for.
            temperature: Divides the logits; 0 always takes the likeliest token.
            top_k: Keep only the k likeliest tokens.
            top_p: Keep only the likeliest tokens that together reach this probability.
            seed: Another seed draws another completion.
            stop: Strings that end the completion.

        Returns:
            What follows the text, without it.

        Raises:
            UserError: A setting is out of range, or the text leaves no room.
        """
        if max_new_tokens is None:
            room = self.net.config.max_seq_len - len(encode_prompt(self.tokenizer, text))
            max_new_tokens = max(1, min(LONGEST, room))
        (completion,) = complete(
            self.net,
            self.tokenizer,
            [text],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=[stop] if isinstance(stop, str) else stop,
        )
        return completion


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name!r} cannot be used ({str(error).splitlines()[0]}); give auto, cpu, or one"
            " that torch finds"
        ) from None


def _language_of(checkpoint: Path, accept: tuple[str, ...]) -> ModelTokenizer | None:
    """Read tokenizer and template of a checkpoint: its own, or those of its run."""
    own = read_metadata(checkpoint).get(STANDALONE_KEY)
    if own is None:
        return check_files(artefact_folder(checkpoint), accept=accept)
    with tempfile.TemporaryDirectory() as folder:
        check_plain_names(own["files"], str(checkpoint))
        for name, text in own["files"].items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return ModelTokenizer.found(folder)


# ------------------------------------------------------------------ data


@dataclass(frozen=True)
class StoredDocument:
    """One document of a prepared dataset."""

    text: str
    ids: list[int]
    """Token ids as they are stored, with the separator in front."""
    source: str
    split: str
    origin: str
    """File, and row in it, that the text came from."""


@dataclass(frozen=True)
class DocumentBatch:
    """Rows of a prepared dataset, packed with documents as training reads them."""

    ids_BT: Tensor
    """Input token ids, int64."""
    labels_BT: Tensor
    """The ids that follow them; -100 where nothing is learned, across the edge of documents."""
    doc_BT: Tensor
    """Number of the document within its row, from 0."""
    sources: tuple[str, ...]
    """Source of each row."""
    texts: tuple[str, ...]
    """Text of each row, with separators spelt."""
    origins: tuple[tuple[str, ...], ...]
    """File, and row in it, of each document of a row in order; empty for remote data."""


class OpenDataset:
    """A dataset written by `lit_pretrain prepare`.

    Args:
        path: Its directory, or the s3:// URL of one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._prepared = PreparedText(path)
        self.manifest: Manifest = self._prepared.manifest
        """What the dataset says of itself: sources, splits, tokenizer, what was left out."""
        self._recorded: dict[tuple[str, str], Mapping[str, list[DocumentRecord]]] = {}

    def __repr__(self) -> str:
        tokens = ", ".join(f"{split} {self.manifest.tokens(split):,}" for split in SPLITS)
        return f"OpenDataset({self.path!r}, sources {', '.join(self.sources)}; tokens {tokens})"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold text."""
        return tuple(split for split in SPLITS if self.manifest.tokens(split))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(self.manifest.sources)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the text."""
        return self._prepared.tokenizer

    def documents(
        self, split: str = "train", source: str | None = None
    ) -> Iterator[StoredDocument]:
        """Yield the documents of a split in stored order.

        Args:
            split: train, validation or test.
            source: Name of one source; None: of all, one after the other.

        Raises:
            UserError: There is no such split or source, or a chunk is missing or damaged.
        """
        self._check_split(split)
        if source is not None and source not in self.manifest.sources:
            hint = did_you_mean(source, self.sources)
            raise UserError(
                f"{self.path} has no source {source!r}.{hint} Sources: {', '.join(self.sources)}"
            )
        if is_remote(self.path):
            raise UserError(
                f"{self.path} is remote, and documents are read from local files: copy it, or read"
                " batches"
            )
        names = self.sources if source is None else (source,)
        return (document for name in names for document in self._documents(split, name))

    def _documents(self, split: str, name: str) -> Iterator[StoredDocument]:
        """Yield the documents of one source; pieces of those longer than a chunk are joined."""
        begun: tuple[DocumentRecord, list[int]] | None = None
        for record, ids in self._stored_rows(split, name):
            if record.piece and begun is not None:
                begun[1].extend(ids)
                continue
            if begun is not None:
                yield self._document(split, name, *begun)
            begun = record, ids
        if begun is not None:
            yield self._document(split, name, *begun)

    def _document(
        self, split: str, name: str, record: DocumentRecord, ids: list[int]
    ) -> StoredDocument:
        origin = full_origin(self.manifest.sources[name], record.origin)
        return StoredDocument(self.tokenizer.decode(ids), ids, name, split, origin)

    def _stored_rows(self, split: str, name: str) -> Iterator[tuple[DocumentRecord, list[int]]]:
        for chunk in self.manifest.sources[name].splits[split].chunks:
            file = Path(self.path) / split / name / chunk.filename
            tokens, begins = open_chunk(file, self.manifest.dtype, chunk.bytes)
            records = self._records(split, name).get(chunk.filename, [])
            if len(records) != len(begins) - 1:
                raise UserError(
                    f"{file} holds {len(begins) - 1:,} rows, of which documents.jsonl beside it"
                    f" names {len(records):,}; run `lit_pretrain prepare` again"
                )
            for record, begin, end in zip(records, begins, begins[1:], strict=False):
                yield record, np.asarray(tokens[begin:end]).tolist()

    def _records(self, split: str, name: str) -> Mapping[str, list[DocumentRecord]]:
        """Read which documents the chunks of a source hold, once."""
        if (split, name) not in self._recorded:
            by_chunk: dict[str, list[DocumentRecord]] = {}
            if self.manifest.sources[name].splits[split].chunks:
                for record in read_document_records(Path(self.path), split, name):
                    by_chunk.setdefault(record.chunk, []).append(record)
            self._recorded[split, name] = by_chunk
        return self._recorded[split, name]

    def batches(
        self,
        split: str = "train",
        *,
        seq_len: int = 512,
        batch_size: int = 8,
        epochs: float | None = 1,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Iterator[DocumentBatch]:
        """Yield rows of a split as a network reads them, with the documents in them.

        The rows of training come in the order in which `fit` reads them with the same `seq_len`,
        weights and seed; held-out rows come source by source.

        Args:
            split: train, validation or test.
            seq_len: Inputs per row, T.
            batch_size: Rows of a batch, B.
            epochs: How often training reads each source; None: without end. A held-out split is
                read once.
            weights: Shares of the sources in training; None: in proportion to their text.
            seed: Seed of the order of training.

        Raises:
            UserError: There is no such split, or it holds no row.
        """
        self._check_split(split)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        data = TextData(
            self.path,
            seq_len=seq_len,
            global_batch_tokens=seq_len * batch_size,
            micro_batch_size=batch_size,
            weights=None if weights is None else dict(weights),
            max_epochs=epochs,
            seed=seed,
        )
        data.prepared.check_whole([split])
        places = (
            _training_places(data.order())
            if split == "train"
            else spread_rows(self.manifest, split, seq_len=seq_len, tokens=None, location=self.path)
        )
        return self._batches(split, seq_len, batch_size, places, data.readers(split))

    def _batches(
        self,
        split: str,
        seq_len: int,
        batch_size: int,
        places: Iterable[tuple[int, int]],
        readers: Sequence[Sequence[TokenRow]],
    ) -> Iterator[DocumentBatch]:
        collate = Collate(
            micro_batch_size=batch_size,
            eos_id=self.manifest.tokenizer.eos_id,
            cross_documents=False,
        )
        numbered = enumerate(places)
        while chosen := list(itertools.islice(numbered, batch_size)):
            rows = [readers[source][row] for _, (source, row) in chosen]
            items = [(n, source, row) for (n, (source, _)), row in zip(chosen, rows, strict=True)]
            (batch,) = collate(items)
            yield DocumentBatch(
                batch.tokens_BT,
                batch.labels_BT,
                batch.doc_BT,
                sources=tuple(self.sources[source] for _, (source, _) in chosen),
                texts=tuple(self._text(row) for row in rows),
                origins=tuple(
                    self._origins(split, self.sources[source], row, seq_len)
                    for _, (source, row) in chosen
                ),
            )

    def _text(self, row: TokenRow) -> str:
        ids = row.tokens[:-1]
        return self.tokenizer.decode(ids[ids != IGNORE_INDEX], skip_special=False)

    def _origins(self, split: str, name: str, row: int, seq_len: int) -> tuple[str, ...]:
        """Name the documents that a row reads its inputs from."""
        if is_remote(self.path):
            return ()
        chunks = self.manifest.sources[name].splits[split].chunks
        tokens = [chunk.tokens for chunk in chunks]
        counts = (
            [rows_in(n, seq_len) for n in tokens]
            if split == "train"
            else held_out_rows(tokens, seq_len)
        )
        ends = np.cumsum(counts)
        c = int(np.searchsorted(ends, row, side="right"))
        first = (row - int(ends[c]) + counts[c]) * seq_len
        records = self._records(split, name).get(chunks[c].filename, [])
        edges = np.cumsum([0, *(record.tokens for record in records)])
        inside = (edges[1:] > first) & (edges[:-1] < first + seq_len)
        source = self.manifest.sources[name]
        return tuple(full_origin(source, records[i].origin) for i in np.flatnonzero(inside))

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            hint = did_you_mean(split, self.splits)
            raise UserError(
                f"{self.path} has no text in a split {split!r}.{hint} Splits:"
                f" {', '.join(self.splits)}"
            )


def _training_places(order: Order) -> Iterator[tuple[int, int]]:
    """Yield source and row of each sample of an order."""
    for n in itertools.count() if order.end is None else range(order.end):
        sample = order(n)
        yield sample.source, sample.block
