"""Weights: the network's tensors out of a checkpoint file, a sharded checkpoint folder or a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.checkpoint.consolidate import read_folder
from lit_pretrain.checkpoint.find import resolve
from lit_pretrain.checkpoint.hf_import import is_hf_folder, read_tensors
from lit_pretrain.errors import UserError

PREFIX = "net."


def read_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; the tensors of a file are mapped and not read."""
    if path.is_dir():
        return dict(torch.load(path / "meta.pt", map_location="cpu", weights_only=True))
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def read_weights(where: str, *, which: str = "last") -> dict[str, Tensor]:
    """The network's state dict, consolidated, from a run folder, a checkpoint or a Hugging Face folder.

    Raises:
        UserError: There is no complete checkpoint, or it holds no network.
    """
    if is_hf_folder(Path(where)):
        return read_tensors(Path(where))
    path = resolve(where, which=which)
    if path.is_dir():
        whole: Mapping[str, Tensor] = read_folder(path, only={"state_dict"})["state_dict"]
    else:
        whole = read_metadata(path).get("state_dict", {})
    weights = {key.removeprefix(PREFIX): value for key, value in whole.items() if key.startswith(PREFIX)}
    if not weights:
        raise UserError(f"checkpoint {path} holds no network (no key starts with {PREFIX!r}); was it made by lit_pretrain?")
    return weights


def load_weights(net: nn.Module, where: str, *, which: str = "last") -> None:
    """Give a whole network the weights of a checkpoint.

    Raises:
        UserError: Names or shapes differ; the first few are named.
    """
    weights = read_weights(where, which=which)
    own = net.state_dict()
    missing = sorted(set(own) - set(weights))
    extra = sorted(set(weights) - set(own))
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in own if k in weights and own[k].shape != weights[k].shape
    ]
    if missing or extra or shapes:
        raise UserError(
            f"the weights of {where} do not fit this network: missing {missing[:3]}, unknown {extra[:3]}, "
            f"other shape {shapes[:3]}; use the network of that run (its config.yaml, model.net)"
        )
    net.load_state_dict(weights)
