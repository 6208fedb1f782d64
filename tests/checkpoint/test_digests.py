"""Digests: no bit of a checkpoint can change without being noticed."""

import random
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch

from lit_pretrain.checkpoint import digests
from lit_pretrain.checkpoint.digests import damage
from lit_pretrain.checkpoint.layout import best, check_sound, checkpoint_name, newest_complete
from lit_pretrain.checkpoint.weights import read_metadata, write_checkpoint
from lit_pretrain.errors import UserError

CONTENT = {
    "state_dict": {"net.weight": torch.arange(5000.0), "net.bias": torch.ones(7).bfloat16()},
    "lit_pretrain": {"step": 3, "contract": {"max_steps": 10}},
    "loops": {"fit_loop": {"progress": [1, 2.5, None, "text"]}},
}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / checkpoint_name(3)
    write_checkpoint(CONTENT, path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A checkpoint as older versions wrote it."""
    path = tmp_path / "old" / "checkpoints" / checkpoint_name(3)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        torch.save(CONTENT, file)
    return path


def test_torch_reads_a_sealed_file_as_before(sealed: Path, plain: Path) -> None:
    for path in (sealed, plain):
        assert damage(path) is None
        for loaded in (read_metadata(path), torch.load(path, weights_only=True)):
            assert loaded["lit_pretrain"] == CONTENT["lit_pretrain"]
            assert torch.equal(loaded["state_dict"]["net.weight"], torch.arange(5000.0))
    # Beside the comment and its length, it is the file that torch writes.
    comment = zipfile.ZipFile(sealed).comment
    assert comment.startswith(b"lit_pretrain xxh3_128 ")
    assert len(sealed.read_bytes()) == len(plain.read_bytes()) + len(comment)


def test_every_flipped_bit_is_noticed(sealed: Path) -> None:
    """All bits of the last 80 bytes, and a sample of the others."""
    data = sealed.read_bytes()
    rng = random.Random(0)
    last = range(8 * (len(data) - 80), 8 * len(data))
    for bit in [*last, *(rng.randrange(8 * len(data)) for _ in range(400))]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(changed)
        assert damage(sealed) is not None, f"bit {bit} of {8 * len(data)}"


def test_every_other_length_is_noticed(sealed: Path) -> None:
    data = sealed.read_bytes()
    rng = random.Random(0)
    lengths = [0, 1, 21, 22, len(data) // 2, *range(len(data) - 100, len(data))]
    for length in [*lengths, *(rng.randrange(len(data)) for _ in range(100))]:
        sealed.write_bytes(data[:length])
        assert damage(sealed) is not None, length
    sealed.write_bytes(data + b"\0")
    assert damage(sealed) is not None


def test_an_old_file_is_checked_as_far_as_it_goes(plain: Path) -> None:
    """Its archive has CRCs of what it holds, and none of its own headers: what passes them loads
    unchanged or is refused in a message.
    """
    data = plain.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        plain.write_bytes(changed)
        if damage(plain) is None:
            try:
                loaded = read_metadata(plain)
            except UserError:
                continue
            assert torch.equal(loaded["state_dict"]["net.weight"], torch.arange(5000.0))
    plain.write_bytes(data[:-30])
    assert damage(plain) is not None


def test_what_is_damaged_is_passed_over_or_refused(sealed: Path) -> None:
    run = sealed.parent.parent
    newer = sealed.with_name(checkpoint_name(4))
    shutil.copy(sealed, newer)
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 16
    newer.write_bytes(data)
    said: list[str] = []
    assert newest_complete(run, said.append) == sealed
    assert len(said) == 1
    assert str(newer) in said[0]
    assert "digest" in said[0]
    with pytest.raises(UserError, match=r"step=00000004.ckpt is torn, damaged.*another one"):
        check_sound(newer)
    (run / "checkpoints" / "best.json").write_text(f'{{"checkpoint": "{newer.name}", "loss": 1}}')
    with pytest.raises(UserError, match="damaged"):
        best(run)


def test_a_large_file_is_hashed_once(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_REMEMBERED_BYTES", 1)
    assert damage(sealed) is None
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_hash", lambda *args: "another")
        assert damage(sealed) is None
    time.sleep(0.02)  # longer than the clock of a file system takes to move on
    data = bytearray(sealed.read_bytes())
    data[100] ^= 1
    sealed.write_bytes(data)
    assert damage(sealed) is not None
