"""Linear cross-entropy: head and loss in one, chunk by chunk, so that tokens x vocabulary logits never exist at once.

Shapes: N tokens, C tokens of a chunk, V vocabulary, D width.
"""

from typing import Any

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX

CHUNK = 512


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy of `hidden @ weight.T` against the labels.

    Returns:
        The differentiable sum and the detached plain negative log-likelihood per token.
    """
    _check_labels(labels_N, weight_VD.shape[0])
    total, nll_N = _LinearCrossEntropy.apply(
        hidden_ND, weight_VD, labels_N, z_loss, label_smoothing, softcap, chunk, _compute_dtype(hidden_ND),
        torch.is_grad_enabled() and hidden_ND.requires_grad, torch.is_grad_enabled() and weight_VD.requires_grad,
    )
    return total, nll_N


def linear_logp(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, softcap: float | None = None, chunk: int = CHUNK
) -> Tensor:
    """Differentiable log-probability of each label; 0 where ignored."""
    _check_labels(labels_N, weight_VD.shape[0])
    return _LinearLogp.apply(hidden_ND, weight_VD, labels_N, softcap, chunk, _compute_dtype(hidden_ND))


def _compute_dtype(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype


def _check_labels(labels_N: Tensor, vocabulary: int) -> None:
    good = ((labels_N >= 0) & (labels_N < vocabulary)) | (labels_N == IGNORE_INDEX)
    torch._assert_async(good.all(), f"a label lies outside the vocabulary of {vocabulary} and is not {IGNORE_INDEX}")


def _logits(hidden_CD: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
    logits_CV = hidden_CD @ weight_VD.T
    if logits_CV.dtype != torch.float64:
        logits_CV = logits_CV.float()
    if softcap is not None:
        logits_CV = torch.tanh(logits_CV / softcap) * softcap
    return logits_CV


def _logit_grad(
    logits_CV: Tensor, lse_C: Tensor, label_C: Tensor, scale_C: Tensor, lse_scale_C: Tensor, smoothing: float, softcap: float | None
) -> Tensor:
    grad_CV = torch.exp(logits_CV - lse_C[:, None]) * (scale_C * lse_scale_C)[:, None]
    if smoothing:
        grad_CV -= (scale_C * (smoothing / logits_CV.shape[1]))[:, None]
    grad_CV = grad_CV.scatter_add(1, label_C[:, None], (scale_C * (smoothing - 1.0))[:, None])
    if softcap is not None:
        grad_CV = grad_CV * (1.0 - (logits_CV / softcap).square())
    return grad_CV


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float, smoothing: float,
        softcap: float | None, chunk: int, dtype: torch.dtype, hidden_grad: bool, weight_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        grads_hidden: list[Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=acc) if weight_grad else None
        total = hidden.new_zeros((), dtype=acc)
        nlls = []
        for start in range(0, hidden.shape[0], chunk):
            hidden_CD, label_C = hidden[start : start + chunk], labels_N[start : start + chunk]
            valid_C = label_C != IGNORE_INDEX
            label_C = torch.where(valid_C, label_C, 0)
            scale_C = valid_C.to(acc)
            logits_CV = _logits(hidden_CD, weight, softcap)
            lse_C = torch.logsumexp(logits_CV, dim=1)
            target_C = logits_CV.gather(1, label_C[:, None]).squeeze(1)
            nll_C = (lse_C - target_C) * scale_C
            nlls.append(nll_C.to(torch.float32))
            loss_C = nll_C
            if smoothing:
                loss_C = (lse_C - (1 - smoothing) * target_C - smoothing * logits_CV.mean(dim=1)) * scale_C
            if z_loss:
                loss_C = loss_C + z_loss * lse_C.square() * scale_C
            total = total + loss_C.sum()
            if hidden_grad or weight_grad:
                grad_CV = _logit_grad(logits_CV, lse_C, label_C, scale_C, 1.0 + 2.0 * z_loss * lse_C, smoothing, softcap).to(dtype)
                if hidden_grad:
                    grads_hidden.append(grad_CV @ weight)
                if grad_weight is not None:
                    grad_weight += grad_CV.T @ hidden_CD
        ctx.save_for_backward(
            torch.cat(grads_hidden).to(hidden_ND.dtype) if grads_hidden else None,
            grad_weight.to(weight_VD.dtype) if grad_weight is not None else None,
        )
        nll_N = torch.cat(nlls) if nlls else hidden.new_zeros(0, dtype=torch.float32)
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
            *(None,) * 8,
        )


class _LinearLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, softcap: float | None, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        logps, lses = [], []
        for start in range(0, hidden.shape[0], chunk):
            label_C = labels_N[start : start + chunk]
            valid_C = label_C != IGNORE_INDEX
            logits_CV = _logits(hidden[start : start + chunk], weight, softcap)
            lse_C = torch.logsumexp(logits_CV, dim=1)
            target_C = logits_CV.gather(1, torch.where(valid_C, label_C, 0)[:, None]).squeeze(1)
            logps.append((target_C - lse_C) * valid_C)
            lses.append(lse_C)
        lse_N = torch.cat(lses)
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N, lse_N)
        ctx.config = softcap, chunk, dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, labels_N, lse_N = ctx.saved_tensors
        softcap, chunk, dtype = ctx.config
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        grads_hidden: list[Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=lse_N.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            label_C = labels_N[part]
            valid_C = label_C != IGNORE_INDEX
            scale_C = -grad_N[part] * valid_C
            logits_CV = _logits(hidden[part], weight, softcap)
            grad_CV = _logit_grad(
                logits_CV, lse_N[part], torch.where(valid_C, label_C, 0), scale_C, torch.ones_like(scale_C), 0.0, softcap
            ).to(dtype)
            if ctx.needs_input_grad[0]:
                grads_hidden.append(grad_CV @ weight)
            if grad_weight is not None:
                grad_weight += grad_CV.T @ hidden[part]
        return (
            torch.cat(grads_hidden).to(hidden_ND.dtype) if grads_hidden else None,
            grad_weight.to(weight_VD.dtype) if grad_weight is not None else None,
            *(None,) * 4,
        )
