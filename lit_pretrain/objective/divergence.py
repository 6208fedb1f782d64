"""Divergence: how far a student's distribution over the vocabulary is from a teacher's, chunk by chunk. C tokens of one chunk."""

from typing import Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .label_scores import LabelScores

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
_CHUNK_BYTES = 64 * 2**20


def divergence(student: LabelScores, teacher: LabelScores, *, kind: Kind, jsd_beta: float, temperature: float) -> Tensor:
    """Differentiable divergence at each position (B, T), fp32 nats, over the whole vocabulary.

    The logits of a chunk are thrown away and computed once more for the backward pass, so that tokens x vocabulary never exist at once.
    """

    def chunk_divergence(hidden_CD: Tensor, weight_VD: Tensor, teacher_CD: Tensor) -> Tensor:
        p_CV = _log_softmax(teacher_CD, teacher.head_weight_VD, teacher.logit_softcap, temperature)
        q_CV = _log_softmax(hidden_CD, weight_VD, student.logit_softcap, temperature)
        return kl_of(p_CV, q_CV, kind=kind, jsd_beta=jsd_beta)

    parts = [
        checkpoint(chunk_divergence, hidden_CD, student.head_weight_VD, teacher_CD, use_reentrant=False)
        for hidden_CD, teacher_CD in zip(_chunks(student, student.hidden_BTD), _chunks(student, teacher.hidden_BTD), strict=True)
    ]
    return torch.cat(parts).view(student.labels_BT.shape)


def top_k_divergence(
    student: LabelScores, token_BTK: Tensor, logp_BTK: Tensor, *, kind: Kind, jsd_beta: float, temperature: float
) -> Tensor:
    """The same against a teacher of whom only the K likeliest tokens are known: over those and one bucket for all others.

    Merging outcomes never raises a divergence, so this is a lower bound of the whole, and exact for K = V. With a temperature the teacher's
    rest cannot be known, and the K tokens alone are compared, renormalised.
    """

    def chunk_divergence(hidden_CD: Tensor, weight_VD: Tensor, token_CK: Tensor, logp_CK: Tensor) -> Tensor:
        logits_CV = _logits(hidden_CD, weight_VD, student.logit_softcap)
        if temperature == 1.0:
            q_CK = torch.log_softmax(logits_CV, dim=-1).gather(1, token_CK)
            p_CK, q_CK = _with_rest(logp_CK), _with_rest(q_CK)
        else:
            p_CK = torch.log_softmax(logp_CK / temperature, dim=-1)
            q_CK = torch.log_softmax(logits_CV.gather(1, token_CK) / temperature, dim=-1)
        return kl_of(p_CK, q_CK, kind=kind, jsd_beta=jsd_beta)

    rows = zip(
        _chunks(student, student.hidden_BTD), _chunks(student, token_BTK), _chunks(student, logp_BTK.float()), strict=True
    )  # fmt: skip
    parts = [checkpoint(chunk_divergence, h_CD, student.head_weight_VD, t_CK, p_CK, use_reentrant=False) for h_CD, t_CK, p_CK in rows]
    return torch.cat(parts).view(student.labels_BT.shape)


def kl_of(p_CV: Tensor, q_CV: Tensor, *, kind: Kind, jsd_beta: float) -> Tensor:
    """Divergence of log-probabilities (C,): KL(p‖q), KL(q‖p), or the generalised Jensen–Shannon divergence (Agarwal et al. 2024, eq. 1).

    The Jensen–Shannon divergence is beta KL(p‖m) + (1−beta) KL(q‖m) with the mixture m = beta p + (1−beta) q.
    """
    if kind == "forward_kl":
        return _kl(p_CV, q_CV)
    if kind == "reverse_kl":
        return _kl(q_CV, p_CV)
    beta = torch.tensor(jsd_beta, dtype=p_CV.dtype, device=p_CV.device)
    m_CV = torch.logaddexp(p_CV + beta.log(), q_CV + torch.log1p(-beta))
    return beta * _kl(p_CV, m_CV) + (1.0 - beta) * _kl(q_CV, m_CV)


def _kl(p_CV: Tensor, q_CV: Tensor) -> Tensor:
    return (p_CV.exp() * (p_CV - q_CV)).sum(dim=-1)


def _with_rest(logp_CK: Tensor) -> Tensor:
    """Append the log-probability of everything else; at least e^-16, for where the K tokens are all there is."""
    rest_C1 = torch.log((1.0 - logp_CK.exp().sum(dim=-1, keepdim=True)).clamp(min=1.1e-7))
    return torch.cat([logp_CK, rest_C1], dim=-1)


def _logits(hidden_CD: Tensor, weight_VD: Tensor, cap: Optional[float]) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD)
    # fp32 from here on, or fp64 where that is what came in.
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return logits_CV if cap is None else cap * torch.tanh(logits_CV / cap)


def _log_softmax(hidden_CD: Tensor, weight_VD: Tensor, cap: Optional[float], temperature: float) -> Tensor:
    return torch.log_softmax(_logits(hidden_CD, weight_VD, cap) / temperature, dim=-1)


def _chunks(student: LabelScores, values: Tensor) -> tuple[Tensor, ...]:
    """Values of all positions in chunks whose logits take some 64 MiB."""
    return torch.split(values.flatten(0, 1), max(64, _CHUNK_BYTES // (4 * student.head_weight_VD.shape[0])))
