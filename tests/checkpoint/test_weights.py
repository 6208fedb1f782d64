"""Weights: a network takes those that fit, and the others are named."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_pretrain.checkpoint.weights import load_weights, read_weights
from lit_pretrain.errors import UserError


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
