"""Preference data: pairs of answers (PreferenceData), or answers with a verdict each (KTOData).

Axes: B rows of a micro-batch, of which pairs take two; 2 is (chosen, rejected).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from lit_pretrain.batch import LabelledBatch, PreferenceBatch
from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    JudgedAnswer,
    Message,
    Preference,
    TrainingRow,
)
from lit_pretrain.chat.render import Rendered, truncate
from lit_pretrain.data.chat.post_training_data import PostTrainingData, Settings
from lit_pretrain.data.chat.row_source import ROW_SPLITS, RowTally
from lit_pretrain.data.chat.samples import EncodedSample, pad_rows
from lit_pretrain.errors import UserError


class EncodedPair(NamedTuple):
    """Both answers of a pair as tokens, each with the prompt."""

    chosen: Rendered
    rejected: Rendered
    ref_logp: tuple[float, float] | None
    margin: float | None


class PreferenceData(PostTrainingData):
    """Pairs of a chosen and a rejected answer to the same prompt, of which the answers count.

    For DPO, SimPO, ORPO, CPO and reward models. `global_batch_rows` and `micro_batch_size` count
    pairs; `seq_len` limits a prompt with one of its answers.

    Args:
        global_batch_rows: Pairs per optimizer step over all devices; micro-batches are accumulated
            to reach it.
        micro_batch_size: The most pairs that one device processes at once.
        common: The options of all post-training data.
    """

    kind: ClassVar[str] = "preference"
    unit: ClassVar[str] = "pairs"
    sequences_per_row: int = 2

    def __init__(
        self, *, global_batch_rows: int | None = 32, micro_batch_size: int = 4, **common: Any
    ) -> None:
        super().__init__(
            global_batch_rows=global_batch_rows, micro_batch_size=micro_batch_size, **common
        )

    @cached_property  # a plain property would look at every row for every batch
    def provides(self) -> frozenset[str]:
        """What the batches hold: labels, pairs, and the columns that every row has."""
        items = [item for split in ROW_SPLITS for item in self.encoded.items(split)]
        columns = {
            "ref_logp": all(item.ref_logp is not None for item in items),
            "margin": all(item.margin is not None for item in items),
        }
        return frozenset({"labels", "pairs"} | {name for name, there in columns.items() if there})

    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[EncodedPair | BadRow]:
        """Render and truncate both answers; a pair is dropped if one of them is."""
        pairs = [row for row in rows if isinstance(row, Preference)]
        sides = []
        for name in ("chosen", "rejected"):
            whole = [
                Conversation(
                    messages=row.prompt + getattr(row, name),
                    prompt=len(row.prompt),
                    tools=row.tools,
                    options=row.options,
                )
                for row in pairs
            ]
            sides.append(self.renderer.render(whole, train_on="completion"))
        encoded: list[EncodedPair | BadRow] = []
        for row, chosen, rejected in zip(pairs, *sides, strict=True):
            try:
                both = []
                for side in (chosen, rejected):
                    if isinstance(side, BadRow):
                        raise side
                    both.append(truncate(side, self.seq_len, self.truncation))
                if np.array_equal(both[0].ids, both[1].ids):
                    raise BadRow(
                        "same_answers",
                        "chosen and rejected are the same tokens"
                        + (" after the cut to data.seq_len" if both[0].cut or both[1].cut else ""),
                        mistake=False,
                    )
                encoded.append(EncodedPair(both[0], both[1], row.ref_logp, row.margin))
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    def note(self, row: TrainingRow, item: EncodedPair, tally: RowTally) -> None:
        """Count truncated pairs, too."""
        super().note(row, item, tally)
        tally.noted.update({*item.chosen.notes, *item.rejected.notes})
        if item.chosen.cut or item.rejected.cut:
            tally.noted["truncated"] += 1

    def collate(self, samples: Sequence[EncodedSample]) -> list[PreferenceBatch]:
        """Lay out pairs, the chosen answers in the first half of the rows of each micro-batch."""
        size, provides = self.micro_batch_size, self.provides
        return [
            self._micro_batch(samples[i : i + size], provides) for i in range(0, len(samples), size)
        ]

    def _micro_batch(
        self, samples: Sequence[EncodedSample], provides: frozenset[str]
    ) -> PreferenceBatch:
        pairs: list[EncodedPair | None] = [
            sample.items[0] if sample.items else None for sample in samples
        ]
        sequences = [pair and pair.chosen for pair in pairs] + [
            pair and pair.rejected for pair in pairs
        ]
        rows = pad_rows(sequences, pad_id=self.pad_id, seq_len=self.seq_len)
        ref = margin = None
        if "ref_logp" in provides:
            known = [pair.ref_logp or (0.0, 0.0) if pair else (0.0, 0.0) for pair in pairs]
            ref = torch.tensor([k[0] for k in known] + [k[1] for k in known], dtype=torch.float32)
        if "margin" in provides:
            margin = torch.tensor(
                [pair.margin or 0.0 if pair else 0.0 for pair in pairs], dtype=torch.float32
            )
        source, index = (
            [sample.source for sample in samples] * 2,
            [sample.number for sample in samples] * 2,
        )
        return PreferenceBatch(*rows, torch.tensor(source), torch.tensor(index), ref, margin)

    def row_note(self, batch: Any, row: int) -> str:
        """Say which answer of its pair a row holds."""
        return "chosen" if row < len(batch.index_B) // 2 else "rejected"

    def reference_batches(self) -> list[PreferenceBatch]:
        """Return every pair once, held-out pairs too, in a fixed order, for a reference network."""
        pairs = [item for split in ROW_SPLITS for item in self.encoded.items(split)]
        return self.collate([EncodedSample(n, 0, (pair,)) for n, pair in enumerate(pairs)])

    def take_reference(self, logp_B2: torch.Tensor) -> None:
        """Store the reference's log-probabilities of all pairs, in `reference_batches`' order."""
        sources = [held for split in ROW_SPLITS for held in self.encoded.splits[split]]
        assert len(logp_B2) == sum(len(held.items) for held in sources), "a column of other pairs"
        known = iter(logp_B2.tolist())
        for held in sources:
            held.items[:] = [pair._replace(ref_logp=tuple(next(known))) for pair in held.items]
        self.__dict__.pop("provides", None)

    def exposure(self, steps: int) -> str:
        """Describe what a run reads and how long the answers are.

        A difference in length is the first thing that a network learns from pairs.
        """
        items = self.encoded.items("train")
        lengths = [
            sum(int(getattr(item, side).learned.sum()) for item in items) / len(items)
            for side in ("chosen", "rejected")
        ]
        return (
            super().exposure(steps)
            + f"\nanswers have {lengths[0]:.1f} (chosen) and {lengths[1]:.1f} (rejected) tokens on"
            " average"
        )


class EncodedVerdict(NamedTuple):
    """An answer with its prompt as tokens, and the messages from which others are rendered."""

    rendered: Rendered
    answer: JudgedAnswer


class KTOData(PostTrainingData):
    """Answers with a verdict, desirable or not, for KTO.

    A micro-batch of N holds N answers to their own prompts and N answers to other prompts of the
    same micro-batch, from which KTO estimates the divergence from the reference. So N decides the
    loss and must be above 1. A mismatched answer is rendered again with its new prompt.

    Args:
        global_batch_rows: Answers per optimizer step over all devices; micro-batches are
            accumulated to reach it.
        micro_batch_size: Answers that one device processes at once, at least 2.
        common: The options of all post-training data.
    """

    kind: ClassVar[str] = "verdict"
    unit: ClassVar[str] = "answers"
    sequences_per_row: int = 2
    micro_batch_is_fixed: ClassVar[bool] = True

    def __init__(
        self, *, global_batch_rows: int | None = 32, micro_batch_size: int = 8, **common: Any
    ) -> None:
        super().__init__(
            global_batch_rows=global_batch_rows, micro_batch_size=micro_batch_size, **common
        )
        if micro_batch_size < 2:
            raise UserError(
                f"data.micro_batch_size={micro_batch_size}: KTO compares the answers of a"
                " micro-batch, so it must be at least 2"
            )

    def settings(self) -> Settings:
        """Return the micro-batch size, because it decides the loss."""
        return {"micro_batch_size": self.micro_batch_size}

    @property
    def provides(self) -> frozenset[str]:
        """What the batches hold: labels and verdicts.

        A reference column is not among them, because it lacks the mismatched answers.
        """
        return frozenset({"labels", "verdicts"})

    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[EncodedVerdict | BadRow]:
        """Render and truncate answers with their prompts."""
        verdicts = [row for row in rows if isinstance(row, JudgedAnswer)]
        whole = [self._conversation(row, row.completion) for row in verdicts]
        encoded: list[EncodedVerdict | BadRow] = []
        for row, rendered in zip(
            verdicts, self.renderer.render(whole, train_on="completion"), strict=True
        ):
            try:
                encoded.append(
                    rendered
                    if isinstance(rendered, BadRow)
                    else EncodedVerdict(truncate(rendered, self.seq_len, self.truncation), row)
                )
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    @staticmethod
    def _conversation(row: JudgedAnswer, completion: tuple[Message, ...]) -> Conversation:
        return Conversation(
            messages=row.prompt + completion,
            prompt=len(row.prompt),
            tools=row.tools,
            options=row.options,
        )

    def note(self, row: TrainingRow, item: EncodedVerdict, tally: RowTally) -> None:
        """Count truncated answers, too."""
        super().note(row, item, tally)
        tally.noted.update(item.rendered.notes)
        if item.rendered.cut:
            tally.noted["truncated"] += 1

    def collate(self, samples: Sequence[EncodedSample]) -> list[LabelledBatch]:
        """Lay out answers, and in the second half each prompt with the answer of the row before."""
        size = self.micro_batch_size
        return [self._micro_batch(samples[i : i + size]) for i in range(0, len(samples), size)]

    def _micro_batch(self, samples: Sequence[EncodedSample]) -> LabelledBatch:
        answers: list[EncodedVerdict | None] = [
            sample.items[0] if sample.items else None for sample in samples
        ]
        present = [answer for answer in answers if answer is not None]
        twins = iter(self._mismatched(present))
        sequences = [answer and answer.rendered for answer in answers] + [
            next(twins) if answer else None for answer in answers
        ]
        rows = pad_rows(sequences, pad_id=self.pad_id, seq_len=self.seq_len)
        source, index = (
            [sample.source for sample in samples] * 2,
            [sample.number for sample in samples] * 2,
        )
        desirable = [answer is not None and answer.answer.desirable for answer in answers] * 2
        return LabelledBatch(
            *rows, torch.tensor(source), torch.tensor(index), torch.tensor(desirable)
        )

    def row_note(self, batch: Any, row: int) -> str:
        """Say how the answer was judged, or that it belongs to another prompt."""
        if row >= len(batch.index_B) // 2:
            return "prompt with the answer of another row"
        return "desirable" if batch.desirable_B[row] else "undesirable"

    def _mismatched(self, present: Sequence[EncodedVerdict]) -> list[Rendered | None]:
        """Render each prompt with the answer of the row before; None if none of it is left."""
        others = [present[i - 1].answer.completion for i in range(len(present))]
        whole = [
            self._conversation(item.answer, other)
            for item, other in zip(present, others, strict=True)
        ]
        twins: list[Rendered | None] = []
        for rendered in self.renderer.render(whole, train_on="completion"):
            if isinstance(rendered, BadRow):
                raise UserError(f"the mismatched answers of KTO cannot be rendered: {rendered}")
            try:
                # Truncate where the config says drop: whether a row stays must not depend on its
                # neighbour.
                twins.append(
                    truncate(
                        rendered,
                        self.seq_len,
                        "keep_start" if self.truncation == "drop" else self.truncation,
                    )
                )
            except BadRow:
                twins.append(None)
        return twins

    def remarks(self) -> list[str]:
        """Warn if all verdicts are the same, because KTO learns from their contrast."""
        good = {item.answer.desirable for item in self.encoded.items("train")}
        if len(good) > 1:
            return []
        return [
            f"every answer is {'desirable' if True in good else 'undesirable'}: KTO learns from the"
            " contrast of both, and all answers alike move one way only. Add rows of the other"
            " verdict, or fine-tune on the good ones with ChatData"
        ]

    def exposure(self, steps: int) -> str:
        """Describe what a run reads and how many answers are desirable."""
        items = self.encoded.items("train")
        good = sum(item.answer.desirable for item in items)
        return (
            super().exposure(steps)
            + f"\n{good:,} answers are desirable, {len(items) - good:,} are not"
        )
