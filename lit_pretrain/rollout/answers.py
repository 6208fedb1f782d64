"""Answers: prompts answered within a step, rewarded, and batched for the objective.

Axes: B rows, T tokens, N sampled tokens.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Asking, PolicyBatch, PromptBatch
from lit_pretrain.chat.render import Rendered
from lit_pretrain.data.chat.samples import pad_rows
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.reward import Rewards
from lit_pretrain.rollout.rollout import BuiltIn, Rollout, RolloutEngine

Advantages = Callable[[Tensor, Tensor], Tensor]
"""(reward_B, group_B) -> advantage_B."""
HELD_OUT = -1
"""Stands for the step in the seeds of a validation: it asks the same at every step, so that two
validations differ by their weights.
"""
SHOWN = 4
"""Answers of a rollout that are kept as text."""


class Answer(NamedTuple):
    """One sampled answer."""

    ids: npt.NDArray[np.int32]
    logp: npt.NDArray[np.float32]
    """Log-probability of each token under the policy that sampled it."""
    truncated: bool
    rewards: tuple[float, ...]
    """The value of each reward."""


class Shown(NamedTuple):
    """An answer as people read it."""

    prompt: str
    completion: str
    right: str
    """The answer of the data row."""
    reward: float
    truncated: bool


class AnswersState(TypedDict):
    """The answers of a rollout in a checkpoint: tensors and primitives, one item an answer."""

    step: int
    """The first step that learns from them."""
    samples: list[int]
    """Numbers of the prompts, each with a group of answers."""
    ids: list[Tensor]
    logp: list[Tensor]
    truncated: list[bool]
    rewards: list[list[float]]


class Answers:
    """Answer prompts, and keep the answers for as long as the run learns from them.

    A rollout is a function of (seed, step, sample number, number within the group) and the weights:
    neither ranks nor micro-batches change what is sampled. With several updates per rollout its
    answers are part of a checkpoint.

    Args:
        settings: How to answer, and what answers are worth.
        asking: How the data wants its prompts answered.
        seed: Of the samples.
        seq_len: Longest prompt with its answer.
    """

    def __init__(self, settings: Rollout, asking: Asking, *, seed: int, seq_len: int) -> None:
        self.settings = settings
        self.asking = asking
        self.seed = seed
        self.seq_len = seq_len
        self.rewards = Rewards(settings.rewards)
        self.engine: RolloutEngine = settings.engine or BuiltIn()
        self.own_names = tuple(f"rewards/{name}" for name in self.rewards.names)
        self.metric_names = (*self.own_names, "rollout_seconds")
        """What a rollout reports beside the objective."""
        self.held_out_names = (
            "reward",
            *self.own_names,
            "completion_tokens",
            "truncated",
            "entropy",
        )
        """What a validation reports."""
        self.shown: list[Shown] = []
        """Some answers of the last rollout."""
        self._kept: dict[int, list[Answer]] = {}
        self._kept_step = -1
        self._weights_step = -1
        """The optimizer step whose weights the engine holds."""

    # ------------------------------------------------------------------ training

    def batches(
        self, net: Transformer, prompts: Sequence[PromptBatch], step: int, advantages: Advantages
    ) -> tuple[list[PolicyBatch], list[dict[str, Tensor]]]:
        """Answer a step's prompts if the step begins a rollout, and batch the answers.

        Returns micro-batches, and the metrics of each.

        Args:
            net: The policy.
            prompts: Micro-batches of prompts.
            step: The optimizer step.
            advantages: The objective's.
        """
        began = time.perf_counter()
        first = step - step % self.asking.updates
        if step == first or self._kept_step != first:
            assert step == first, (
                f"the checkpoint of step {step} lacks the answers that were sampled at step {first}"
            )
            numbers = [int(n) for batch in prompts for n in batch.index_B.tolist()]
            found = self._answer(net, _rows_of(prompts), step, self.asking.group_size)
            self._kept = {n: answers for n, answers in zip(numbers, found, strict=True) if n >= 0}
            self._kept_step = first
        seconds = time.perf_counter() - began
        policy_batches, metrics = [], []
        for i, batch in enumerate(prompts):
            policy, values = self._policy_batch(batch, advantages)
            policy_batches.append(policy)
            values["rollout_seconds"] = torch.tensor(
                [seconds, 1.0] if i == 0 else [0.0, 0.0], device=batch.tokens_BT.device
            )
            metrics.append(values)
        return policy_batches, metrics

    def on_policy(self, step: int) -> bool:
        """Tell whether the network as it is sampled the answers of a step."""
        return step % self.asking.updates == 0 and self.engine.same_policy

    def _policy_batch(
        self, batch: PromptBatch, advantages: Advantages
    ) -> tuple[PolicyBatch, dict[str, Tensor]]:
        """Batch the answers to the prompts of a micro-batch; those to one prompt stand together."""
        device, group = batch.tokens_BT.device, self.asking.group_size
        answers: list[Answer | None] = []
        for n in batch.index_B.tolist():
            answers += self._kept[n] if n >= 0 else [None] * group
        rows = [
            answer and self._row(self._prompt(batch, i // group), answer)
            for i, answer in enumerate(answers)
        ]
        tokens_BT, labels_BT, doc_BT = pad_rows(
            rows, pad_id=self.asking.pad_id, seq_len=self.seq_len
        )
        old_BT = torch.zeros(labels_BT.shape)
        for b, answer in enumerate(answers):
            if answer is not None:
                begin = len(self._prompt(batch, b // group)) - 1
                old_BT[b, begin : begin + len(answer.ids)] = torch.from_numpy(answer.logp)
        old_BT = torch.where(labels_BT != IGNORE_INDEX, old_BT, 0.0)
        reward_B = torch.tensor(
            [0.0 if answer is None else self.rewards.total(answer.rewards) for answer in answers]
        )
        group_B = torch.arange(len(batch.index_B)).repeat_interleave(group)
        policy_batch = PolicyBatch(
            tokens_BT, labels_BT, doc_BT, batch.source_B.cpu().repeat_interleave(group),
            batch.index_B.cpu().repeat_interleave(group),
            advantages(reward_B, group_B), reward_B, group_B,
            torch.tensor([answer is not None and answer.truncated for answer in answers]),
            old_BT,
        )  # fmt: skip
        moved = PolicyBatch(*(field.to(device) for field in policy_batch if field is not None))
        return moved, {
            name: value.to(device) for name, value in self._reward_means(answers).items()
        }

    def _row(self, prompt: Sequence[int], answer: Answer) -> Rendered:
        learned = np.zeros(len(prompt) + len(answer.ids), dtype=np.bool_)
        learned[len(prompt) :] = not (answer.truncated and self.settings.mask_truncated)
        return Rendered(np.concatenate([np.asarray(prompt, dtype=np.int32), answer.ids]), learned)

    # ------------------------------------------------------------------ validation

    def measure(
        self, net: Transformer, prompts: Sequence[PromptBatch], step: int
    ) -> list[dict[str, Tensor]]:
        """Answer held-out prompts once each, and return the metrics of each micro-batch.

        The loss is minus the reward.
        """
        found = self._answer(net, _rows_of(prompts), HELD_OUT, 1, weights_step=step)
        answers = iter(group[0] if group else None for group in found)
        return [
            self._held_out_means(batch, [next(answers) for _ in range(len(batch.index_B))])
            for batch in prompts
        ]

    def _held_out_means(
        self, batch: PromptBatch, answers: Sequence[Answer | None]
    ) -> dict[str, Tensor]:
        device = batch.tokens_BT.device
        there = [answer for answer in answers if answer is not None]
        totals = [
            0.0 if answer is None else self.rewards.total(answer.rewards) for answer in answers
        ]
        counts = torch.tensor([answer is not None for answer in answers], device=device).long()
        means = {
            "reward": _sum_and_count([self.rewards.total(answer.rewards) for answer in there]),
            "completion_tokens": _sum_and_count([float(len(answer.ids)) for answer in there]),
            "truncated": _sum_and_count([float(answer.truncated) for answer in there]),
            "entropy": _sum_and_count([-float(value) for answer in there for value in answer.logp]),
            **self._reward_means(answers),
        }
        rows = {
            "loss_B": -torch.tensor(totals, device=device),
            "terms_B": counts,
            "tokens_B": counts,
        }
        return rows | {name: value.to(device) for name, value in means.items()}

    def _reward_means(self, answers: Sequence[Answer | None]) -> dict[str, Tensor]:
        there = [answer for answer in answers if answer is not None]
        return {
            name: _sum_and_count([answer.rewards[i] for answer in there])
            for i, name in enumerate(self.own_names)
        }

    # ------------------------------------------------------------------ the rollout itself

    def _answer(
        self,
        net: Transformer,
        rows: Sequence[tuple[PromptBatch, int]],
        step: int,
        count: int,
        *,
        weights_step: int | None = None,
    ) -> list[list[Answer]]:
        """Sample `count` answers to each prompt; none for rows that only fill up a batch.

        Args:
            net: The policy.
            rows: A micro-batch of prompts, and a row in it.
            step: The step in the seeds of the samples.
            count: Answers to each prompt.
            weights_step: The optimizer step of the weights; None: `step`.
        """
        prompts = [(batch, b) for batch, b in rows if int(batch.index_B[b]) >= 0]
        ids = [self._prompt(batch, b) for batch, b in prompts]
        numbers = [int(batch.index_B[b]) for batch, b in prompts]
        if weights_step is None:
            weights_step = step
        if weights_step != self._weights_step:
            self.engine.take(net)
            self._weights_step = weights_step
        answers: list[Answer] = []
        if prompts:
            completions = self.engine.generate(
                [prompt for prompt in ids for _ in range(count)],
                sampling=self.settings.sampling(self.asking.stop_ids),
                seeds=[row_seed(self.seed, step, n, g) for n in numbers for g in range(count)],
            )
            lengths = completions.mask_BN.sum(dim=1).tolist()
            tokens, logp = completions.tokens_BN.cpu().numpy(), completions.logp_BN.cpu().numpy()
            shown: list[Shown] = []
            for i, length in enumerate(lengths):
                (batch, b), number = prompts[i // count], numbers[i // count]
                drawn = tokens[i, :length], logp[i, :length]
                answer, text = self._judged(
                    batch.rows[b], ids[i // count], *drawn, step, number, i % count
                )
                answers.append(answer)
                if len(shown) < SHOWN:
                    shown.append(text)
            self.shown = shown
        groups = iter([answers[i : i + count] for i in range(0, len(answers), count)])
        return [next(groups) if int(batch.index_B[b]) >= 0 else [] for batch, b in rows]

    def _judged(
        self,
        row: Mapping[str, Any],
        prompt: Sequence[int],
        ids: npt.NDArray[Any],
        logp: npt.NDArray[Any],
        step: int,
        sample: int,
        g: int,
    ) -> tuple[Answer, Shown]:
        """Decode an answer and ask the rewards about it."""
        stopped = int(ids[-1]) in self.asking.stop_ids
        texts = (
            self.asking.decode(prompt, special=True),
            self.asking.decode(ids[:-1] if stopped else ids, before=prompt),
        )
        facts = {
            "step": step,
            "sample": sample,
            "answer": g,
            "tokens": len(ids),
            "truncated": not stopped,
        }
        values = self.rewards(*texts, {**row, "rollout": facts})
        answer = Answer(ids.astype(np.int32), logp.astype(np.float32), not stopped, values)
        return answer, Shown(
            *texts, str(row.get("answer", "")), self.rewards.total(values), not stopped
        )

    @staticmethod
    def _prompt(batch: PromptBatch, b: int) -> list[int]:
        ids: list[int] = batch.tokens_BT[b][batch.doc_BT[b] == 0].tolist()
        return ids

    # ------------------------------------------------------------------ checkpoints

    def state(self, step: int, gather: Callable[[Any], list[Any]]) -> AnswersState | None:
        """Collect the answers of all ranks that a run which goes on at `step` still learns from.

        None at the beginning of a rollout.

        Args:
            step: The next optimizer step.
            gather: What every rank holds, as a list; all ranks call this together.
        """
        if step % self.asking.updates == 0:
            return None
        answers = {n: group for kept in gather(self._kept) for n, group in kept.items()}
        flat = [answer for group in answers.values() for answer in group]
        return {
            "step": self._kept_step,
            "samples": list(answers),
            "ids": [torch.from_numpy(answer.ids) for answer in flat],
            "logp": [torch.from_numpy(answer.logp) for answer in flat],
            "truncated": [answer.truncated for answer in flat],
            "rewards": [list(answer.rewards) for answer in flat],
        }

    def load_state(self, state: AnswersState) -> None:
        """Take up a rollout where a checkpoint left it."""
        columns = zip(
            state["ids"], state["logp"], state["truncated"], state["rewards"], strict=True
        )
        flat = [
            Answer(ids.numpy(), logp.numpy(), bool(cut), tuple(rewards))
            for ids, logp, cut, rewards in columns
        ]
        group = self.asking.group_size
        self._kept = {
            int(n): flat[i * group : (i + 1) * group] for i, n in enumerate(state["samples"])
        }
        self._kept_step = int(state["step"])


def _rows_of(batches: Sequence[PromptBatch]) -> list[tuple[PromptBatch, int]]:
    """List every row of some micro-batches, with its number there."""
    return [(batch, b) for batch in batches for b in range(len(batch.index_B))]


def row_seed(seed: int, step: int, sample: int, answer: int) -> int:
    """Derive the seed of one answer."""
    digest = hashlib.sha256(
        f"rollout\x00{seed}\x00{step}\x00{sample}\x00{answer}".encode()
    ).digest()
    return int.from_bytes(digest[:8], "little")


def _sum_and_count(values: Sequence[float]) -> Tensor:
    return torch.tensor([sum(values), float(len(values))], dtype=torch.float32)
