"""ChatData: conversations for supervised fine-tuning, packed into rows of one length.

Axes: B rows of a micro-batch, T inputs of a row.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.chat.messages import BadRow, TrainingRow
from lit_pretrain.chat.render import Rendered, TrainOn, truncate
from lit_pretrain.data.chat.post_training_data import PostTrainingData, Settings
from lit_pretrain.data.chat.row_source import RowTally
from lit_pretrain.data.chat.samples import EncodedSample
from lit_pretrain.errors import UserError
from lit_pretrain.step_size import StepSize

DEFAULT_BATCH_ROWS = 32
"""Rows of a step that is given in no unit, as for other post-training data."""


def inputs_of(rendered: Rendered) -> int:
    """Count the inputs of a conversation: its last token is only a label."""
    return len(rendered.ids) - 1


def pack_rows(
    packs: Sequence[Sequence[Rendered]], *, pad_id: int, seq_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay conversations end to end: (tokens_BT, labels_BT, doc_BT).

    Each conversation is a document of its own. One of n tokens gives n - 1 inputs and as many
    labels, so that no label ever reaches into the next conversation. The rest of a row is padding,
    a document without labels.

    Args:
        packs: The conversations of each row, together at most `seq_len` inputs.
        pad_id: Token id of the padding.
        seq_len: Inputs per row, T.
    """
    shape = (len(packs), seq_len)
    tokens, labels, doc = (
        np.full(shape, pad_id, np.int64),
        np.full(shape, IGNORE_INDEX, np.int64),
        np.zeros(shape, np.int32),
    )
    for b, pack in enumerate(packs):
        begin = 0
        for number, (ids, learned, *_) in enumerate(pack):
            end = begin + len(ids) - 1
            tokens[b, begin:end], doc[b, begin:end] = ids[:-1], number
            labels[b, begin:end] = np.where(learned[1:], ids[1:], IGNORE_INDEX)
            begin = end
        assert begin <= seq_len, f"a pack has {begin} inputs of {seq_len}"
        doc[b, begin:] = len(pack)
    return torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(doc)


class ChatData(PostTrainingData):
    """Conversations, of which a network learns what the assistant says.

    A row of a batch holds several conversations, packed by best fit, which do not attend to each
    other. `global_batch_rows` and `micro_batch_size` count such rows.

    Args:
        train_on: What is learned. assistant: every message of the assistant. last: its last
            message. completion: everything after the prompt. all: every token.
        packing: best_fit packs conversations into rows; none gives each a row of its own.
        global_batch_tokens: Tokens per optimizer step over all devices, in place of
            `global_batch_rows`.
        global_batch_rows: Rows per optimizer step over all devices; micro-batches are accumulated
            to reach it. 32 unless it or `global_batch_tokens` is given.
        common: The options of all post-training data.
    """

    kind: ClassVar[str] = "conversation"

    def __init__(
        self,
        *,
        train_on: TrainOn = "assistant",
        packing: Literal["best_fit", "none"] = "best_fit",
        global_batch_tokens: int | None = None,
        global_batch_rows: int | None = None,
        **common: Any,
    ) -> None:
        if global_batch_tokens is None and global_batch_rows is None:
            global_batch_rows = DEFAULT_BATCH_ROWS
        super().__init__(global_batch_rows=global_batch_rows, **common)
        if global_batch_tokens is not None and global_batch_rows is not None:
            raise UserError(
                "give the size of a step either as data.global_batch_tokens or as"
                " data.global_batch_rows, not both (null takes one of a config back)"
            )
        if train_on not in ("assistant", "last", "all", "completion"):
            raise UserError(
                f"data.train_on={train_on!r} must be assistant, last, completion or all"
            )
        if packing not in ("best_fit", "none"):
            raise UserError(f"data.packing={packing!r} must be best_fit or none")
        self.train_on: TrainOn = train_on
        self.packing = packing
        self.global_batch_tokens = global_batch_tokens

    @property
    def step_size(self) -> StepSize:
        """Size of an optimizer step over all devices."""
        if self.global_batch_tokens is None:
            return super().step_size
        return StepSize(self.global_batch_tokens, self.seq_len)

    def settings(self) -> Settings:
        """Return what is learned and how rows are packed."""
        return {"train_on": self.train_on, "packing": self.packing}

    @property
    def provides(self) -> frozenset[str]:
        """What the batches hold: rows to learn as they are."""
        return frozenset({"labels"})

    @property
    def capacity(self) -> int | None:
        """Inputs of a packed row; None without packing."""
        return self.seq_len if self.packing == "best_fit" else None

    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[Rendered | BadRow]:
        """Render conversations and truncate each to `seq_len` inputs and the label of the last."""
        encoded: list[Rendered | BadRow] = []
        for rendered in self.renderer.render(rows, train_on=self.train_on):  # type: ignore[arg-type]
            try:
                encoded.append(
                    rendered
                    if isinstance(rendered, BadRow)
                    else truncate(rendered, self.seq_len + 1, self.truncation)
                )
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    def places(self, item: Rendered) -> int:
        """Count the inputs of a row that a conversation takes."""
        return inputs_of(item)

    def note(self, row: TrainingRow, item: Rendered, tally: RowTally) -> None:
        """Count truncated conversations, too."""
        super().note(row, item, tally)
        tally.noted.update(item.notes)
        if item.cut:
            tally.noted["truncated"] += 1

    def collate(self, samples: Sequence[EncodedSample]) -> list[Batch]:
        """Pack conversations into micro-batches of rows."""
        tensors = pack_rows(
            [sample.items for sample in samples], pad_id=self.pad_id, seq_len=self.seq_len
        )
        facts = (
            torch.tensor([sample.source for sample in samples]),
            torch.tensor([sample.number for sample in samples]),
        )
        return [
            Batch(*parts)
            for parts in zip(
                *(torch.split(x, self.micro_batch_size) for x in (*tensors, *facts)), strict=True
            )
        ]

    def batch_line(self, devices: int) -> str:
        """Describe the size of a step in words."""
        division = self.divide(devices)[0].text(self.unit, self.seq_len)
        return f"{self.batch_tokens.sizes[0]:,} tokens a step = {division}"

    def exposure(self, steps: int) -> str:
        """Describe what a run reads: rows, packs, and how much of them is learned."""
        items = self.encoded.items("train")
        taken, learned = (
            sum(map(inputs_of, items)),
            sum(int(item.learned[1:].sum()) for item in items),
        )
        first = self.samples.order.first(1)
        full = sum(
            inputs_of(item) for n in range(first) for item in self.samples.train(n).items
        ) / (first * self.seq_len)
        return "\n".join(
            [
                *self.row_lines(),
                (
                    f"template {self.template.name} ({self.template.hash[:12]}), train_on"
                    f" {self.train_on}: {learned:,} of {taken:,} tokens are learned"
                ),
                (
                    f"{len(items):,} conversations in {first:,} rows of {self.seq_len} an epoch,"
                    f" {full:.1%} full"
                ),
            ]
        )
