"""ChatData: conversations for supervised fine-tuning, packed."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Optional

import numpy as np
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.chat.messages import BadRow, TrainingRow
from lit_pretrain.chat.render import Rendered, TrainOn, truncate
from lit_pretrain.data.chat.post_training_data import PostTrainingData
from lit_pretrain.data.chat.row_source import RowTally
from lit_pretrain.data.chat.samples import EncodedSample
from lit_pretrain.errors import UserError
from lit_pretrain.step_size import StepSize

# Packed: conversations laid end to end in rows of one length, each a document of its own.


def places(rendered: Rendered) -> int:
    """Places that a conversation takes: its last token is a label only."""
    return len(rendered.ids) - 1


def pack_rows(
    packs: Sequence[Sequence[Rendered]], *, pad_id: int, seq_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out conversations: (tokens, labels, doc), each (B, T).

    A conversation of n tokens gives n - 1 inputs and as many labels, so that no label ever reaches
    into the next one. What is left of a row is padding, a document of its own without labels.

    Args:
        packs: Of each row its conversations; no row has more than `seq_len` places.
        pad_id: What fills up.
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
        for number, (ids, learned, _) in enumerate(pack):
            end = begin + len(ids) - 1
            tokens[b, begin:end], doc[b, begin:end] = ids[:-1], number
            labels[b, begin:end] = np.where(learned[1:], ids[1:], IGNORE_INDEX)
            begin = end
        assert begin <= seq_len, f"a pack has {begin} places of {seq_len}"
        doc[b, begin:] = len(pack)
    return torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(doc)


class ChatData(PostTrainingData):
    """Conversations, of which what the assistant says is learned.

    A row of a batch holds several conversations, packed by best fit, that do not see each other; a
    row here is what `global_batch_rows` and `micro_batch_size` count.

    Args:
        train_on: What is learned. assistant: every message of the assistant. last: its last one.
            completion: all that follows the prompt. all: every token.
        packing: best_fit, or none: a conversation a row.
        global_batch_tokens: Places per optimizer step over all devices, in place of
            `global_batch_rows`.
        global_batch_rows: Rows per optimizer step over all devices; micro-batches are accumulated
            to reach it.
        common: What all post-training data take.
    """

    kind: ClassVar[str] = "conversation"

    def __init__(
        self,
        *,
        train_on: TrainOn = "assistant",
        packing: Literal["best_fit", "none"] = "best_fit",
        global_batch_tokens: Optional[int] = None,
        global_batch_rows: Optional[int] = None,
        **common: Any,
    ) -> None:
        super().__init__(global_batch_rows=global_batch_rows, **common)
        if (global_batch_tokens is None) == (global_batch_rows is None):
            raise UserError(
                "give the size of a step either as data.global_batch_tokens or as"
                " data.global_batch_rows, one of them"
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
        """Size of an optimizer step."""
        if self.global_batch_tokens is None:
            return super().step_size
        return StepSize(self.global_batch_tokens, self.seq_len)

    def settings(self) -> dict[str, Any]:
        """What is learned, and how rows are made."""
        return {"train_on": self.train_on, "packing": self.packing}

    @property
    def provides(self) -> frozenset[str]:
        """Labels."""
        return frozenset({"labels"})

    @property
    def capacity(self) -> Optional[int]:
        """Inputs of a row."""
        return self.seq_len if self.packing == "best_fit" else None

    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[Rendered | BadRow]:
        """Rendered and cut to what a row takes: `seq_len` inputs and the label of the last."""
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

    def places(self, item: Any) -> int:
        """Its inputs."""
        return places(item)

    def note(self, row: TrainingRow, item: Any, tally: RowTally) -> None:
        """Count what was cut, too."""
        super().note(row, item, tally)
        if item.cut:
            tally.noted["truncated"] += 1

    def collate(self, samples: Sequence[EncodedSample]) -> list[Batch]:
        """Packed rows."""
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
        """Describe a step in words."""
        division = self.divide(devices).text(self.unit, self.seq_len)
        return f"{self.tokens_per_step:,} tokens a step = {division}"

    def exposure(self, steps: int) -> str:
        """What the run reads: rows, packs, and how much of them is learned."""
        items = self.encoded.items("train")
        taken, learned = sum(map(places, items)), sum(int(item.learned[1:].sum()) for item in items)
        first = self.samples.order.first(1)
        full = sum(places(item) for n in range(first) for item in self.samples.train(n).items) / (
            first * self.seq_len
        )
        return "\n".join(
            [
                *self.encoded.lines(),
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
