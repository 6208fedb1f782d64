"""Weights and optimizer states between names and positions. Sharded folders themselves:
tests/test_distributed.py.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_pretrain.checkpoint.weights import by_position, load_weights, read_weights
from lit_pretrain.errors import UserError
from lit_pretrain.parallel.fsdp import by_name


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def saved(path: Path, state: dict[str, torch.Tensor]) -> str:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "step=00000001.ckpt"
    torch.save({"state_dict": state}, file)
    return str(file)


def test_a_network_takes_what_fits_and_names_what_does_not(tmp_path: Path) -> None:
    whole = {f"net.{name}": value + 1 for name, value in net().state_dict().items()}
    target = net()
    load_weights(
        target, saved(tmp_path, {**whole, "objective.head": torch.ones(1)})
    )  # what is not the network's is left alone
    assert all(
        torch.equal(value, whole[f"net.{name}"]) for name, value in target.state_dict().items()
    )
    broken = {key: value for key, value in whole.items() if key != "net.0.bias"} | {
        "net.9.x": torch.ones(1),
        "net.1.bias": torch.ones(5),
    }
    with pytest.raises(
        UserError,
        match=(
            r"missing \['0.bias'\], unknown \['9.x'\], other shape \['1.bias \(5,\) instead of"
            r" \(2,\)'\]"
        ),
    ):
        load_weights(target, saved(tmp_path, broken))
    assert torch.equal(target.state_dict()["1.bias"], whole["net.1.bias"])  # nothing was taken over
    with pytest.raises(UserError, match="holds no network"):
        read_weights(saved(tmp_path, {"other.weight": torch.ones(1)}))


def test_optimizer_states_by_name_and_by_position() -> None:
    """An optimizer whose groups are not in the order of the network: where a moment could go to
    a wrong parameter of the same shape.
    """
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.full((2,), float(i))) for i, name in enumerate("abcd")}
    )
    groups = [
        {"params": [model["d"], model["b"]], "lr": 0.1},
        {"params": [model["a"], model["c"]], "lr": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups)
    for i, name in enumerate("abcd"):
        model[name].grad = torch.full((2,), float(i + 1))
    optimizer.step()
    state = optimizer.state_dict()
    named = by_name(state, optimizer, model)
    assert [group["params"] for group in named["param_groups"]] == [["d", "b"], ["a", "c"]]
    for i, name in enumerate("abcd"):
        assert torch.equal(named["state"][name]["exp_avg"], torch.full((2,), 0.1 * (i + 1)))
    back = by_position(named)
    assert back["param_groups"] == state["param_groups"]
    assert back["state"].keys() == state["state"].keys()
    assert all(
        torch.equal(back["state"][n]["exp_avg"], state["state"][n]["exp_avg"])
        for n in state["state"]
    )
