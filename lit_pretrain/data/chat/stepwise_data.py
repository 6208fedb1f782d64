"""StepwiseData: answers in steps, each labelled right or wrong, for process reward models.

Axes: B rows, T tokens.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from lit_pretrain.batch import IGNORE_INDEX, StepwiseBatch
from lit_pretrain.chat.messages import BadRow, StepwiseAnswer, TrainingRow
from lit_pretrain.chat.render import Rendered, truncate
from lit_pretrain.data.chat.encoded_rows import EncodedRows
from lit_pretrain.data.chat.post_training_data import PostTrainingData, Settings
from lit_pretrain.data.chat.row_source import RowTally
from lit_pretrain.data.chat.samples import EncodedSample, pad_rows


class EncodedSteps(NamedTuple):
    """An answer in steps with its prompt as tokens."""

    rendered: Rendered
    """Its mask marks the last token of every separator, where the step is judged."""
    right: tuple[bool, ...]
    """Whether each of the judged steps is right."""

    def last(self) -> "EncodedSteps":
        """Return the answer with the verdict on its last step alone."""
        learned = np.zeros_like(self.rendered.learned)
        learned[np.flatnonzero(self.rendered.learned)[-1]] = True
        return EncodedSteps(self.rendered._replace(learned=learned), self.right[-1:])


class StepwiseData(PostTrainingData):
    """Answers in steps with a label each (TRL's stepwise supervision), for a process reward model.

    The template writes the prompt and the header of the answer; behind it each step and its
    separator follow, each encoded by itself, as whoever asks for a verdict later encodes them. With
    the template `plain` the tokens are those of TRL's PRMTrainer. `seq_len` limits a prompt with
    its steps.

    Args:
        step_separator: What follows every step. The step is judged at its last token. It may be a
            special token of the tokenizer.
        train_on_last_step_only: Learn from the verdict on the last step alone, which makes an
            outcome reward model. Held-out rows keep all verdicts, as in TRL. A row whose last step
            is cut off is left out.
        global_batch_rows: Answers per optimizer step over all devices; micro-batches are
            accumulated to reach it.
        micro_batch_size: The most answers that one device processes at once.
        common: The options of all post-training data.
    """

    kind: ClassVar[str] = "stepwise"
    unit: ClassVar[str] = "answers"

    def __init__(
        self,
        *,
        step_separator: str = "\n",
        train_on_last_step_only: bool = False,
        global_batch_rows: int | None = 32,
        micro_batch_size: int = 8,
        **common: Any,
    ) -> None:
        super().__init__(
            global_batch_rows=global_batch_rows, micro_batch_size=micro_batch_size, **common
        )
        self.step_separator = step_separator
        self.train_on_last_step_only = train_on_last_step_only

    def settings(self) -> Settings:
        """Return what decides where steps end and which of them are learned."""
        return {
            "step_separator": self.step_separator,
            "train_on_last_step_only": int(self.train_on_last_step_only),
        }

    @property
    def provides(self) -> frozenset[str]:
        """What the batches hold: labels and verdicts on steps."""
        return frozenset({"labels", "steps"})

    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[EncodedSteps | BadRow]:
        """Render answers step by step, and truncate them."""
        encoded: list[EncodedSteps | BadRow] = []
        for row in rows:
            assert isinstance(row, StepwiseAnswer)
            try:
                encoded.append(self._encoded(row))
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    def _encoded(self, row: StepwiseAnswer) -> EncodedSteps:
        whole = self.renderer.steps(
            row.prompt,
            row.steps,
            separator=self.step_separator,
            tools=row.tools,
            options=row.options,
        )
        kept = truncate(whole, self.seq_len, self.truncation)
        if kept.cut and kept.learned[0]:  # a bare separator, whose step is cut off
            kept = kept._replace(learned=np.concatenate([[False], kept.learned[1:]]))
        count = int(kept.learned.sum())
        ends = self.truncation == "keep_end"
        right = row.right[len(row.right) - count :] if ends else row.right[:count]
        if self.train_on_last_step_only and not ends and count < len(row.right):
            raise BadRow(
                "too_long",
                "its last step, the only one to be learned, is behind data.seq_len",
                mistake=False,
            )
        return EncodedSteps(kept, right)

    @cached_property
    def encoded(self) -> EncodedRows:
        """All rows, read and encoded at the first access.

        Raises:
            UserError: A file or row is a mistake, or no training row is left.
        """
        rows = super().encoded
        if self.train_on_last_step_only:
            for part in rows.splits["train"]:
                part.items[:] = [item.last() for item in part.items]
        return rows

    def note(self, row: TrainingRow, item: EncodedSteps, tally: RowTally) -> None:
        """Count truncated answers, and those of which a step holds the separator."""
        super().note(row, item, tally)
        assert isinstance(row, StepwiseAnswer)
        if item.rendered.cut:
            tally.noted["truncated"] += 1
        if self.step_separator and any(self.step_separator in step for step in row.steps):
            tally.noted["separator_within_step"] += 1

    def collate(self, samples: Sequence[EncodedSample]) -> list[StepwiseBatch]:
        """Lay out answers, each with its verdicts."""
        size = self.micro_batch_size
        return [self._micro_batch(samples[i : i + size]) for i in range(0, len(samples), size)]

    def _micro_batch(self, samples: Sequence[EncodedSample]) -> StepwiseBatch:
        answers: list[EncodedSteps | None] = [
            sample.items[0] if sample.items else None for sample in samples
        ]
        rows = pad_rows(
            [answer and answer.rendered for answer in answers],
            pad_id=self.pad_id,
            seq_len=self.seq_len,
        )
        right_BT = torch.full_like(rows.tokens_BT, IGNORE_INDEX)
        for b, answer in enumerate(answers):
            if answer is not None:
                places = np.flatnonzero(answer.rendered.learned)
                right_BT[b, torch.from_numpy(places)] = torch.tensor(answer.right).long()
        source, index = (
            torch.tensor([sample.source for sample in samples]),
            torch.tensor([sample.number for sample in samples]),
        )
        return StepwiseBatch(*rows, source, index, right_BT)

    def row_note(self, batch: Any, row: int) -> str:
        """Say how the steps of an answer were judged, in their order."""
        labels = batch.right_BT[row]
        return "steps " + ", ".join(
            "right" if label else "wrong" for label in labels[labels != IGNORE_INDEX].tolist()
        )

    def _labels(self) -> list[bool]:
        return [label for item in self.encoded.items("train") for label in item.right]

    def remarks(self) -> list[str]:
        """Warn if all learned steps have the same label, because they teach nothing else."""
        labels = set(self._labels())
        if len(labels) > 1:
            return []
        return [
            f"every step that is learned is {'right' if True in labels else 'wrong'}: a reward"
            " model learns to say so of any step. Add rows with steps of the other kind"
        ]

    def exposure(self, steps: int) -> str:
        """Describe what a run reads and how many steps are right."""
        labels = self._labels()
        good = sum(labels)
        return (
            super().exposure(steps)
            + f"\n{good:,} steps are right, {len(labels) - good:,} are wrong"
        )
