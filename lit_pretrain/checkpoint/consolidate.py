"""Consolidate: a sharded checkpoint folder as the one state that a single process or DDP resumes from."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict


def read_folder(path: Path, *, only: set[str] | None = None) -> dict[str, Any]:
    """The tensors of a sharded checkpoint, whole, on the CPU of this process.

    Args:
        path: The folder.
        only: Top-level entries to read ("state_dict"); all if None.
    """
    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys=only)  # type: ignore[no-untyped-call]
    _load_state_dict(state, storage_reader=FileSystemReader(path), planner=planner, no_dist=True)
    return state


def consolidated(path: Path) -> dict[str, Any]:
    """The checkpoint of a folder as it would have been written by a strategy that does not shard; training goes on from it exactly.

    Args:
        path: A complete sharded checkpoint.
    """
    tensors = read_folder(path)
    checkpoint = dict(torch.load(path / "meta.pt", map_location="cpu", weights_only=True))
    checkpoint["state_dict"] = tensors["state_dict"]
    states: list[dict[str, Any]] = []
    while (name := f"optimizer_{len(states)}") in tensors:
        states.append(by_position(tensors[name]))
    checkpoint["optimizer_states"] = states
    return checkpoint


def by_position(named: dict[str, Any]) -> dict[str, Any]:
    """An optimizer state keyed by parameter names, as the positions that an unsharded optimizer counts."""
    names = [name for group in named["param_groups"] for name in group["params"]]
    position = {name: i for i, name in enumerate(names)}
    return {
        "state": {position[name]: value for name, value in named["state"].items()},
        "param_groups": [{**group, "params": [position[name] for name in group["params"]]} for group in named["param_groups"]],
    }
