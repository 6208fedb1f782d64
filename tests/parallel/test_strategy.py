"""Strategy: one place says how devices are divided. That the parts get the weights of the whole:
tests/test_distributed.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.parallel.mesh import Parallel
from lit_pretrain.parallel.strategy import parallel_of, shard_, sharding_of


class LightningMesh(dict[str, Any]):
    """The mesh of Lightning's own strategy."""

    mesh_dim_names = ("data_parallel", "tensor_parallel")


def test_tensor_parallelism_of_lightning_is_refused() -> None:
    mesh: Any = LightningMesh(
        data_parallel=SimpleNamespace(size=lambda: 1),
        tensor_parallel=SimpleNamespace(size=lambda: 2),
    )
    with torch.device("meta"):
        net = Transformer(ModelConfig(vocab_size=64, n_layer=1, width=32, n_head=2))
    with pytest.raises(UserError, match=r"tensor_parallel_size=2 .* set parallel\.tp instead"):
        shard_(net, mesh, device=torch.device("cpu"), fill=lambda net: None)


@pytest.mark.parametrize(
    ("strategy", "parallel", "found"),
    [
        ("auto", None, None),
        ("ddp", None, None),
        ("fsdp", None, Parallel()),
        ("auto", Parallel(tp=2), Parallel(tp=2)),
        ("fsdp", Parallel(tp=2), Parallel(tp=2)),
    ],
)
def test_parallel_of(strategy: str, parallel: Parallel | None, found: Parallel | None) -> None:
    assert parallel_of(strategy, parallel) == found
    expected = "none" if found is None and strategy != "ddp" else "ddp" if not found else "fsdp"
    assert sharding_of(strategy, found, 1 if expected == "none" else 2) == expected


@pytest.mark.parametrize("strategy", ["ddp", "single_device", {"class_path": "own.Strategy"}])
def test_two_places_that_divide_devices(strategy: Any) -> None:
    with pytest.raises(UserError, match=r"parallel and trainer\.strategy=.* leave one of the two"):
        parallel_of(strategy, Parallel(tp=2))
