"""The moving average of weights: its formula, when it is taken, and what it refuses."""

import itertools

import pytest
import torch
from torch import nn

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError
from lit_pretrain.optim.weight_average import STATE, UPDATES, WeightAverage


def trained(
    steps: int, *, half_life: float, tokens: int = 100
) -> tuple[WeightAverage, torch.optim.Optimizer, list[torch.Tensor]]:
    """An average over some steps of SGD, and the weights after each step."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    average = WeightAverage(optimizer, half_life=half_life, batch=BatchSizes.one(tokens))
    history = []
    for _ in range(steps):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        average.update()
        history.append(weight.detach().clone())
    return average, optimizer, history


@pytest.mark.parametrize("half_life", [50.0, 100.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_weights_count_half_after_a_half_life_of_tokens(steps: int, half_life: float) -> None:
    average, optimizer, history = trained(steps, half_life=half_life)
    assert average.every == 1
    shares = torch.tensor([2.0 ** (-100 * i / half_life) for i in reversed(range(steps))]).double()
    stack = torch.stack(history).double()
    expected = (shares[:, None, None] * stack).sum(dim=0) / shares.sum()
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state[STATE].double(), expected, atol=1e-6, rtol=1e-6)


def test_a_long_half_life_takes_up_weights_now_and_then() -> None:
    steps = 7 * UPDATES  # of a half-life
    average, optimizer, history = trained(4 * 7 + 3, half_life=100.0 * steps)
    assert average.every == 7
    shares = torch.tensor([2.0 ** (-i / UPDATES) for i in reversed(range(4))]).double()
    taken = torch.stack([history[i] for i in (6, 13, 20, 27)]).double()
    expected = (shares[:, None, None] * taken).sum(dim=0) / shares.sum()
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state[STATE].double(), expected, atol=1e-6, rtol=1e-6)
    assert average.stored({id(optimizer.param_groups[0]["params"][0]): "w"}) == {
        "seen": 31, "updates": 4, "names": ["w"],
    }  # fmt: skip


def test_it_goes_on_from_a_saved_state_to_the_bit() -> None:
    _, optimizer, history = trained(9, half_life=300.0)
    first, begun, _ = trained(4, half_life=300.0)
    weight = nn.Parameter(history[3].clone())
    second = torch.optim.SGD([weight], lr=0.1)
    average = WeightAverage(second, half_life=300.0, batch=BatchSizes.one(100))
    second.load_state_dict(begun.state_dict())
    average.resume({"seen": first.seen}, step=4)
    for after in history[4:]:
        with torch.no_grad():
            weight.copy_(after)
        average.update()
    assert torch.equal(second.state[weight][STATE], next(iter(optimizer.state.values()))[STATE])


def test_weights_count_by_the_tokens_since_the_last_update() -> None:
    """Of steps of several sizes, and where the average begins within a run."""
    torch.manual_seed(0)
    batch, first = BatchSizes((0, 6), (100, 400)), 3
    weight = nn.Parameter(torch.randn(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    average = WeightAverage(optimizer, half_life=700.0, batch=batch)
    average.resume({}, step=first)
    history, shares, read = [], [], []
    for step in range(first, 10):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        average.update()
        history.append(weight.detach().double().clone())
        read.append(batch.first(step + 1) - batch.first(first))
    for before, end in itertools.pairwise([0, *read]):
        shares.append(2.0 ** ((end - read[-1]) / 700) - 2.0 ** ((before - read[-1]) / 700))
    share = torch.tensor(shares).double()[:, None]
    (state,) = optimizer.state.values()
    expected = (share * torch.stack(history)).sum(dim=0) / share.sum()
    torch.testing.assert_close(state[STATE].double(), expected, atol=1e-6, rtol=1e-6)


def test_weights_in_bf16_are_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))], lr=0.1)
    with pytest.raises(UserError, match="the weights are bfloat16"):
        WeightAverage(optimizer, half_life=1.0, batch=BatchSizes.one(1))
