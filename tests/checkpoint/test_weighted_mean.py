"""Averages: the identity of merging and decay, streams in fp64, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import checkpoints
from lit_pretrain.checkpoint.weighted_mean import (
    average_checkpoints,
    checkpoint_weights,
    mean_weights,
)
from lit_pretrain.checkpoint.weights import read_stored, write_checkpoint
from lit_pretrain.errors import UserError
from lit_pretrain.files import read_sealed_json


@settings(max_examples=30)
@given(
    decay=st.lists(st.floats(0, 1), min_size=1, max_size=20).map(lambda w: sorted(w)[::-1]),
    seed=st.integers(0, 1000),
)
def test_a_mean_of_checkpoints_is_a_decay(decay: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    steps = torch.randn(len(decay), 5, dtype=torch.float64)
    places = torch.cat([torch.zeros(1, 5, dtype=torch.float64), steps.cumsum(0)])
    weights = torch.tensor(mean_weights(decay), dtype=torch.float64)
    decayed = (torch.tensor(decay, dtype=torch.float64)[:, None] * steps).sum(0)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert float((weights @ places - decayed).abs().max()) < 1e-12


def test_weights_by_name() -> None:
    linear = mean_weights([1 - i / 13 for i in range(1, 13)])
    steps = list(range(0, 130, 10))
    assert checkpoint_weights("equal", steps) == pytest.approx(linear, abs=1e-12)
    root = checkpoint_weights("1-sqrt", steps)
    assert root[0] == pytest.approx(math.sqrt(1 / 13), abs=1e-12)  # 0.277
    assert sum(root) == pytest.approx(1, abs=1e-12)
    ema = checkpoint_weights("ema:20", [0, 5, 20, 40])
    assert ema[3] / ema[2] == pytest.approx(2)
    assert ema[2] / ema[0] == pytest.approx(2)
    assert sum(ema) == pytest.approx(1, abs=1e-12)
    for wrong in ("ema", "ema:", "ema:x", "ema:0", "ema:-1", "ema:inf", "mean"):
        with pytest.raises(UserError, match="there is equal, 1-sqrt, ema:HALF_LIFE"):
            checkpoint_weights(wrong, [0, 1])


def test_sums_are_in_fp64(tmp_path: Path) -> None:
    values = [1.0, 2.0**-23, 2.0**-23, 2.0**-23]
    paths = [tmp_path / f"step={i:08d}.ckpt" for i in range(4)]
    for path, value in zip(paths, values, strict=True):
        write_checkpoint({"state_dict": {"net.w": torch.full((2, 3), value)}}, path)
    found, score = average_checkpoints(paths, [1.0, 0.5, 0.25, 0.25])
    assert score is None
    assert found["w"].dtype == torch.float32
    assert torch.equal(found["w"], torch.full((2, 3), 1 + 2.0**-23))  # fp32 sums lose the halves
    write_checkpoint({"state_dict": {"net.w": torch.zeros(3, 2)}}, paths[0])
    with pytest.raises(UserError, match=r"different networks: w is \(3, 2\) in the one and \(2, 3"):
        average_checkpoints(paths, [0.25] * 4)


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    for name, width, more in (
        ("run", 32, []),
        ("wide", 64, []),
        ("again", 32, ["--seed_everything=8"]),
    ):
        code = main([
            "fit", "--model.net.n_layer=1", f"--model.net.width={width}", "--model.net.n_head=2",
            "--model.compile=off", "--data.seq_len=32", "--data.micro_batch_size=2",
            "--data.global_batch_tokens=128", "--data.val_tokens=512", "--max_steps=8",
            "--validate_every=8", "--checkpoint_every=2", "--keep_checkpoints=4",
            "--sample_prompts=[]",
            "--trainer.accelerator=cpu", f"--data.path={dataset}", f"--runs={runs}",
            f"--name={name}", *more,
        ])  # fmt: skip
        assert code == 0
    return runs


def test_an_average_is_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "averaged"
    assert main(["average", str(runs / "run"), str(out), "--last", "3", "--weights=1-sqrt"]) == 0
    told = capsys.readouterr().out
    used = checkpoints(runs / "run")[-3:]
    shares = checkpoint_weights("1-sqrt", [4, 6, 8])
    assert all(f"{s:.4f}  {path}" in told for s, path in zip(shares, used, strict=True))
    (made,) = checkpoints(out)
    stored = [read_stored(path) for path in used]
    for name, tensor in read_stored(made).items():
        mean = sum(s * state[name].double() for s, state in zip(shares, stored, strict=True))
        assert torch.equal(tensor, mean.to(tensor.dtype)), name
    facts = read_sealed_json(out / "provenance.json")
    assert facts["averaged"] == {str(p): s for p, s in zip(used, shares, strict=True)}
    stages = read_sealed_json(out / "lineage.json")["stages"]
    assert [stage["verb"] for stage in stages] == ["average", "fit"]
    assert main(["validate", "--run", str(out)]) == 0
    assert main(["runs", str(runs)]) == 0
    assert "averaged  finished" in capsys.readouterr().out


def test_one_checkpoint_twice_averages_to_itself(runs: Path) -> None:
    """Copies of one network under other names: the mean is that network, to the bit."""
    path = checkpoints(runs / "run")[-1]
    found, _ = average_checkpoints([path, path], [0.5, 0.5])
    own = read_stored(path)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{out}", "--last", "1"], "--last 1: an average needs at least 2"),
        (["{run}", "{out}", "--last", "9"], "keeps 4 checkpoints; an average of 9"),
        (["{run}", "{wide}", "{out}"], "do not belong together: the shape of the network"),
        (["{run}", "{run}", "{out}"], "is named twice"),
        (["{run}", "{again}", "{out}", "--last", "2"], "--last chooses among"),
        (["{out}"], "average needs what to average"),
        (["{run}", "{wide}"], "exists already"),
        (["{run}/checkpoints/step=00000008.ckpt", "{out}"], "is one checkpoint"),
        (["{run}", "{out}", "--weights", "linear"], "--weights linear: there is equal"),
        (["none", "{out}"], "none does not exist"),
    ],
)
def test_refused(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    names = {name: runs / name for name in ("run", "wide", "again")} | {"out": tmp_path / "out"}
    assert main(["average", *(argument.format(**names) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_data_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(runs / "again", other)
    facts = read_sealed_json(other / "provenance.json") | {"manifest_hash": "0" * 64}
    (other / "provenance.json").write_text(json.dumps(facts))
    arguments = ["average", str(other), str(runs / "run"), str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "do not belong together: the data" in capsys.readouterr().err
    assert yaml.safe_load((other / "config.yaml").read_text())["seed_everything"] == 8
    assert main([*arguments[:1], str(runs / "again"), *arguments[2:]]) == 0
