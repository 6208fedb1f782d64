"""`lit_pretrain scaling check-transfer` as a user runs it: what transfers passes, what does not
fails, and the traps of the guide stay flat.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main

NET = {
    "n_layer": 2, "width": 64, "n_head": 4, "activation": "relu2", "norm_weight": False,
    "qk_norm": True, "embed_norm": True, "value_embeddings": "alternate", "residual_scalars": True,
    "max_seq_len": 64, "init": "gpt2",
}  # fmt: skip
"""The default recipe in little."""
MUON = {
    "class_path": "lit_pretrain.optim.MuonAdamW",
    "init_args": {
        "matrix_lr": 0.04, "embedding_lr": 0.4, "value_embedding_lr": 0.4, "head_lr": 0.006,
        "scalar_lr": 0.005,
    },
}  # fmt: skip
ADAMW = {"class_path": "lit_pretrain.optim.AdamW", "init_args": {"lr": 0.005, "eps": 1e-10}}
SHORT = [
    "--widths", "64", "128", "192", "--depths", "2", "4", "8", "--width", "64", "--steps", "6",
    "--rows", "4", "--seq_len", "32", "--vocab_size", "128",
]  # fmt: skip


def config(folder: Path, **model: Any) -> str:
    file = folder / "config.yaml"
    wanted = {"net": NET, "optimizer": MUON, "transfer": {"base_width": 64, "base_depth": 6}}
    file.write_text(yaml.safe_dump({"model": wanted | model}))
    return str(file)


def check(folder: Path, file: str, *options: str) -> int:
    return main(["scaling", "check-transfer", file, *SHORT, f"--out={folder / 'out'}", *options])


def test_with_transfer_all_moves_alike_and_without_it_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = check(tmp_path, config(tmp_path), "--control", f"--tensorboard={tmp_path / 'tb'}")
    said = capsys.readouterr().out
    assert code == 0, said
    assert "pass: with model.transfer all parts move alike" in said
    with_transfer, _, without = said.partition("without transfer")
    assert "FAIL" not in with_transfer
    assert "FAIL" in without
    assert (tmp_path / "out" / "transfer.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "transfer.html").read_text()
    assert "data:image/png;base64," in page
    assert "width, with transfer" in page
    assert list((tmp_path / "tb").glob("events*"))


TRAPS: dict[str, dict[str, Any]] = {
    "adamw, tied": {
        "net": {"n_layer": 2, "width": 64, "n_head": 4, "max_seq_len": 64, "tie_embeddings": True},
        "optimizer": ADAMW,
    },
    "as many key heads": {
        "net": NET | {"n_kv_head": 2},
        "transfer": {"base_width": 64, "base_depth": 6, "base_n_kv_head": 2},
    },
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = check(tmp_path, config(tmp_path, **TRAPS[trap]), "--depths", "--json")
    found = json.loads(capsys.readouterr().out)
    slopes = {
        (sweep["by"], part): own["slope"]
        for sweep in found["sweeps"]
        for part, own in sweep["parts"].items()
    }
    assert code == 0, slopes
    assert found["passes"]
    assert len(slopes) == 4


def test_what_fails_says_so_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path, transfer=None)
    assert check(tmp_path, file, "--depths") == 1
    said = capsys.readouterr().out
    assert "FAIL: without model.transfer the slope is too steep: " in said
    assert "set model.transfer to the network on which the rates were tuned" in said
    assert "depth," not in said


def test_the_config_of_a_run_is_checked_at_other_widths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds the scale of the logits that the run's own width has."""
    tied = TRAPS["adamw, tied"]
    net = tied["net"] | {"width": 128, "logit_scale": 0.5}
    file = config(tmp_path, **tied | {"net": net})
    assert check(tmp_path, file, "--depths", "--seeds=1") == 0, capsys.readouterr()
    other = config(tmp_path, **tied | {"net": net | {"logit_scale": 0.3}})
    assert check(tmp_path, other, "--depths") == 2
    assert "model.net.logit_scale=0.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--widths", "64"], ["--widths 64", "two different"]),
        (["--widths", "64", "64"], ["--widths 64 64", "two different"]),
        (["--widths", "64", "72"], ["width 72", "whole number of heads", "multiples of 16"]),
        (
            ["--widths", "64", "66", "--set", "{model: {transfer: {base_head_dim: 16}}}"],
            ["width 66", "divided into 4 heads", "multiples of 4"],
        ),
        (["--widths", "--depths"], ["nothing is compared"]),
        (["--steps", "0"], ["--steps=0", "at least 1"]),
        (["--vocab_size", "2"], ["--vocab_size=2", "at least 64"]),
        (["--set", "{model: {net: {widht: 3}}}"], ["widht"]),
        (["--set", "{model: {optimizer: {init_args: {matrix_lr: 1.0e+30}}}}"], ["lower the"]),
    ],
)
def test_mistakes(
    options: Sequence[str], words: Sequence[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    try:
        code = check(tmp_path, config(tmp_path), *options)
    except SystemExit as exit:  # of the parser
        code = int(exit.code or 0)
    said = capsys.readouterr().err
    assert code == 2, said
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()
