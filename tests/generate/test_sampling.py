"""Sampling: the laws of the filters, and that draws follow the probabilities."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.generate.sampling import candidates, draw

logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30).map(
    lambda row: torch.tensor([row], dtype=torch.float64)
)


def as_dict(probabilities_BC: Tensor, ids_BC: Tensor) -> dict[int, float]:
    """Probability of each token that may come, of the first row."""
    pairs = zip(ids_BC[0].tolist(), probabilities_BC[0].tolist(), strict=True)
    return {token: p for token, p in pairs if p > 0}


@given(logits, st.floats(0.1, 3))
def test_without_filters_it_is_the_softmax(logits_BV: Tensor, temperature: float) -> None:
    probabilities_BC, ids_BC = candidates(logits_BV, temperature=temperature)
    expected = (logits_BV / temperature).softmax(-1)
    torch.testing.assert_close(probabilities_BC, expected.gather(1, ids_BC), rtol=1e-9, atol=1e-12)
    assert ids_BC[0].tolist() == list(range(logits_BV.shape[1]))
    sorted_BC, _ = candidates(logits_BV, temperature=temperature, top_k=logits_BV.shape[1])
    if logits_BV.shape[1] > 1:
        assert (sorted_BC.diff() <= 0).all()
        torch.testing.assert_close(
            sorted_BC, probabilities_BC.sort(descending=True).values, rtol=1e-9, atol=1e-12
        )
    for top_p, min_p in ((1.0, None), (None, 0.0), (1.0, 0.0)):
        same_BC, same_ids_BC = candidates(
            logits_BV, temperature=temperature, top_p=top_p, min_p=min_p
        )
        assert torch.equal(
            same_BC, probabilities_BC
        )  # down to the last token: a sum that rounds up to 1 would remove the unlikeliest
        assert torch.equal(same_ids_BC, ids_BC)


@given(logits, st.integers(1, 40))
def test_top_k_keeps_the_k_likeliest_in_proportion(logits_BV: Tensor, k: int) -> None:
    kept = as_dict(*candidates(logits_BV, top_k=k))
    full = as_dict(*candidates(logits_BV))
    assert len(kept) <= k
    assert sum(kept.values()) == pytest.approx(1)
    assert min(kept.values()) > 0
    total = sum(full[token] for token in kept)
    for token, p in kept.items():
        assert p == pytest.approx(full[token] / total)
    assert all(full[token] <= min(full[t] for t in kept) for token in full.keys() - kept.keys())


ties = st.lists(
    st.lists(st.sampled_from([-2.0, 0.5, 1.0, float("-inf")]), min_size=12, max_size=12),
    min_size=1,
    max_size=4,
)


@given(ties.map(lambda rows: torch.tensor([[*row, 2.0] for row in rows])), st.integers(2, 14))
def test_of_equal_logits_the_lowest_ids_are_kept(logits_BV: Tensor, k: int) -> None:
    expected_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probabilities_BC, ids_BC = candidates(logits_BV, top_k=k)
    assert torch.equal(ids_BC, order_BV[:, :k])
    torch.testing.assert_close(probabilities_BC, expected_BV[:, :k].softmax(-1))


@given(logits, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p(logits_BV: Tensor, top_p: float) -> None:
    kept, full = as_dict(*candidates(logits_BV, top_p=top_p)), as_dict(*candidates(logits_BV))
    mass = sum(full[token] for token in kept)
    assert mass >= top_p - 1e-9
    assert (
        mass - min(full[token] for token in kept) < top_p + 1e-9
    )  # without the last one it would fall short
    assert sum(kept.values()) == pytest.approx(1)
    assert all(full[token] <= min(full[t] for t in kept) for token in full.keys() - kept.keys())


@given(logits, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough(logits_BV: Tensor, min_p: float) -> None:
    kept, full = as_dict(*candidates(logits_BV, min_p=min_p)), as_dict(*candidates(logits_BV))
    best = max(full.values())
    assert kept.keys() == {token for token, p in full.items() if p >= min_p * best}
    assert sum(kept.values()) == pytest.approx(1)


@given(logits, st.floats(0, 0.999999))
def test_greedy_is_the_lowest_of_the_likeliest(logits_BV: Tensor, uniform: float) -> None:
    token = draw(*candidates(logits_BV, temperature=0), torch.tensor([uniform]))
    assert token.item() == int(logits_BV[0].tolist().index(logits_BV.max().item()))


def test_filters_act_one_after_the_other() -> None:
    logits_BV = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # of the two likeliest, renormalised to 4/7 and 3/7, the first alone reaches one half
    assert as_dict(*candidates(logits_BV, top_k=2, top_p=0.5)).keys() == {0}
    assert as_dict(*candidates(logits_BV, top_p=0.5)).keys() == {0, 1}


@given(logits, st.floats(0, 1, exclude_max=True))
def test_a_draw_inverts_the_cumulative_distribution(logits_BV: Tensor, uniform: float) -> None:
    probabilities_BC, ids_BC = candidates(logits_BV, top_p=0.9)
    token = draw(probabilities_BC, ids_BC, torch.tensor([uniform], dtype=torch.float64)).item()
    place = ids_BC[0].tolist().index(token)
    cumulative = [0.0, *probabilities_BC[0].cumsum(0).tolist()]
    assert probabilities_BC[0, place] > 0
    assert cumulative[place] - 1e-9 <= uniform <= cumulative[place + 1] + 1e-9


def test_draws_are_as_frequent_as_their_probabilities() -> None:
    n = 20_000
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    logits_BV = probabilities.log()[[2, 0, 3, 1]].expand(n, 4)
    uniform_B = torch.rand(n, generator=torch.Generator().manual_seed(0))
    counts = Counter(draw(*candidates(logits_BV), uniform_B).tolist())
    for token, p in zip([2, 0, 3, 1], probabilities[[2, 0, 3, 1]].tolist(), strict=True):
        place = [2, 0, 3, 1].index(token)
        expected = probabilities[[2, 0, 3, 1]][place].item() * n
        assert abs(counts[place] - expected) < 4 * (expected * (1 - p)) ** 0.5


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("top_p", [0.3, None])
def test_the_ends_of_the_unit_interval_draw_a_token_that_may_come(
    uniform: float, top_p: float | None
) -> None:
    logits_BV = torch.zeros(1, 1000)
    logits_BV[:, :100] = logits_BV[:, 900:] = -200.0  # so unlikely that fp32 has no number for it
    probabilities_BC, ids_BC = candidates(
        logits_BV, top_p=top_p
    )  # in fp32 the largest number below 1 becomes 1
    token = draw(probabilities_BC, ids_BC, torch.tensor([uniform], dtype=torch.float64)).item()
    assert token in as_dict(probabilities_BC, ids_BC)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.1}, "min_p=-0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        candidates(torch.zeros(1, 3), **settings)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        candidates(torch.tensor([[0.0, bad, 1.0]]))


def test_a_forbidden_token_is_never_drawn() -> None:
    probabilities_BC, ids_BC = candidates(torch.tensor([[0.0, float("-inf"), 1.0]]))
    assert as_dict(probabilities_BC, ids_BC).keys() == {0, 2}
