"""Shard: what cannot be sharded is refused. That the parts get the weights of the whole:
tests/test_distributed.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.parallel.strategy import shard_


def test_tensor_parallelism_is_refused() -> None:
    mesh: Any = {
        "tensor_parallel": SimpleNamespace(size=lambda: 2),
        "data_parallel": SimpleNamespace(size=lambda: 1),
    }
    with torch.device("meta"):
        net = Transformer(ModelConfig(vocab_size=64, n_layer=1, width=32, n_head=2))
    with pytest.raises(
        UserError, match=r"tensor_parallel_size=2 is not supported; set tensor_parallel_size: 1"
    ):
        shard_(net, mesh, device=torch.device("cpu"), fill=lambda net: None)
