"""Mesh: sizes that make up the devices, and networks that they divide."""

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.parallel.mesh import Parallel, check_sizes
from lit_pretrain.step_size import MeshSizes


@pytest.mark.parametrize(
    ("parallel", "devices", "sizes"),
    [
        (Parallel(), 1, MeshSizes()),
        (Parallel(), 8, MeshSizes(dp_shard=8)),
        (Parallel(dp_replicate=2), 8, MeshSizes(2, 4)),
        (Parallel(dp_replicate=2, dp_shard=4), 8, MeshSizes(2, 4)),
        (Parallel(tp=2, cp=4), 8, MeshSizes(cp=4, tp=2)),
        (Parallel(dp_replicate=2, cp=2, tp=2), 16, MeshSizes(2, 2, 2, 2)),
    ],
)
def test_auto_takes_what_the_other_sizes_leave(
    parallel: Parallel, devices: int, sizes: MeshSizes
) -> None:
    assert parallel.sizes(devices) == sizes
    assert sizes.devices == devices
    assert sizes.dp_replicate * sizes.dp_shard * sizes.together == devices


@pytest.mark.parametrize(
    ("parallel", "devices", "message"),
    [
        (Parallel(tp=0), 4, "parallel.tp=0 must be at least 1"),
        (Parallel(dp_shard=-1), 4, "parallel.dp_shard=-1 must be at least 1"),
        (Parallel(ep=2), 4, "parallel.ep=2: no network here has experts"),
        (Parallel(pp=2), 4, "parallel.pp=2: pipelines are not supported; set parallel.pp: 1"),
        (Parallel(tp=3), 4, r"parallel: tp 3 must divide the number of devices, 4 \(trainer"),
        (Parallel(tp=2, cp=4), 4, "parallel: cp 4 × tp 2 = 8 must divide the number of devices"),
        (Parallel(dp_shard=2), 4, "dp_shard 2 must equal .*, 4 .* or set parallel.dp_shard: auto"),
        (Parallel(dp_shard=1), 2, "parallel: dp_shard 1 must equal the number of devices, 2"),
    ],
)
def test_sizes_that_are_refused(parallel: Parallel, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parallel.sizes(devices)


NET = ModelConfig(vocab_size=512, n_layer=1, width=48, n_head=6, n_kv_head=2, ffn_width=96)


@pytest.mark.parametrize(
    ("sizes", "change", "seq_len", "message"),
    [
        (MeshSizes(tp=4), {}, 64, r"tp=4 must divide model.net.n_head=6 and model.net.n_kv_head=2"),
        (MeshSizes(tp=4), {"n_head": 4, "width": 32}, 64, "n_kv_head=2: .* one of 1, 2$"),
        (MeshSizes(tp=2), {"ffn_width": 97}, 64, "must divide model.net.ffn_width=97"),
        (MeshSizes(tp=2), {"vocab_size": 511}, 64, "must divide model.net.vocab_size=511"),
        (
            MeshSizes(tp=2), {"position": "learned", "max_seq_len": 65}, 64,
            "must divide model.net.max_seq_len=65",
        ),
        (MeshSizes(tp=2), {"bigram_rows": 64}, 64, "=64 is a table that cannot be split"),
        (MeshSizes(tp=2), {"smear": True}, 64, "smear reads the previous token's embedding"),
        (MeshSizes(tp=2), {"block": "own.Block"}, 64, "model.net.block='own.Block' may hold"),
        (MeshSizes(tp=2), {}, 65, "data.seq_len=65 must be a multiple of parallel.tp = 2: .* 64"),
        (MeshSizes(cp=4), {}, 60, "data.seq_len=60 must be a multiple of .* = 8: .* to 64"),
        (MeshSizes(cp=2, tp=2), {}, 12, r"2 × parallel.cp × parallel.tp = 8"),
    ],
)  # fmt: skip
def test_networks_that_do_not_divide(
    sizes: MeshSizes, change: dict[str, object], seq_len: int, message: str
) -> None:
    net = ModelConfig(**{**NET.__dict__, **change})
    check_sizes(MeshSizes(dp_shard=8), net, seq_len)  # sharding alone divides anything
    with pytest.raises(UserError, match=message):
        check_sizes(sizes, net, seq_len)


def test_networks_that_divide() -> None:
    check_sizes(MeshSizes(cp=2, tp=2), NET, 64)
