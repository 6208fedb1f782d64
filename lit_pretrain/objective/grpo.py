"""GRPO: policy gradients from groups of sampled answers, clipped, in the usual normalisations.

Axes: B rows (answers), T tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, PolicyBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.objective import (
    LabelScores,
    Objective,
    per_token,
    sum_and_count,
    tokens_of,
)

GRPO_METRICS = (
    "reward",
    "groups_with_signal",
    "completion_tokens",
    "truncated",
    "clip_ratio",
    "entropy",
)


class GRPO(Objective):
    """Group relative policy optimisation (Shao et al. 2024, eq. 3); advantages come with the batch.

    Per sampled token the loss is −min(r A, clip(r, 1−epsilon, 1+epsilon_high) A) + beta × KL, where
    r is the ratio of the policy to the one that sampled, and KL is Schulman's estimator exp(q−p) −
    (q−p) − 1 (Shao et al. eq. 4). How the tokens become one number is the variant:

    - `dapo`: mean over all tokens of the optimizer step (Yu et al. 2025, eq. 8). The count is the
      step's tokens.
    - `grpo`: mean over the tokens of each answer, then over answers (Shao et al. 2024). The count
      is the step's answers.
    - `dr_grpo`: sum over tokens / max_completion_tokens, mean over answers (Liu et al. 2025): a
      constant instead of the length.
    - `bnpo`: mean over the tokens of each micro-batch, then over micro-batches, as in TRL: it
      depends on the micro-batch size.

    Args:
        variant: How the loss is normalised.
        epsilon: How far the ratio may fall below 1, and rise above where epsilon_high is not given.
        epsilon_high: How far it may rise above 1 (DAPO's clip-higher: 0.28).
        beta: Weight of the divergence from the reference; at 0 no reference is needed.
        kl_bias_correction: Multiply the KL by r, which makes its gradient that of the KL of the
            policy (DeepSeek-AI 2025; on in TRL 1.16, not in older releases). On-policy the value is
            the same and the gradient is not.
        max_completion_tokens: Longest answer that may be sampled; `dr_grpo` divides by it.
        scale_rewards: Divide advantages by the deviation of their group; null: but for `dr_grpo`,
            which does not (Liu et al. 2025).
        measure_kl: Report the divergence from the reference where beta is 0, too, at the price of a
            forward pass of the reference.
    """

    splits_vocabulary = True

    def __init__(
        self,
        variant: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo",
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        beta: float = 0.0,
        kl_bias_correction: bool = True,
        max_completion_tokens: int | None = None,
        scale_rewards: bool | None = None,
        measure_kl: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("epsilon", epsilon), ("epsilon_high", epsilon_high)):
            if value is not None and not value > 0.0:
                raise UserError(f"GRPO: {name} must be positive, found {value}; 0.2 is usual.")
        if not epsilon < 1.0:
            raise UserError(
                f"GRPO: epsilon must be below 1, found {epsilon}: a ratio cannot fall below 0."
            )
        if not beta >= 0.0:
            raise UserError(f"GRPO: beta must be zero or positive, found {beta}.")
        if variant == "dr_grpo" and not (max_completion_tokens and max_completion_tokens > 0):
            raise UserError(
                "GRPO: variant 'dr_grpo' divides by max_completion_tokens, found"
                f" {max_completion_tokens}; set it as in the rollout."
            )
        self.variant = variant
        self.epsilon = epsilon
        self.epsilon_high = epsilon if epsilon_high is None else epsilon_high
        self.beta = beta
        self.kl_bias_correction = kl_bias_correction
        self.max_completion_tokens = max_completion_tokens
        self.scale_rewards = variant != "dr_grpo" if scale_rewards is None else scale_rewards
        self.measure_kl = measure_kl or beta > 0.0
        self.needs = frozenset({"rollout", "ref_logp"} if self.measure_kl else {"rollout"})
        self.metric_names = (*GRPO_METRICS, "kl") if self.measure_kl else GRPO_METRICS

    def advantages(self, reward_B: Tensor, group_B: Tensor) -> Tensor:
        """Compute how much better than its group each answer is, with this objective's scaling."""
        return group_advantages(reward_B, group_B, scale=self.scale_rewards)

    def forward(
        self, scores: LabelScores, batch: PolicyBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the tokens, or of the answers' means; the variant decides the count."""
        logp_BT = scores.logp()
        mask_BT = batch.labels_BT != IGNORE_INDEX
        tokens_B, valid_B = tokens_of(batch.labels_BT), batch.index_B >= 0
        # On-policy the ratio is 1, and its gradient is that of the log-probability.
        old_BT = logp_BT.detach() if batch.old_logp_BT is None else batch.old_logp_BT
        ratio_BT = torch.exp(logp_BT - old_BT)
        advantage_B1 = batch.advantage_B[:, None]
        clipped_BT = ratio_BT.clamp(1.0 - self.epsilon, 1.0 + self.epsilon_high)
        # The worse of both: beyond the bound nothing is gained by going on, but going back still
        # counts.
        loss_BT = -torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)
        metrics = self._metrics(batch, ratio_BT.detach(), mask_BT, tokens_B, valid_B)
        metrics["entropy"] = sum_and_count(
            -old_BT, mask_BT
        )  # unbiased where tokens are drawn from the whole distribution
        if self.measure_kl:
            assert batch.ref_logp_BT is not None, (
                "the stage fills in ref_logp_BT where the rollout holds none"
            )
            gap_BT = batch.ref_logp_BT - logp_BT
            # The estimator k3 of Schulman (2020): unbiased, and never negative.
            kl_BT = torch.exp(gap_BT) - gap_BT - 1.0
            metrics["kl"] = sum_and_count(kl_BT, mask_BT)
            if self.beta:
                loss_BT = loss_BT + self.beta * (
                    kl_BT * ratio_BT if self.kl_bias_correction else kl_BT
                )
        # Not a product: where nothing was sampled the ratio of two zeros is 1, but a column may
        # hold anything.
        sums_B = torch.where(mask_BT, loss_BT, 0.0).sum(dim=1)
        loss_B, terms_B = self._normalise(sums_B, tokens_B, valid_B)
        rows = {"loss_B": loss_B.detach(), "terms_B": terms_B, "tokens_B": tokens_B}
        return loss_B.sum(), terms_B.sum(), rows | metrics

    def _normalise(
        self, sums_B: Tensor, tokens_B: Tensor, valid_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute what each row adds to the numerator and to the denominator."""
        if self.variant == "dapo":
            return sums_B, tokens_B
        if self.variant == "grpo":
            return per_token(sums_B, tokens_B), valid_B.long()
        if self.variant == "dr_grpo":
            assert self.max_completion_tokens is not None
            return sums_B / self.max_completion_tokens, valid_B.long()
        total = tokens_B.sum()
        first_B = torch.arange(len(tokens_B), device=tokens_B.device) == 0
        return (
            sums_B / total.clamp(min=1),
            (first_B & (total > 0)).long(),
        )  # one term a micro-batch, reported at its first row

    def _metrics(
        self,
        batch: PolicyBatch,
        ratio_BT: Tensor,
        mask_BT: Tensor,
        tokens_B: Tensor,
        valid_B: Tensor,
    ) -> dict[str, Tensor]:
        # Without a mask over rows: a group is there if one of its rows is, and has a signal if one
        # of its advantages is not zero.
        zeros_G = torch.zeros_like(batch.advantage_B)
        there_G = zeros_G.index_add(0, batch.group_B, valid_B.to(zeros_G.dtype)) > 0
        signal_G = (
            zeros_G.index_add(
                0, batch.group_B, (valid_B & (batch.advantage_B != 0)).to(zeros_G.dtype)
            )
            > 0
        )
        up_B1 = batch.advantage_B[:, None] > 0
        down_B1 = batch.advantage_B[:, None] < 0
        clipped_BT = ((ratio_BT < 1.0 - self.epsilon) & down_B1) | (
            (ratio_BT > 1.0 + self.epsilon_high) & up_B1
        )
        return {
            "reward": sum_and_count(batch.reward_B, valid_B),
            "groups_with_signal": sum_and_count(signal_G.float(), there_G),
            "completion_tokens": sum_and_count(tokens_B.float(), valid_B),
            "truncated": sum_and_count(batch.truncated_B.float(), valid_B),
            "clip_ratio": sum_and_count(clipped_BT.float(), mask_BT),
        }

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return (
            f"variant={self.variant!r}, epsilon={self.epsilon}, epsilon_high={self.epsilon_high},"
            f" beta={self.beta}, kl_bias_correction={self.kl_bias_correction},"
            f" max_completion_tokens={self.max_completion_tokens},"
            f" scale_rewards={self.scale_rewards}, measure_kl={self.measure_kl}"
        )


def group_advantages(
    reward_B: Tensor, group_B: Tensor, *, scale: bool = True, eps: float = 1e-4
) -> Tensor:
    """Compute the advantages of answers within their groups (Shao et al. 2024, section 4.1.2).

    Args:
        reward_B: Reward of each answer.
        group_B: Number of its group, from 0.
        scale: Divide by the group's standard deviation (Bessel's, as in TRL); Liu et al. (2025) do
            not.
        eps: Added to the deviation.

    Returns:
        (reward − mean of the group) / (deviation of the group + eps), fp32 (B,); 0 for a group of
        one.
    """
    reward_B = reward_B.float()
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    zeros_G = reward_B.new_zeros(groups)
    count_G = zeros_G.index_add(0, group_B, torch.ones_like(reward_B))
    centred_B = reward_B - (zeros_G.index_add(0, group_B, reward_B) / count_G.clamp(min=1))[group_B]
    if not scale:
        return centred_B
    variance_G = zeros_G.index_add(0, group_B, centred_B.square()) / (count_G - 1).clamp(min=1)
    return centred_B / (variance_G.sqrt()[group_B] + eps)
