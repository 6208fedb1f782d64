"""KTOData: answers that were judged one by one, for KTO."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Optional

import torch

from lit_pretrain.batch import LabelledBatch
from lit_pretrain.data.messages import BadRow, Conversation, Message, Row, Verdict
from lit_pretrain.data.padded import pad_rows
from lit_pretrain.data.post_training import PostTrainingData
from lit_pretrain.data.render import Rendered, truncate
from lit_pretrain.data.row_source import Tally
from lit_pretrain.data.samples import Sample
from lit_pretrain.errors import UserError


class Judged(NamedTuple):
    """An answer with its prompt as it is read by the network, and what another answer to the prompt is made from."""

    rendered: Rendered
    verdict: Verdict


class KTOData(PostTrainingData):
    """Answers with a verdict, desirable or not.

    A micro-batch of N holds N answers to their prompts and N to other prompts of the same micro-batch, from which KTO estimates the
    divergence from the reference: so N decides the loss, and must be above 1. A mismatched answer is rendered with its new prompt.

    Args:
        global_batch_rows: Answers per optimizer step over all devices; micro-batches are
            accumulated to reach it.
        micro_batch_size: Answers that one device processes at once, at least 2.
        common: What all post-training data take.
    """

    kind: ClassVar[str] = "verdict"
    unit: ClassVar[str] = "answers"
    sequences_per_row: int = 2
    micro_batch_is_fixed: ClassVar[bool] = True

    def __init__(self, *, global_batch_rows: Optional[int] = 32, micro_batch_size: int = 8, **common: Any) -> None:
        super().__init__(global_batch_rows=global_batch_rows, micro_batch_size=micro_batch_size, **common)
        if micro_batch_size < 2:
            raise UserError(
                f"data.micro_batch_size={micro_batch_size}: KTO compares the answers of a micro-batch, so it must be at least 2"
            )

    def settings(self) -> dict[str, Any]:
        """The micro-batch, because it decides the loss."""
        return {"micro_batch_size": self.micro_batch_size}

    @property
    def provides(self) -> frozenset[str]:
        """Labels and verdicts. A reference column says nothing about mismatched answers, so it is not passed on."""
        return frozenset({"labels", "verdicts"})

    def encode(self, rows: Sequence[Row]) -> Sequence[Judged | BadRow]:
        """Answers rendered and cut."""
        verdicts = [row for row in rows if isinstance(row, Verdict)]
        whole = [self._conversation(row, row.completion) for row in verdicts]
        encoded: list[Judged | BadRow] = []
        for row, rendered in zip(verdicts, self.renderer.render(whole, train_on="completion"), strict=True):
            try:
                encoded.append(rendered if isinstance(rendered, BadRow) else Judged(truncate(rendered, self.seq_len, self.truncation), row))
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    @staticmethod
    def _conversation(row: Verdict, completion: tuple[Message, ...]) -> Conversation:
        return Conversation(messages=row.prompt + completion, prompt=len(row.prompt), tools=row.tools)

    def note(self, row: Row, item: Judged, tally: Tally) -> None:
        """Count what was cut, too."""
        super().note(row, item, tally)
        if item.rendered.cut:
            tally.noted["truncated"] += 1

    def collate(self, samples: Sequence[Sample]) -> list[LabelledBatch]:
        """Answers, and in the second half of the rows each prompt with the answer before it."""
        size = self.micro_batch_size
        return [self._micro_batch(samples[i : i + size]) for i in range(0, len(samples), size)]

    def _micro_batch(self, samples: Sequence[Sample]) -> LabelledBatch:
        answers: list[Optional[Judged]] = [sample.items[0] if sample.items else None for sample in samples]
        present = [answer for answer in answers if answer is not None]
        twins = iter(self._mismatched(present))
        sequences = [answer and answer.rendered for answer in answers] + [next(twins) if answer else None for answer in answers]
        rows = pad_rows(sequences, pad_id=self.pad_id, seq_len=self.seq_len)
        source, index = [sample.source for sample in samples] * 2, [sample.number for sample in samples] * 2
        desirable = [answer is not None and answer.verdict.desirable for answer in answers] * 2
        return LabelledBatch(*rows, torch.tensor(source), torch.tensor(index), torch.tensor(desirable))

    def _mismatched(self, present: Sequence[Judged]) -> list[Optional[Rendered]]:
        """Each prompt with the answer of the row before it. One of which the answer is cut off altogether holds nothing."""
        others = [present[i - 1].verdict.completion for i in range(len(present))]
        whole = [self._conversation(item.verdict, other) for item, other in zip(present, others, strict=True)]
        twins: list[Optional[Rendered]] = []
        for rendered in self.renderer.render(whole, train_on="completion"):
            if isinstance(rendered, BadRow):
                raise UserError(f"the mismatched answers of KTO cannot be rendered: {rendered}")
            try:
                # Not dropped: that would depend on the neighbour. What does not fit is cut.
                twins.append(truncate(rendered, self.seq_len, "keep_start" if self.truncation == "drop" else self.truncation))
            except BadRow:
                twins.append(None)
        return twins

    def exposure(self, steps: int) -> str:
        """What the run reads, and how the verdicts are shared out."""
        items = self.encoded.items("train")
        good = sum(item.verdict.desirable for item in items)
        return super().exposure(steps) + f"\n{good:,} answers are desirable, {len(items) - good:,} are not"
