"""TensorBoard as a person sees it: served, opened in headless Chromium, and looked at."""

import importlib.util
import shutil
import struct
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from lit_pretrain.__main__ import main

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def colours(png: bytes) -> set[tuple[int, int, int]]:
    """The colours of an 8-bit RGB or RGBA PNG."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[kind]
    data, at = b"", 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        if name == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    raw = zlib.decompress(data)
    stride, above, found = width * channels, bytearray(width * channels), set()
    for y in range(height):
        line = bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            up = above[i]
            corner = above[i - channels] if i >= channels else 0
            estimate = left + up - corner
            nearest = min((abs(estimate - v), k, v) for k, v in enumerate((left, up, corner)))[2]
            line[i] = (
                line[i] + (0, left, up, (left + up) // 2, nearest)[raw[y * (stride + 1)]]
            ) & 255
        if y % 4 == 0:
            found |= {tuple(line[x : x + 3]) for x in range(0, stride, channels)}
        above = line
    return found


@pytest.mark.browser
def test_the_curves_are_drawn(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("selenium", reason="needs the dev extra")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    code = main([
        "fit", "--config", str(ROOT / "configs/pretrain/llama_adamw.yaml"), "--model.net.n_layer=2",
        "--model.net.width=32",
        "--model.net.n_head=2", "--model.net.ffn_width=64", "--model.compile=off",
        "--data.seq_len=32", "--data.micro_batch_size=2",
        "--data.global_batch_tokens=128", "--data.val_tokens=256", "--max_steps=20",
        "--log_every=2", "--validate_every=5",
        "--sample_tokens=4", f"--data.path={dataset}", f"--runs={tmp_path / 'runs'}",
        "--name=drawn", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    assert code == 0
    picture = load("picture")
    with picture.tensorboard(tmp_path / "runs") as address:
        curves = picture.draw(address, tmp_path / "full.png", width=900, height=700)
        empty = tmp_path / "nothing"
        empty.mkdir()
    assert curves >= 4  # train, validation, and the sources beside them
    orange = {
        c
        for c in colours((tmp_path / "full.png").read_bytes())
        if c[0] > 200 and 60 < c[1] < 140 and c[2] < 90
    }
    assert orange, "the picture holds nothing in the colour of the first run"
    with picture.tensorboard(empty) as address:
        assert (
            picture.draw(address, tmp_path / "empty.png", width=900, height=700, seconds=6) == 0
        )  # the check can fail
