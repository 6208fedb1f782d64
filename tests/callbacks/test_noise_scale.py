"""NoiseScale: figures of a run against plain gradients, and a run that stays the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics

RUN = (
    "fit", "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.compile=off", "--data.seq_len=32", "--data.micro_batch_size=4",
    "--data.global_batch_tokens=256", "--data.val_tokens=512", "--max_steps=6", "--log_every=2",
    "--checkpoint_every=2", "--sample_prompts=[]", "--trainer.accelerator=cpu",
    "--trainer.precision=32-true", "--model.clip_norm=0.01",
)  # fmt: skip
PLAIN = '''
"""A callback that makes micro-batches uneven, computes the gradient of each once more, and compares
them by hand.
"""
import json
import lightning as L


class Plain(L.Callback):
    def on_train_start(self, trainer, stage):
        self.told = {}

    def on_train_batch_start(self, trainer, stage, batch, number):
        batch[0].labels_BT[:, :7] = -100

    def on_before_optimizer_step(self, trainer, stage, optimizer):
        import numpy, torch
        group_of = {id(p): g["role"] for g in optimizer.param_groups for p in g["params"]}
        weights = list(stage.net.parameters())
        n, means = [], []
        for micro in stage.batch:
            with torch.enable_grad():
                total = stage.step_loss(micro)[0]
                grads = torch.autograd.grad(total, weights)
            n.append(int((micro.labels_BT != -100).sum()))
            means.append([(g / n[-1]).double().numpy() for g in grads])
        n, told = numpy.array(n, dtype=float), {}
        self.counts = n.tolist()
        for role in {*group_of.values(), "all"}:
            own = [i for i, w in enumerate(weights) if role in ("all", group_of[id(w)])]
            G = [sum(w * m[i] for w, m in zip(n / n.sum(), means)) for i in own]
            each = [sum((m[i] ** 2).sum() for i in own) for m in means]
            whole = sum((g ** 2).sum() for g in G)
            S = (numpy.mean(each) - whole) / (numpy.mean(1 / n) - 1 / n.sum())
            signal = whole - S / n.sum()
            told[f"gradient_signal/{role}"] = signal
            told[f"gradient_variance/{role}"] = S * 256 / n.sum()
        self.told[trainer.global_step + 1] = told

    def on_train_end(self, trainer, stage):
        with open(f"{trainer.default_root_dir}/plain.json", "w") as file:
            json.dump({"told": self.told, "counts": self.counts}, file)
'''


def fit(dataset: Path, folder: Path, name: str, *options: str) -> list[dict[str, float]]:
    """Run in this process, with uneven micro-batches; return the lines of its metrics."""
    given = [f"--data.path={dataset}", f"--runs={folder}", f"--name={name}", *options]
    (folder / "plain_noise.py").write_text(PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert main([*RUN, *given, "--trainer.callbacks=[plain_noise.Plain]"]) == 0
    return read_metrics(folder / name)


def noise(lines: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    return {int(line["step"]): line for line in lines if "gradient_signal/all" in line}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("noise")


@pytest.fixture(scope="module")
def measured(dataset: Path, folder: Path) -> list[dict[str, float]]:
    """A run of two micro-batches a step that measures every third, beside plain gradients."""
    return fit(dataset, folder, "measured", "--noise_scale_every=3")


def test_figures_are_those_of_plain_gradients(folder: Path, measured: Any) -> None:
    plain = json.loads((folder / "measured" / "plain.json").read_text())
    assert len(set(plain["counts"])) > 1  # a step of uneven micro-batches
    told = noise(measured)
    assert list(told) == [3, 6]
    for step, values in told.items():
        assert plain["told"][str(step)].keys() <= values.keys()
        for name, expected in plain["told"][str(step)].items():
            assert values[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), (step, name)
    first = told[3]
    for name, scale in first.items():
        if name.startswith("noise_scale/"):
            role = name.partition("/")[2]
            ratio = first[f"gradient_variance/{role}"] / first[f"gradient_signal/{role}"]
            assert scale == pytest.approx(ratio)
    assert any(name.startswith("noise_scale/") for name in first)


def test_the_run_stays_the_same_to_the_last_bit(dataset: Path, folder: Path, measured: Any) -> None:
    assert not noise(fit(dataset, folder, "off"))
    saved = [
        torch.load(folder / name / "checkpoints" / "step=00000006.ckpt", weights_only=True)
        for name in ("off", "measured")
    ]
    for name, weight in saved[0]["state_dict"].items():
        assert torch.equal(weight, saved[1]["state_dict"][name])


def test_a_resume_tells_what_an_uninterrupted_run_tells(
    dataset: Path, folder: Path, measured: Any
) -> None:
    copy = folder / "again"
    (copy / "checkpoints").mkdir(parents=True)
    for file in (
        "config.yaml", "provenance.json", "metrics.jsonl", "metrics.xxh3",
        "checkpoints/step=00000004.ckpt",
    ):  # fmt: skip
        (copy / file).write_bytes((folder / "measured" / file).read_bytes())
    again = fit(dataset, folder, "again", "--resume=auto", "--noise_scale_every=3")
    assert noise(again) == noise(measured)


def test_it_is_shown(folder: Path, measured: Any) -> None:
    summary = (folder / "measured" / "summary.md").read_text()
    row = next(line for line in summary.splitlines() if "gradient noise scale" in line)
    assert row.endswith("; measurements: 2 |")
    events = EventAccumulator(str(folder / "measured"))
    events.Reload()
    assert "Optimisation/gradient_signal/all" in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--noise_scale_every=-1"], "noise_scale_every=-1 must not be negative"),
        (
            ["--noise_scale_every=2", "--data.micro_batch_size=8"],
            "a step is one micro-batch on one device: set data.micro_batch_size to 4 or less",
        ),
        (
            ["--noise_scale_every=2", "--data.global_batch_tokens=32"],
            "raise the batch (data.global_batch_tokens, or data.global_batch_rows)",
        ),
        (["--noise_scale_every=2", "--trainer.devices=2", "--parallel.tp=2"], "parallel.tp=2"),
        (["--noise_scale_every=2", "--trainer.devices=2", "--parallel.cp=2"], "parallel.cp=2"),
    ],
    ids=["negative", "one micro-batch", "one row", "tp", "cp"],
)
def test_nothing_to_compare_is_refused(
    options: list[str], said: str, dataset: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=x", *options]
    assert main([*RUN, *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_steps_of_one_micro_batch_are_passed_over(dataset: Path, tmp_path: Path) -> None:
    """A schedule of the batch begins with steps that have nothing to compare."""
    batch = "[{from_tokens: 0, tokens: 128}, {from_tokens: 256, tokens: 256}]"
    run = [option for option in RUN if "global_batch" not in option]
    given = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=x"]
    scheduled = [f"--data.batch_schedule={batch}", "--noise_scale_every=1"]
    assert main([*run, *given, *scheduled]) == 0
    assert list(noise(read_metrics(tmp_path / "x"))) == [3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("--trainer.strategy=ddp", 4),
        ("--trainer.strategy=fsdp", 2),
        ("--parallel.dp_replicate=2", 4),
    ],
    ids=["ddp, one micro-batch each", "fsdp, two each", "hsdp, one each"],
)
def test_two_ranks_tell_what_one_tells(
    layout: str, size: int, dataset: Path, run_cli: Any, tmp_path: Path
) -> None:
    run = [
        *RUN, f"--data.path={dataset}", f"--runs={tmp_path}", "--max_steps=2",
        "--noise_scale_every=1", f"--data.micro_batch_size={size}",
    ]  # fmt: skip
    assert main([*run, "--name=one"]) == 0
    done = run_cli(*run, "--name=two", "--trainer.devices=2", layout)
    assert done.returncode == 0, done.stderr
    one, two = (noise(read_metrics(tmp_path / name)) for name in ("one", "two"))
    assert list(one) == list(two) == [1, 2]
    for step in one:
        assert one[step].keys() == two[step].keys()
        for name, value in one[step].items():
            assert two[step][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
