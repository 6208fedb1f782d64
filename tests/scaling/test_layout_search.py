"""The search for a layout: what it tries, what it keeps, and that a run would accept it."""

import itertools

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.parallel.mesh import Parallel, check_sizes
from lit_pretrain.scaling.flops import find_device
from lit_pretrain.scaling.layout_search import LayoutSearch, search_layouts
from lit_pretrain.scaling.memory import Layout, peak
from lit_pretrain.scaling.step_time import Cluster

SMALL = ModelConfig(
    vocab_size=4096, width=512, n_layer=4, n_head=8, n_kv_head=4, ffn_width=1536, max_seq_len=1024
)
GIB = 2**30


def search(
    devices: int,
    *,
    limit: float = 80 * GIB,
    rows: int | None = 64,
    seq_len: int = 1024,
    machine: int = 8,
    splits: bool = True,
) -> LayoutSearch:
    device = find_device("H100")
    assert device is not None
    return search_layouts(
        SMALL, Layout(rows=1, seq_len=seq_len, step_rows=rows),
        Cluster.of(device, "bf16", machine=machine), devices=devices, limit=limit, splits=splits,
    )  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2, 6, 8, 16, 48])
def test_a_run_accepts_every_layout(devices: int) -> None:
    found = search(devices, rows=96)
    assert found.fitting
    for candidate in found.fitting:
        axes, layout = candidate.axes, candidate.layout
        sizes = Parallel(**axes._asdict()).sizes(devices)
        assert sizes.devices == devices
        check_sizes(sizes, SMALL, 1024)
        groups = axes.dp_replicate * axes.dp_shard
        assert layout.rows * candidate.micro_batches * groups == 96
        assert layout.micro_batches == candidate.micro_batches
        assert candidate.bytes >= peak(SMALL, layout).bytes


def test_the_first_is_the_fastest_that_fits() -> None:
    found = search(16)
    speeds = [candidate.tokens_per_second for candidate in found.fitting]
    assert speeds == sorted(speeds, reverse=True)
    limit = min(candidate.bytes for candidate in found.fitting) * 1.05
    tight = search(16, limit=limit)
    assert all(candidate.bytes <= limit for candidate in tight.fitting)
    assert all(candidate.bytes > limit for candidate in tight.too_large)
    assert tight.fitting[0].tokens_per_second <= speeds[0]
    assert tight.tried == found.tried


def test_every_mesh_is_tried_once() -> None:
    found = search(8)
    meshes = [candidate.axes for candidate in (*found.fitting, *found.too_large)]
    assert len(meshes) == len(set(meshes))
    expected = {
        (copies, shard, cp, tp)
        for copies, shard, cp, tp in itertools.product((1, 2, 4, 8), repeat=4)
        if copies * shard * cp * tp == 8 and tp <= 4  # four key heads
    }
    assert set(meshes) == expected


def test_matrices_are_split_within_a_machine_only() -> None:
    assert max(candidate.axes.tp for candidate in search(16, machine=2).fitting) == 2


def test_what_cannot_be_split_is_sharded() -> None:
    assert {(c.axes.tp, c.axes.cp) for c in search(8, splits=False).fitting} == {(1, 1)}


def test_rows_fewer_than_devices_are_split() -> None:
    found = search(8, rows=2)
    assert found.fitting
    assert all(candidate.layout.together >= 4 for candidate in found.fitting)


def test_rows_that_divide_nowhere_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be divided over 7 devices"):
        search(7, rows=64)


def test_long_rows_are_split_where_they_do_not_fit() -> None:
    """Of a row of 512k tokens no device holds the activations alone."""
    found = search(8, rows=1, seq_len=2**19, limit=16 * GIB)
    assert found.fitting
    assert all(candidate.axes.cp > 1 or candidate.axes.tp > 1 for candidate in found.fitting)
