"""Runs with products in fp8, through the command line on a CPU."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics

BASE = (
    "--model.net.n_layer=1", "--model.net.width=64", "--model.net.n_head=2",
    "--model.net.ffn_width=128", "--model.net.max_seq_len=32", "--model.compile=off",
    "--data.seq_len=32", "--data.micro_batch_size=8", "--data.global_batch_tokens=256",
    "--data.val_tokens=256", "--log_every=1", "--validate_every=0", "--checkpoint_every=4",
    "--sample_prompts=[]", "--max_steps=8", "--trainer.accelerator=cpu",
    "--trainer.precision=bf16-mixed",
)  # fmt: skip


def fit(dataset: Path, runs: Path, name: str, *options: str) -> int:
    return main(["fit", *BASE, f"--data.path={dataset}", f"--runs={runs}", f"--name={name}",
                 *options])  # fmt: skip


def losses(run: Path) -> list[float]:
    return [m["train/loss"] for m in read_metrics(run) if "train/loss" in m]


@pytest.fixture(scope="module")
def plain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert fit(dataset, runs, "plain") == 0
    return runs


def test_a_run_learns_and_goes_on_as_any_other(
    dataset: Path, plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao", reason="needs the fp8 extra")
    capsys.readouterr()
    assert fit(dataset, plain, "fp8", "--model.float8=tensorwise") == 0
    said = capsys.readouterr()
    text = said.out + said.err
    assert "bf16-mixed with tensorwise fp8" in text
    assert "float8: tensorwise products in 7 of 7 matrices of the blocks" in text
    assert "a CPU computes in fp8 for trials" in text
    assert "Failed to load" not in text
    ours, theirs = losses(plain / "fp8"), losses(plain / "plain")
    assert ours != theirs
    assert ours[-1] < ours[0] - 0.5
    assert ours == pytest.approx(theirs, abs=0.05)
    last = [
        torch.load(plain / run / "checkpoints" / "step=00000008.ckpt", weights_only=True)
        for run in ("fp8", "plain")
    ]
    assert list(last[0]["state_dict"]) == list(last[1]["state_dict"])

    # A resume keeps to the settings of its run; a fork may begin and end with fp8.
    middle = "checkpoints/step=00000004.ckpt"
    assert fit(dataset, plain, "plain", "--model.float8=tensorwise", "--resume=auto",
               "--max_steps=9") == 2  # fmt: skip
    assert "model.float8: the checkpoint has None, this run 'tensorwise'" in capsys.readouterr().err
    for name, options in (("on", ("--model.float8=rowwise",)), ("off", ())):
        parent = plain / ("plain" if name == "on" else "fp8")
        assert fit(dataset, plain, name, f"--fork={parent / middle}", *options) == 0
        assert len(losses(plain / name)) == 4

    # What does not train needs no torchao.
    for module in [name for name in sys.modules if name.startswith("torchao")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "lit_pretrain.model.float8")
    run = str(plain / "fp8")
    assert main(["validate", "--run", run, "--trainer.accelerator=cpu"]) == 0
    assert main(["export", "--to", "hf", run, str(plain / "exported")]) == 0


@pytest.mark.slow
def test_sharded_weights_learn_alike(
    dataset: Path, plain: Path, run_cli: Callable[..., Any]
) -> None:
    """Each rank scales its own activations, so that losses are near and not equal."""
    pytest.importorskip("torchao", reason="needs the fp8 extra")
    done = run_cli(
        "fit", *BASE, f"--data.path={dataset}", f"--runs={plain}", "--name=sharded",
        "--model.float8=tensorwise", "--trainer.devices=2", "--trainer.strategy=fsdp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(plain / "sharded") == pytest.approx(losses(plain / "plain"), abs=0.05)


def test_without_the_package(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else found(name, *a)
    )
    assert fit(dataset, tmp_path, "none", "--model.float8=tensorwise") == 2
    error = capsys.readouterr().err
    assert "model.float8=tensorwise needs torchao: pip install 'lit_pretrain[fp8]'" in error
    assert not (tmp_path / "none").exists()


def test_the_plan_follows_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("plan", "--config=configs/model/llama3_8b.yaml", "--max_tokens=1e12", "--json",
             "--device=H100", "--devices=64")  # fmt: skip
    root = Path(__file__).parents[2]
    arguments = [shape[0], f"--config={root / 'configs/model/llama3_8b.yaml'}", *shape[2:]]
    found = {}
    for options in ((), ("--model.float8=rowwise",), ("--dtype=fp8",)):
        assert main([*arguments, *options]) == 0
        found[options] = json.loads(capsys.readouterr().out)
    bf16, option, asked = found.values()
    assert option["time"]["dtype"] == "fp8"
    assert option["time"] == asked["time"]
    assert option["memory"] == asked["memory"]
    assert option["memory"]["peak"] < bf16["memory"]["peak"]  # no copies of weights in bf16
    assert main([*arguments, "--model.float8=rowwise", "--layout=auto"]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]["best"]
    assert main([*arguments, "--layout=auto"]) == 0
    plain = json.loads(capsys.readouterr().out)["layouts"]["best"]
    assert all(layout["parallel"]["tp"] == 1 for layout in layouts)
    gain = layouts[0]["tokens_per_second_per_device"] / plain[0]["tokens_per_second_per_device"]
    assert 1.1 < gain < 1.6  # torchtitan measured 1.28
    assert main([*arguments[:-2], "--device=A100", "--model.float8=rowwise"]) == 2
    assert "has no products in fp8" in capsys.readouterr().err
