"""Sharded checkpoints: read whole, complete by content, and never code. Those of several ranks:
tests/test_distributed.py.
"""

import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_pretrain.checkpoint.digests import DIGESTS, damage
from lit_pretrain.checkpoint.layout import SHARDED_ENTRIES, SHARDS_INDEX
from lit_pretrain.checkpoint.shards import (
    by_position,
    consolidated,
    read_index,
    read_shards,
    seal_shards,
    write_shards,
)
from lit_pretrain.checkpoint.weights import read_metadata
from lit_pretrain.errors import UserError
from lit_pretrain.parallel.strategy import by_name


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """Connect this process with itself."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def write_folder(folder: Path) -> Path:
    """Write a sharded checkpoint of one rank, as `Checkpoints` leaves it."""
    tensors = {"net.weight": torch.arange(1000.0), "net.bias": torch.ones(3, dtype=torch.bfloat16)}
    optimizer = {
        "state": {"net.weight": {"exp_avg": torch.zeros(1000)}},
        "param_groups": [{"params": ["net.weight"], "lr": 0.1}],
    }
    entries = {"lit_pretrain": {"step": 1, "contract": {}}}
    checkpoint = {"state_dict": tensors, "optimizer_states": [optimizer], **entries}
    with one_rank(folder.parent):
        write_shards(checkpoint, folder)
        seal_shards(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("sharded") / "step=00000001.ckpt")


def test_a_folder_is_read_whole(folder: Path) -> None:
    assert damage(folder) is None
    whole = consolidated(folder)
    assert torch.equal(whole["state_dict"]["net.weight"], torch.arange(1000.0))
    assert whole["lit_pretrain"]["step"] == 1
    assert whole["optimizer_states"][0]["param_groups"] == [{"params": [0], "lr": 0.1}]


def test_a_rank_that_cannot_write_says_what_the_system_says(tmp_path: Path) -> None:
    """As on a full disk; torch has an exception of its own, which is no `Exception`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint = {"state_dict": {"net.weight": torch.zeros(100_000)}}
    with one_rank(tmp_path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_shards(checkpoint, tmp_path / "step=00000001.ckpt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def shard(folder: Path) -> Path:
    (found,) = folder.glob("*.distcp")
    return found


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


HARM: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": empty,
    "halved": halve,
    "flipped": flip,
}


@pytest.mark.parametrize("with_digests", [True, False])
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["shard", SHARDS_INDEX, SHARDED_ENTRIES, DIGESTS])
def test_a_folder_is_complete_by_its_content(
    folder: Path, tmp_path: Path, name: str, harm: str, with_digests: bool
) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    if not with_digests:  # as older versions wrote it
        (copy / DIGESTS).unlink()
        assert damage(copy) is None
        if name == DIGESTS or (name, harm) == ("shard", "flipped"):
            return  # nothing tells a flipped bit in a shard of an older version
    HARM[harm](shard(copy) if name == "shard" else copy / name)
    if (name, harm) == (DIGESTS, "missing"):
        assert damage(copy) is None  # as a folder of an older version
    elif not with_digests and (harm == "flipped"):
        assert (
            damage(copy) is None or "damaged" in str(damage(copy)) or "cannot" in str(damage(copy))
        )
    else:
        assert damage(copy) is not None


def test_what_cannot_be_read_is_said_in_a_message(folder: Path, tmp_path: Path) -> None:
    """torch's CheckpointException is no Exception: it would pass every handler."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    halve(shard(copy))
    with pytest.raises(UserError, match="cannot be read"):
        read_shards(copy)
    empty(copy / SHARDED_ENTRIES)
    with pytest.raises(UserError, match="cannot be loaded"):
        read_metadata(copy)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/never",)


def test_an_index_runs_no_code(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / SHARDS_INDEX).write_bytes(pickle.dumps(Malicious()))
    (copy / DIGESTS).unlink()
    with pytest.raises(UserError, match=r"names posix\.system, which describes no tensor"):
        read_index(copy)
    assert "posix.system" in str(damage(copy))
    with pytest.raises(UserError, match="system"):
        read_shards(copy)


def test_an_index_names_no_file_outside_the_folder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / DIGESTS).unlink()
    index = read_index(copy)
    for part in index.storage_data.values():
        part.relative_path = "../secret"
    (copy / SHARDS_INDEX).write_bytes(pickle.dumps(index))
    assert "not the plain name of a file" in str(damage(copy))


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
