"""Averages of checkpoints: what a decay of the learning rate would have ended with, in one pass.

A checkpoint of a run is the first one plus the steps taken since, theta_k = theta_0 + sum d_i. A
decay would have shrunk the later steps: theta_0 + sum w_i d_i with 1 >= w_1 >= ... >= w_k >= 0.
That is a weighted mean of the checkpoints (WSM, arXiv 2507.17634), with c_0 = 1 - w_1,
c_j = w_j - w_(j+1) and c_k = w_k. Equal weights are a linear decay to zero. It holds for the steps
as they were taken: after a decay nothing is left to gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lit_pretrain.checkpoint.layout import SCORE_KEY
from lit_pretrain.checkpoint.weights import read_score, read_stored
from lit_pretrain.errors import UserError

WEIGHTS = ("equal", "1-sqrt", "ema:HALF_LIFE")


def mean_weights(decay: Sequence[float]) -> list[float]:
    """Turn the factors that a decay puts on steps 1 to k into the weights of checkpoints 0 to k."""
    edges = [1.0, *decay, 0.0]
    return [before - after for before, after in pairwise(edges)]


def checkpoint_weights(kind: str, steps: Sequence[int]) -> list[float]:
    """Compute the weight of each checkpoint; they add up to 1.

    Args:
        kind: equal: a linear decay. 1-sqrt: a decay by 1 - sqrt(progress). ema:HALF_LIFE: a weight
            that halves with every HALF_LIFE optimizer steps before the newest.
        steps: Optimizer steps of the checkpoints, oldest first.

    Raises:
        UserError: There is no such kind.
    """
    count = len(steps)
    if kind == "equal":
        return [1 / count] * count
    if kind == "1-sqrt":
        return mean_weights([1 - math.sqrt(i / count) for i in range(1, count)])
    name, _, text = kind.partition(":")
    try:
        half_life = float(text) if name == "ema" else math.nan
    except ValueError:
        half_life = math.nan
    if not 0 < half_life < math.inf:
        raise UserError(
            f"--weights {kind}: there is {', '.join(WEIGHTS)}, with a positive number of optimizer"
            " steps for HALF_LIFE"
        )
    # Counted back from the newest: no power is then above 1.
    shares = [2.0 ** ((step - steps[-1]) / half_life) for step in steps]
    return [share / sum(shares) for share in shares]


def average_checkpoints(
    paths: Sequence[Path], weights: Sequence[float]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Average the tensors of checkpoints, one tensor at a time, with sums in fp64.

    Tensors in files are mapped, so that beside the result only one of them is in memory; those of a
    sharded checkpoint are read whole.

    Args:
        paths: Checkpoints of one architecture.
        weights: Weight of each.

    Returns:
        The network's tensors in the dtypes of the last checkpoint, and the score head of a reward
        model.

    Raises:
        UserError: Names or shapes differ.
    """
    states = [_tensors(path) for path in paths]
    _check_same_shapes(paths, states)
    found = {
        name: _mean([state[name] for state in states], weights).to(tensor.dtype)
        for name, tensor in states[-1].items()
    }
    return found, found.pop(SCORE_KEY, None)


def _tensors(path: Path) -> dict[str, Tensor]:
    score = read_score(path)
    return read_stored(path) | ({} if score is None else {SCORE_KEY: score})


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    # One after the other: only one of the mapped tensors is in memory as fp64 at a time.
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total


def _check_same_shapes(paths: Sequence[Path], states: Sequence[Mapping[str, Tensor]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in states[-1].items()}
    for path, state in zip(paths, states, strict=True):
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"{path} and {paths[-1]} are different networks: {name} is"
                    f" {found.get(name, 'missing')} in the one and"
                    f" {expected.get(name, 'missing')} in the other; only checkpoints of one"
                    " architecture have an average"
                )
