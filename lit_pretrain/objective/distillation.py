"""Distillation: a student learns a teacher's whole distribution over the next token.

Axes: B rows, T tokens, C tokens of one chunk, V vocabulary, D width, K likeliest tokens.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_pretrain.batch import IGNORE_INDEX, Batch, DistillBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective.objective import LabelScores, Objective, sum_and_count, tokens_of

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd"]
_CHUNK_BYTES = 64 * 2**20


def divergence(
    student: LabelScores,
    teacher: LabelScores,
    *,
    kind: DivergenceKind,
    jsd_beta: float,
    temperature: float,
) -> Tensor:
    """Compute the differentiable divergence at each position (B, T), fp32 nats.

    The logits of a chunk are thrown away and computed once more for the backward pass, so that
    tokens x vocabulary never exist at once.
    """

    def chunk_divergence(hidden_CD: Tensor, weight_VD: Tensor, teacher_CD: Tensor) -> Tensor:
        p_CV = _log_softmax(teacher_CD, teacher.head_weight_VD, teacher.logit_softcap, temperature)
        q_CV = _log_softmax(hidden_CD, weight_VD, student.logit_softcap, temperature)
        return kl_of(p_CV, q_CV, kind=kind, jsd_beta=jsd_beta)

    parts = [
        checkpoint(
            chunk_divergence, hidden_CD, student.head_weight_VD, teacher_CD, use_reentrant=False
        )
        for hidden_CD, teacher_CD in zip(
            _chunks(student, student.hidden_BTD), _chunks(student, teacher.hidden_BTD), strict=True
        )
    ]
    return torch.cat(parts).view(student.labels_BT.shape)


def top_k_divergence(
    student: LabelScores,
    token_BTK: Tensor,
    logp_BTK: Tensor,
    *,
    kind: DivergenceKind,
    jsd_beta: float,
    temperature: float,
) -> Tensor:
    """Compute the divergence from a teacher of whom only the K likeliest tokens are known.

    It is taken over those and one bucket for all others.

    Merging outcomes never raises a divergence, so this is a lower bound of the whole, and exact for
    K = V. With a temperature the teacher's rest cannot be known, and the K tokens alone are
    compared, renormalised.
    """

    def chunk_divergence(
        hidden_CD: Tensor, weight_VD: Tensor, token_CK: Tensor, logp_CK: Tensor
    ) -> Tensor:
        logits_CV = _logits(hidden_CD, weight_VD, student.logit_softcap)
        if temperature == 1.0:
            q_CK = torch.log_softmax(logits_CV, dim=-1).gather(1, token_CK)
            p_CK, q_CK = _with_rest(logp_CK), _with_rest(q_CK)
        else:
            p_CK = torch.log_softmax(logp_CK / temperature, dim=-1)
            q_CK = torch.log_softmax(logits_CV.gather(1, token_CK) / temperature, dim=-1)
        return kl_of(p_CK, q_CK, kind=kind, jsd_beta=jsd_beta)

    columns = (student.hidden_BTD, token_BTK, logp_BTK.float())
    rows = zip(*(_chunks(student, column) for column in columns), strict=True)
    parts = [
        checkpoint(chunk_divergence, h_CD, student.head_weight_VD, t_CK, p_CK, use_reentrant=False)
        for h_CD, t_CK, p_CK in rows
    ]
    return torch.cat(parts).view(student.labels_BT.shape)


def kl_of(p_CV: Tensor, q_CV: Tensor, *, kind: DivergenceKind, jsd_beta: float) -> Tensor:
    """Compute the divergence of log-probabilities (C,): forward, reverse or generalised JSD.

    That is KL(p‖q), KL(q‖p), or the generalised Jensen–Shannon divergence (Agarwal et al. 2024, eq.
    1).

    The Jensen–Shannon divergence is beta KL(p‖m) + (1−beta) KL(q‖m) with the mixture m = beta p +
    (1−beta) q.
    """
    if kind == "forward_kl":
        return _kl(p_CV, q_CV)
    if kind == "reverse_kl":
        return _kl(q_CV, p_CV)
    beta = torch.tensor(jsd_beta, dtype=p_CV.dtype, device=p_CV.device)
    # In log space: of two small probabilities the sum would be 0.
    m_CV = torch.logaddexp(p_CV + beta.log(), q_CV + torch.log1p(-beta))
    return beta * _kl(p_CV, m_CV) + (1.0 - beta) * _kl(q_CV, m_CV)


def _kl(p_CV: Tensor, q_CV: Tensor) -> Tensor:
    return (p_CV.exp() * (p_CV - q_CV)).sum(dim=-1)


def _with_rest(logp_CK: Tensor) -> Tensor:
    """Append the log-probability of everything else; e^-16 at least, in case K tokens are all."""
    rest_C1 = torch.log((1.0 - logp_CK.exp().sum(dim=-1, keepdim=True)).clamp(min=1.1e-7))
    return torch.cat([logp_CK, rest_C1], dim=-1)


def _logits(hidden_CD: Tensor, weight_VD: Tensor, cap: float | None) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD)
    # fp32 from here on, or fp64 where that is what came in.
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return logits_CV if cap is None else cap * torch.tanh(logits_CV / cap)


def _log_softmax(
    hidden_CD: Tensor, weight_VD: Tensor, cap: float | None, temperature: float
) -> Tensor:
    return torch.log_softmax(_logits(hidden_CD, weight_VD, cap) / temperature, dim=-1)


def _chunks(student: LabelScores, values: Tensor) -> tuple[Tensor, ...]:
    """Compute values of all positions in chunks whose logits take some 64 MiB."""
    return torch.split(
        values.flatten(0, 1), max(64, _CHUNK_BYTES // (4 * student.head_weight_VD.shape[0]))
    )


class Distillation(Objective):
    """Divergence from a teacher at every supervised position.

    Hinton et al. 2015; Agarwal et al. 2024, eq. 1.

    The teacher is a column of the data (its K likeliest tokens) or a frozen network over the same
    vocabulary, `model.teacher`.

    Args:
        kind: `forward_kl` KL(teacher‖student), which covers all that the teacher says; `reverse_kl`
            KL(student‖teacher), which keeps to what the teacher finds likely (Gu et al. 2024);
            `jsd`, between them.
        jsd_beta: Weight of the teacher in the mixture of `jsd`, in (0, 1).
        temperature: Divides the logits of both. Hinton et al. multiply the loss by its square, we,
            as TRL, do not.
        label_weight: Weight of the labels' own cross-entropy; the divergence has the rest, 1 −
            label_weight.
    """

    needs = frozenset({"labels", "teacher"})
    metric_names = ("divergence", "nll")

    def __init__(
        self,
        kind: DivergenceKind = "forward_kl",
        jsd_beta: float = 0.5,
        temperature: float = 1.0,
        label_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 < jsd_beta < 1.0:
            raise UserError(
                f"Distillation: jsd_beta must lie between 0 and 1, found {jsd_beta}; its ends are"
                " forward_kl and reverse_kl."
            )
        if not temperature > 0.0:
            raise UserError(f"Distillation: temperature must be positive, found {temperature}.")
        if not 0.0 <= label_weight < 1.0:
            raise UserError(
                f"Distillation: label_weight must lie in [0, 1), found {label_weight}; 1 would be"
                " CrossEntropy."
            )
        self.kind: DivergenceKind = kind
        self.jsd_beta = jsd_beta
        self.temperature = temperature
        self.label_weight = label_weight

    def forward(
        self, scores: LabelScores, batch: Batch | DistillBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the divergence of the supervised positions; the count is theirs."""
        mask_BT = batch.labels_BT != IGNORE_INDEX
        if isinstance(batch, DistillBatch):
            found_BT = top_k_divergence(
                scores, batch.teacher_token_BTK, batch.teacher_logp_BTK,
                kind=self.kind, jsd_beta=self.jsd_beta, temperature=self.temperature,
            )  # fmt: skip
        else:
            assert scores.teacher is not None, (
                "the stage brings a teacher to objectives that need one"
            )
            found_BT = divergence(
                scores, scores.teacher,
                kind=self.kind, jsd_beta=self.jsd_beta, temperature=self.temperature,
            )  # fmt: skip
        found_BT = torch.where(mask_BT, found_BT, 0.0)
        if self.label_weight:
            total, nll_BT = scores.cross_entropy()
            numerator = (1.0 - self.label_weight) * found_BT.sum() + self.label_weight * total
        else:
            with torch.no_grad():
                # For the report alone.
                nll_BT = scores.cross_entropy()[1]
            numerator = found_BT.sum()
        loss_BT = (1.0 - self.label_weight) * found_BT.detach() + self.label_weight * nll_BT
        tokens_B = tokens_of(batch.labels_BT)
        metrics = {
            "divergence": sum_and_count(found_BT, mask_BT),
            "nll": sum_and_count(nll_BT, mask_BT),
        }
        return (
            numerator,
            tokens_B.sum(),
            {"loss_B": loss_BT.sum(dim=1), "tokens_B": tokens_B, **metrics},
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print(objective)`."""
        return (
            f"kind={self.kind!r}, jsd_beta={self.jsd_beta}, temperature={self.temperature},"
            f" label_weight={self.label_weight}"
        )
