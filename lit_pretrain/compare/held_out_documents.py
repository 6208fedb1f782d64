"""Held-out documents: the text on which runs are compared, and the loss of every token of it.

A document is read from its beginning, and nothing else is in its context, whatever stands beside it
in a row. So its loss depends neither on packing nor on the rows that a run has trained on.

Axes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.errors import DivergedError, UserError
from lit_pretrain.hashing import permutation
from lit_pretrain.interface import OpenDataset
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldOutDocument:
    """One document, or the beginning of one that is longer than its source's share."""

    source: str
    text: str
    whole: bool
    """Whether it ends where it ends, so that its end is to be predicted, too."""


def held_out_documents(data: OpenDataset, split: str, tokens: int | None) -> list[HeldOutDocument]:
    """Choose the documents of a held-out split, an equal share of tokens of every source.

    The order in which they are chosen is fixed, so that more tokens add documents.

    Args:
        data: The prepared dataset.
        split: validation or test.
        tokens: At most this many tokens over all sources; None reads all.

    Raises:
        UserError: The split holds no text.
    """
    if split not in data.splits or split == "train":
        raise UserError(
            f"the {split} split of {data.path} holds no text; prepare it again with more text, or"
            f" with a larger splits.{split} in the prepare config"
        )
    having = [name for name in data.sources if data.manifest.sources[name].splits[split].chunks]
    share = None if tokens is None else max(2, tokens // len(having))
    found: list[HeldOutDocument] = []
    for name in having:
        stored = list(data.documents(split, name))
        left = share
        for i in permutation(len(stored), "compared", split, name).tolist():
            if left is not None and left < 2:
                break
            ids = _without_ends(stored[i].ids, data.tokenizer)
            # The end of a document is a target, too.
            whole = left is None or len(ids) + 1 <= left
            text = stored[i].text if whole else data.tokenizer.decode(ids[:left]).rstrip("\ufffd")
            if text:
                found.append(HeldOutDocument(name, text, whole))
            if left is not None:
                left -= min(left, len(ids) + 1)
    if not found:
        raise UserError(f"the {split} split of {data.path} holds no text that can be compared on")
    return found


def _without_ends(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    begin = 1 if ids and ids[0] == tokenizer.bos_id else 0
    end = len(ids) - (not tokenizer.one_separator and ids[-1:] == [tokenizer.eos_id])
    return list(ids[begin:end])


def encode_document(document: HeldOutDocument, tokenizer: Tokenizer) -> list[int]:
    """Encode a document with its beginning and, if it is whole, its end, as training reads it."""
    end = [tokenizer.eos_id] if document.whole else []
    return [tokenizer.bos_id, *tokenizer.encode(document.text), *end]


def packed_rows(
    encoded: Sequence[Sequence[int]], *, seq_len: int, rows: int
) -> Iterator[tuple[Batch, list[tuple[int, int, int, int]]]]:
    """Pack documents into rows, in their order; one longer than a row goes on in the next rows.

    Args:
        encoded: Token ids of each document, its beginning and end among them.
        seq_len: Inputs per row.
        rows: Rows of a batch.

    Yields:
        A batch, and for each stretch of a document in it: the row, where it begins there, the
        document's number and the number of its targets.
    """
    row: list[tuple[int, int, int]] = []
    filled, waiting = 0, list[list[tuple[int, int, int]]]()
    for stretch in _stretches(encoded, seq_len):
        length = stretch[2] - stretch[1]
        if filled + length > seq_len:
            waiting.append(row)
            row, filled = [], 0
        row.append(stretch)
        filled += length
    waiting.append(row)
    for first in range(0, len(waiting), rows):
        yield _batch(encoded, waiting[first : first + rows], seq_len)


def _stretches(encoded: Iterable[Sequence[int]], seq_len: int) -> Iterator[tuple[int, int, int]]:
    """Cut documents into stretches of at most a row: document, first input, end of the inputs."""
    for number, ids in enumerate(encoded):
        inputs = len(ids) - 1
        for begin in range(0, inputs, seq_len):
            yield number, begin, min(inputs, begin + seq_len)


def _batch(
    encoded: Sequence[Sequence[int]], rows: Sequence[Sequence[tuple[int, int, int]]], seq_len: int
) -> tuple[Batch, list[tuple[int, int, int, int]]]:
    tokens_BT = torch.zeros(len(rows), seq_len, dtype=torch.int64)
    labels_BT = torch.full((len(rows), seq_len), IGNORE_INDEX)
    doc_BT = torch.zeros(len(rows), seq_len, dtype=torch.int32)
    places = []
    for b, stretches in enumerate(rows):
        t = 0
        for inside, (number, begin, end) in enumerate(stretches):
            ids = torch.from_numpy(np.asarray(encoded[number][begin : end + 1], dtype=np.int64))
            after = t + end - begin
            tokens_BT[b, t:after], labels_BT[b, t:after] = ids[:-1], ids[1:]
            doc_BT[b, t:after] = inside
            places.append((b, t, number, end - begin))
            t = after
        doc_BT[b, t:] = len(stretches)
    count = torch.zeros(len(rows), dtype=torch.int64)
    return Batch(tokens_BT, labels_BT, doc_BT, count, count), places


BATCH_TOKENS = 4096
"""Inputs that the network reads at once."""


@dataclass(frozen=True)
class DocumentLosses:
    """The loss of every target of every document under one network."""

    nats: list[npt.NDArray[np.float32]]
    """Of each document, a loss for every target: its tokens and, of a whole one, its end."""
    ends: list[npt.NDArray[np.int64]]
    """Of each document, the byte of its text at which each token ends, without the target that is
    its end."""
    tokenizer_hash: str


def document_losses(
    net: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[HeldOutDocument],
    *,
    seq_len: int,
    label: str,
) -> DocumentLosses:
    """Compute the loss of every token.

    Args:
        net: The network, on its device.
        tokenizer: Its tokenizer, by which the documents are encoded.
        documents: The text.
        seq_len: Longest context in tokens.
        label: Names the network in messages.

    Raises:
        DivergedError: A loss is not finite.
    """
    encoded = [encode_document(document, tokenizer) for document in documents]
    nats = [np.empty(len(ids) - 1, dtype=np.float32) for ids in encoded]
    done = [0] * len(encoded)
    rows = max(1, BATCH_TOKENS // seq_len)
    for batch, places in packed_rows(encoded, seq_len=seq_len, rows=rows):
        nats_BT = _nats(net, batch)
        for b, t, number, count in places:
            nats[number][done[number] : done[number] + count] = nats_BT[b, t : t + count]
            done[number] += count
    if not all(np.isfinite(values).all() for values in nats):
        raise DivergedError(
            f"{label} does not compute numbers on these documents: compare an older checkpoint"
        )
    lengths = tokenizer.token_bytes()
    ends = [
        np.cumsum(lengths[np.asarray(ids[1 : len(ids) - document.whole], dtype=np.int64)])
        for document, ids in zip(documents, encoded, strict=True)
    ]
    return DocumentLosses(nats, [np.asarray(e, dtype=np.int64) for e in ends], tokenizer.hash)


@torch.no_grad()
def _nats(net: Transformer, batch: Batch) -> npt.NDArray[np.float32]:
    device = net.head_weight.device
    hidden_BTD = net(batch.tokens_BT.to(device), batch.doc_BT.to(device))
    scores = LabelScores(
        hidden_BTD,
        net.head_weight,
        batch.labels_BT.to(device),
        logit_softcap=net.config.logit_softcap,
    )
    found: npt.NDArray[np.float32] = (-scores.logp()).float().cpu().numpy()
    return found
