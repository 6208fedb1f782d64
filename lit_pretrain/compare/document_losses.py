"""Document losses: the loss of every token of the held-out documents under one network.

Axes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lit_pretrain.batch import Batch
from lit_pretrain.compare.held_out_documents import (
    HeldOutDocument,
    encode_document,
    packed_rows,
)
from lit_pretrain.errors import DivergedError
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.tokenizer.tokenizer import Tokenizer

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
