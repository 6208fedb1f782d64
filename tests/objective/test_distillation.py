"""Distillation: divergences in chunks equal those over whole distributions, and a teacher's top
K is a lower bound that closes.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch, DistillBatch
from lit_pretrain.errors import UserError
from lit_pretrain.objective import CrossEntropy, Distillation, LabelScores
from lit_pretrain.objective import distillation as divergence

B, T, V, D = 3, 90, 17, 6  # 270 positions: more than one chunk, and one that is not full


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_CHUNK_BYTES", 4 * V * 100)


def made(cap: float | None = None) -> tuple[LabelScores, Batch]:
    torch.manual_seed(0)
    labels = torch.randint(0, V, (B, T))
    labels[0, 5:] = IGNORE_INDEX
    labels[2] = IGNORE_INDEX
    hidden = [torch.randn(B, T, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    heads = [torch.randn(V, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    student, teacher = (
        LabelScores(h, w, labels, logit_softcap=cap) for h, w in zip(hidden, heads, strict=True)
    )
    student.teacher = teacher
    return student, Batch(
        labels.clamp(min=0),
        labels,
        torch.zeros(B, T, dtype=torch.int32),
        torch.zeros(B).long(),
        torch.arange(B),
    )


def distributions(scores: LabelScores, temperature: float = 1.0) -> Tensor:
    logits = scores.hidden_BTD @ scores.head_weight_VD.T
    if scores.logit_softcap is not None:
        logits = scores.logit_softcap * torch.tanh(logits / scores.logit_softcap)
    return (logits / temperature).softmax(-1)


def plain(kind: str, p: Tensor, q: Tensor, beta: float) -> Tensor:
    if kind == "forward_kl":
        return (p * (p / q).log()).sum(-1)
    if kind == "reverse_kl":
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("temperature", "cap"), [(1.0, None), (2.0, None), (1.0, 3.0)])
def test_values_and_gradients_are_those_of_whole_distributions(
    kind: Any, temperature: float, cap: float | None
) -> None:
    student, batch = made(cap)
    numerator, denominator, metrics = Distillation(
        kind=kind, jsd_beta=0.3, temperature=temperature
    )(student, batch)
    assert student.teacher is not None
    p, q = distributions(student.teacher, temperature).detach(), distributions(student, temperature)
    mask = batch.labels_BT != IGNORE_INDEX
    expected = torch.where(mask, plain(kind, p, q, 0.3), 0.0)
    torch.testing.assert_close(numerator, expected.sum())
    assert denominator.item() == mask.sum().item() == 95
    torch.testing.assert_close(metrics["loss_B"], expected.sum(1).detach())
    inputs = [student.hidden_BTD, student.head_weight_VD]
    for a, b in zip(
        torch.autograd.grad(numerator, inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def top_k(student: LabelScores, batch: Batch, k: int) -> DistillBatch:
    assert student.teacher is not None
    logp, token = distributions(student.teacher).log().detach().topk(k, dim=-1)
    return DistillBatch(*batch, token, logp)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_the_top_k_bound_rises_to_the_whole_divergence(kind: Any) -> None:
    student, batch = made()
    objective = Distillation(kind=kind)
    whole = objective(student, batch)[0].item()
    bounds = [objective(student, top_k(student, batch, k))[0].item() for k in (1, 2, 4, 8, V)]
    assert all(0 <= a <= b + 1e-6 for a, b in itertools.pairwise(bounds))
    assert bounds[0] < 0.9 * whole
    assert bounds[-1] == pytest.approx(whole, rel=1e-4)


def test_the_bucket_holds_what_the_teacher_did_not_say() -> None:
    student, batch = made()
    made_batch = top_k(student, batch, 3)
    p, q = (
        made_batch.teacher_logp_BTK.exp(),
        distributions(student).gather(2, made_batch.teacher_token_BTK),
    )
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], dim=-1) for x in (p, q))
    expected = torch.where(
        batch.labels_BT != IGNORE_INDEX, plain("forward_kl", p, q, 0.5), 0.0
    ).sum()
    torch.testing.assert_close(
        Distillation()(student, made_batch)[0], expected, rtol=1e-5, atol=0.0
    )


def test_with_a_temperature_the_top_k_are_compared_alone() -> None:
    student, batch = made()
    made_batch = top_k(student, batch, 3)
    p = (made_batch.teacher_logp_BTK / 2).softmax(-1)
    logits = student.hidden_BTD @ student.head_weight_VD.T
    q = (logits.gather(2, made_batch.teacher_token_BTK) / 2).softmax(-1)
    expected = torch.where(
        batch.labels_BT != IGNORE_INDEX, plain("forward_kl", p, q, 0.5), 0.0
    ).sum()
    torch.testing.assert_close(
        Distillation(temperature=2.0)(student, made_batch)[0], expected, rtol=1e-5, atol=0.0
    )


def test_labels_may_count_too() -> None:
    student, batch = made()
    alone, labels = Distillation()(student, batch)[0], CrossEntropy()(student, batch)[0]
    mixed, _, metrics = Distillation(label_weight=0.25)(student, batch)
    torch.testing.assert_close(mixed, 0.75 * alone + 0.25 * labels)
    torch.testing.assert_close(metrics["loss_B"].sum(), mixed.detach())
    assert metrics["nll"][0].item() == pytest.approx(labels.item(), rel=1e-6)


def test_nothing_is_learned_from_oneself() -> None:
    student, batch = made()
    student.teacher = LabelScores(
        student.hidden_BTD.detach(), student.head_weight_VD.detach(), batch.labels_BT
    )
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        numerator = Distillation(kind=kind)(student, batch)[0]
        assert numerator.item() == pytest.approx(0.0, abs=1e-9)
        assert torch.autograd.grad(numerator, student.hidden_BTD)[0].abs().max().item() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jsd_beta": 1.0}, r"jsd_beta must lie between 0 and 1"),
        ({"temperature": 0.0}, r"temperature must be positive"),
        ({"label_weight": 1.0}, r"1 would be CrossEntropy"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Distillation(**options)
