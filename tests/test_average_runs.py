"""Runs that keep a moving average of their weights, through the real command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.hf_import import read_tensors
from lit_pretrain.checkpoint.network import load_network
from lit_pretrain.checkpoint.weights import read_average, read_stored, read_weights

HALF_LIFE = 700
OPTIONS = [
    "--model.compile=off", "--data.seq_len=32",
    "--data.global_batch_tokens=256", "--data.val_tokens=512", "--max_steps=6", "--log_every=2",
    "--checkpoint_every=1", "--keep_checkpoints=6", "--validate_every=3", "--sample_prompts=[]",
    "--trainer.accelerator=cpu", "--trainer.precision=32-true",
    f"--model.ema_half_life={HALF_LIFE}",
]  # fmt: skip
SHAPE = [
    "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=2",
    "--model.net.max_seq_len=32", "--model.net.position=rope", "--model.net.norm=rmsnorm",
    "--model.net.norm_weight=true", "--model.net.activation=swiglu", "--model.net.qk_norm=false",
    "--model.net.residual_scalars=false", "--model.net.value_embeddings=none",
    "--model.net.embed_norm=false", "--model.net.window_pattern=L",
]  # fmt: skip


def fit(dataset: Path, runs: Path, name: str, *extra: str) -> int:
    places = [f"--data.path={dataset}", f"--runs={runs}", f"--name={name}"]
    return main(["fit", *OPTIONS, *SHAPE, *places, *extra])


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    runs = tmp_path_factory.mktemp("averaged")
    assert fit(dataset, runs, "run") == 0
    return runs / "run"


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step={step:08d}.ckpt"


def test_the_average_is_that_of_the_weights_after_each_step(run: Path) -> None:
    states = [read_stored(checkpoint(run, step)) for step in range(1, 7)]
    shares = [2.0 ** (-256 * i / HALF_LIFE) for i in reversed(range(6))]
    found = read_weights(str(run), average=True)
    assert found.keys() == states[-1].keys()
    for name, tensor in found.items():
        mean = sum(
            share * state[name].double() for share, state in zip(shares, states, strict=True)
        ) / sum(shares)
        torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=1e-5)


def test_a_resumed_run_has_the_same_average_to_the_bit(
    dataset: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    for step in (4, 5, 6):
        checkpoint(tmp_path / "run", step).unlink()
    assert fit(dataset, tmp_path, "run", "--resume=auto") == 0
    expected, found = (read_average(checkpoint(place, 6)) for place in (run, tmp_path / "run"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_average_changes_nothing_of_the_run(dataset: Path, run: Path, tmp_path: Path) -> None:
    assert fit(dataset, tmp_path, "plain", "--model.ema_half_life=null") == 0
    one, other = (read_stored(checkpoint(place, 6)) for place in (run, tmp_path / "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "average" not in torch.load(checkpoint(tmp_path / "plain", 6), weights_only=True)


def test_verbs_read_the_average(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {}
    for weights in ("trained", "average"):
        file = tmp_path / f"{weights}.json"
        options = [f"--weights={weights}", f"--json={file}", "--trainer.accelerator=cpu"]
        assert main(["validate", "--run", str(run), *options]) == 0
        figures[weights] = json.loads(file.read_text())["val/loss"]
    assert figures["average"] > figures["trained"]  # so early in a run it lags behind
    out = tmp_path / "exported"
    assert main(["export", "--to=hf", str(run), str(out), "--weights=average"]) == 0
    exported, average = read_tensors(out), read_weights(str(run), average=True)
    assert all(torch.equal(exported[name], average[name]) for name in exported)
    capsys.readouterr()
    words = ["generate", "--run", str(run), "--prompt=The", "--max_new_tokens=3", "--device=cpu"]
    assert main([*words, "--temperature=0", "--weights=average"]) == 0
    assert capsys.readouterr().out.startswith("The")
    net = load_network(checkpoint(run, 6), average=True)
    assert all(torch.equal(value, average[name]) for name, value in net.state_dict().items())


def test_an_adapter_s_average_is_put_into_its_base(
    dataset: Path, run: Path, tmp_path: Path
) -> None:
    places = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=lora", f"--from={run}"]
    kept = [o for o in OPTIONS if not o.startswith("--max_steps")]
    assert main(["finetune", *kept, *places, "--model.adapter.rank=2", "--max_steps=3"]) == 0
    trained, average = (
        read_weights(str(tmp_path / "lora"), average=flag) for flag in (False, True)
    )
    base = read_weights(str(run))
    changed = [name for name in base if not torch.equal(base[name], trained[name])]
    assert changed
    for name in base:
        assert torch.equal(base[name], average[name]) == (name not in changed)
        assert torch.equal(average[name], trained[name]) == (name not in changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.ema_half_life=0"], "must be a positive number of tokens"),
        (["--model.ema_half_life=-1e9"], "must be a positive number of tokens"),
        (["--trainer.precision=bf16-true"], "the weights are bfloat16"),
    ],
)
def test_mistakes_of_a_run(
    options: list[str],
    message: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit(dataset, tmp_path, "wrong", *options) == 2
    assert message in capsys.readouterr().err


def test_another_half_life_is_another_run(
    dataset: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    checkpoint(tmp_path / "run", 6).unlink()
    assert fit(dataset, tmp_path, "run", "--resume=auto", "--model.ema_half_life=300") == 2
    assert "model.ema_half_life: the checkpoint has 700" in capsys.readouterr().err


def test_a_run_without_an_average_says_so(
    quickstart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = quickstart / "runs" / "quickstart"
    capsys.readouterr()
    assert main(["generate", "--run", str(run), "--prompt=a", "--weights=average"]) == 2
    assert "holds no average of weights: train with --model.ema_half_life" in (
        capsys.readouterr().err
    )
    assert main(["export", "--to=hf", str(run), str(tmp_path / "x"), "--weights=average"]) == 2
    assert not (tmp_path / "x").exists()


def test_a_plan_counts_the_average(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = f"--config={run / 'config.yaml'}"
    plans = []
    for half_life in ("700", "null"):
        capsys.readouterr()
        assert main(["plan", config, f"--model.ema_half_life={half_life}", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    with_it, without = (plan["memory"]["states"]["moments"] for plan in plans)
    assert with_it - without == 4 * plans[0]["parameters"]["total"]
