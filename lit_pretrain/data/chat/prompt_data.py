"""PromptData: prompts with checkable answers, for reinforcement learning."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lit_pretrain.batch import Asking, PromptBatch
from lit_pretrain.chat.messages import BadRow, Problem, TrainingRow
from lit_pretrain.chat.render import Rendered
from lit_pretrain.data.chat.post_training_data import PostTrainingData, Settings
from lit_pretrain.data.chat.samples import EncodedSample, pad_rows
from lit_pretrain.errors import UserError


class EncodedPrompt(NamedTuple):
    """A prompt as tokens, with the facts that rewards may use."""

    ids: npt.NDArray[np.int32]
    facts: Mapping[str, Any]


class PromptData(PostTrainingData):
    """Prompts, rendered up to where the assistant begins to write, with their rows.

    Args:
        group_size: Number of answers to each prompt, at least 2, because each is judged by
            comparison with its group.
        updates: Number of optimizer steps that learn from the same answers. From the second on they
            are off-policy, so that the objective's clipping is active. An epoch takes as many times
            more steps.
        max_prompt_tokens: Longer prompts are left out and counted, because a truncated prompt is
            another problem; null takes half of `seq_len`.
        global_batch_rows: Prompts per optimizer step over all devices.
        micro_batch_size: The most prompts whose answers one device processes at once.
        common: The options of all post-training data. `seq_len` limits a prompt with its
            completion.
    """

    kind: ClassVar[str] = "problem"
    unit: ClassVar[str] = "prompts"

    def __init__(
        self,
        *,
        group_size: int = 8,
        updates: int = 1,
        max_prompt_tokens: int | None = None,
        global_batch_rows: int | None = 16,
        micro_batch_size: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(
            global_batch_rows=global_batch_rows, micro_batch_size=micro_batch_size, **common
        )
        if group_size < 2:
            raise UserError(
                f"data.group_size={group_size} must be at least 2: an answer is judged by the"
                " others to its prompt; 8 is usual"
            )
        if updates < 1:
            raise UserError(f"data.updates={updates} must be at least 1")
        self.sequences_per_row = group_size
        self.updates = updates
        self.max_prompt_tokens = (
            max_prompt_tokens if max_prompt_tokens is not None else max(1, self.seq_len // 2)
        )

    def settings(self) -> Settings:
        """Return the limit on the length of prompts."""
        return {"max_prompt_tokens": self.max_prompt_tokens}

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt."""
        return self.max_prompt_tokens

    @property
    def asking(self) -> Asking:
        """How the prompts are to be answered."""
        return Asking(
            self.sequences_per_row, self.updates, self.max_prompt_tokens, self.pad_id,
            self.renderer.stop_ids,
            lambda ids, special=False, before=(): self.tokenizer.decode_after(
                before, ids, skip_special=not special
            ),
        )  # fmt: skip

    @property
    def held_out_at_once(self) -> int:
        """Number of held-out prompts in a batch of one device.

        A held-out prompt is answered once, so the batch takes as many answers as in training.
        """
        return self.micro_batch_size * self.sequences_per_row

    @property
    def provides(self) -> frozenset[str]:
        """What the batches hold: prompts."""
        return frozenset({"prompts"})

    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[EncodedPrompt | BadRow]:
        """Render prompts to tokens."""
        encoded: list[EncodedPrompt | BadRow] = []
        for row in rows:
            assert isinstance(row, Problem)
            try:
                self.renderer.check_shown(row.prompt)
                ids = self.renderer.prompt(row.prompt, tools=row.tools, options=row.options)
                if len(ids) > self.max_prompt_tokens:
                    raise BadRow(
                        "prompt_too_long",
                        f"the prompt has {len(ids)} tokens, and data.max_prompt_tokens allows"
                        f" {self.max_prompt_tokens} (half of data.seq_len by default)",
                        mistake=False,
                    )
                encoded.append(EncodedPrompt(ids, {**row.facts, "answer": row.answer}))
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    def collate(self, samples: Sequence[EncodedSample]) -> list[PromptBatch]:
        """Pad prompts into micro-batches, with their rows."""
        size = self.micro_batch_size
        return [self._micro_batch(samples[i : i + size]) for i in range(0, len(samples), size)]

    def row_note(self, batch: Any, row: int) -> str:
        """Give the checkable answer to a prompt; of a sampled answer nothing is to be said."""
        if not isinstance(batch, PromptBatch):
            return ""
        return f"answer {batch.rows[row].get('answer')!r}"

    def _micro_batch(self, samples: Sequence[EncodedSample]) -> PromptBatch:
        prompts: list[EncodedPrompt | None] = [
            sample.items[0] if sample.items else None for sample in samples
        ]
        sequences = [
            Rendered(prompt.ids, np.zeros(len(prompt.ids), dtype=np.bool_)) if prompt else None
            for prompt in prompts
        ]
        rows = pad_rows(sequences, pad_id=self.pad_id, seq_len=self.seq_len)
        source, index = (
            torch.tensor([sample.source for sample in samples]),
            torch.tensor([sample.number for sample in samples]),
        )
        return PromptBatch(
            *rows, source, index, tuple(dict(prompt.facts) if prompt else {} for prompt in prompts)
        )
