"""Names of checkpoints, which of them are complete, and which one is meant."""

import json
from pathlib import Path

import pytest
import torch

from lit_pretrain.checkpoint.layout import (
    best,
    checkpoint_name,
    checkpoints,
    newest_complete,
    resolve,
    step_of,
)
from lit_pretrain.checkpoint.weights import write_checkpoint
from lit_pretrain.errors import UserError


def write(run: Path, step: int, *, whole: bool = True) -> Path:
    path = run / "checkpoints" / checkpoint_name(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"state_dict": {"net.weight": torch.ones(3)}}, path)
    if not whole:
        path.write_bytes(path.read_bytes()[:-30])
    return path


def test_names_sort_and_read_back() -> None:
    assert step_of(Path(checkpoint_name(12))) == 12
    assert step_of(Path("step=00000012.ckpt.tmp")) is None
    assert sorted([checkpoint_name(100), checkpoint_name(9)]) == [
        checkpoint_name(9),
        checkpoint_name(100),
    ]


def test_the_newest_complete_one(tmp_path: Path) -> None:
    said: list[str] = []
    assert newest_complete(tmp_path, said.append) is None
    old, torn = write(tmp_path, 9), write(tmp_path, 10, whole=False)
    (tmp_path / "checkpoints" / "step=00000011.ckpt.tmp").write_text("")
    sharded = tmp_path / "checkpoints" / checkpoint_name(12)
    sharded.mkdir()
    (sharded / "meta.pt").write_text("")  # the names alone make no checkpoint
    (sharded / ".metadata").write_text("")
    assert [path.name for path in checkpoints(tmp_path)] == [old.name, torn.name, sharded.name]
    assert newest_complete(tmp_path, said.append) == old
    assert [name in text for name, text in zip((sharded.name, torn.name), said, strict=True)] == [
        True,
        True,
    ]


def test_what_a_user_may_write(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    (tmp_path / "checkpoints" / "best.json").write_text(
        json.dumps({"checkpoint": first.name, "loss": 1.0})
    )
    assert resolve(str(tmp_path)) == second
    assert resolve(str(tmp_path), which="best") == first == best(tmp_path)
    assert resolve(str(first)) == first
    torn = write(tmp_path, 3, whole=False)
    with pytest.raises(UserError, match="is torn, damaged or not a checkpoint"):
        resolve(str(torn))
    with pytest.raises(UserError, match="does not exist"):
        resolve(str(tmp_path / "nowhere"))
    first.unlink()
    with pytest.raises(UserError, match="no complete checkpoint"):
        resolve(str(tmp_path), which="best")
