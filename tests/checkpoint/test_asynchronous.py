"""A copy in the host's memory is the same file as its original, whatever becomes of that."""

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_pretrain.checkpoint.asynchronous import Background, HostCopy


def file_of(checkpoint: Any) -> bytes:
    written = io.BytesIO()
    torch.save(checkpoint, written)
    return written.getvalue()


def made() -> dict[str, Any]:
    """Views, shared memory, an empty tensor, several dtypes and strides, and what is no tensor."""
    base = torch.arange(24.0).view(4, 6)
    weights = OrderedDict(whole=base, view=base[1:3], turned=base.T, again=base)
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as of state_dict()
    adam = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5, dtype=torch.bfloat16)}}
    return {
        "state_dict": weights,
        "optimizer_states": [{"state": adam, "param_groups": [{"params": [0], "lr": 0.1}]}],
        "empty": torch.empty(0, 3),
        "learned": torch.nn.Parameter(torch.ones(2)),
        "window": {"sums": [1.5, 2], "names": ("a", "a", None)},
    }


def test_a_copy_is_the_same_file_and_stays_so() -> None:
    checkpoint, copies = made(), HostCopy()
    expected = file_of(checkpoint)
    copied = copies.take(checkpoint)
    assert file_of(copied) == expected
    assert copied["state_dict"]["again"] is copied["state_dict"]["whole"]
    checkpoint["state_dict"]["whole"].zero_()
    checkpoint["optimizer_states"][0]["state"][0]["step"] += 1
    checkpoint["learned"].data.zero_()
    checkpoint["window"]["sums"].append(3)
    assert file_of(copied) == expected
    later = file_of(checkpoint)
    assert later != expected
    assert file_of(copies.take(checkpoint)) == later


def test_the_memory_is_used_again() -> None:
    checkpoint, copies = made(), HostCopy()
    copies.reserve(1 << 16, pinned=False)
    places = {copies.take(checkpoint)["state_dict"]["whole"].data_ptr() for _ in range(3)}
    assert len(places) == 1
    larger = {"state_dict": {"whole": torch.ones(1 << 16)}}
    assert torch.equal(copies.take(larger)["state_dict"]["whole"], torch.ones(1 << 16))


def test_a_part_of_a_sharded_tensor_remains_one(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        whole = torch.arange(12.0).view(4, 3)
        mesh = init_device_mesh("cpu", (1,))
        parts = {"state_dict": {"w": distribute_tensor(whole.clone(), mesh)}}
        copied = HostCopy().take(parts)["state_dict"]["w"]
        parts["state_dict"]["w"].zero_()
        assert isinstance(copied, DTensor)
        assert copied.device_mesh == mesh
        assert torch.equal(copied.full_tensor(), whole)
    finally:
        torch.distributed.destroy_process_group()


def test_a_job_at_a_time_whose_failure_is_raised_once() -> None:
    background, goes_on = Background(), threading.Event()
    assert not background.wait()

    def fail() -> None:
        goes_on.wait()
        raise KeyError("lost")

    background.start(fail)
    assert background.busy
    with pytest.raises(AssertionError, match="one job at a time"):
        background.start(fail)
    goes_on.set()
    with pytest.raises(KeyError, match="lost"):
        background.wait()
    assert not background.busy
    assert not background.wait()
    background.start(lambda: None)
    assert background.wait()
