"""Metrics: what a run writes to TensorBoard, read back from its event files, and what a window
is worth.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_pretrain.__main__ import main
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.callbacks.metrics import GroupSignal, Metrics
from lit_pretrain.checkpoint.layout import WINDOW_KEY
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import count_parameters
from lit_pretrain.objective import CrossEntropy
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.report.tensorboard import TEXT_LOSS, layout, tag_of

SOURCES = ("code", "story", "sums")
STEPS, EVERY, TOKENS = 6, 2, 128


LAW = {"E": 2.0, "A": 50.0, "B": 80.0, "alpha": 0.3, "beta": 0.4}


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    law = {
        "law": "chinchilla",
        "params": LAW,
        "residuals": [{"residual": r} for r in (-0.02, 0.0, 0.02)],
        "largest_compute": 1e8,
    }
    law["range"] = {"n": [1e3, 1e6], "d": [1e3, 1e6]}
    draws = [[2.0, 50.0, 80.0, 0.3, 0.4], [2.1, 50.0, 80.0, 0.3, 0.4]]
    (runs / "law.json").write_text(
        json.dumps({**law, "draws": draws, "params_counted": "matmul", "unit": "nats"})
    )
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.compile=off", "--data.seq_len=32",
        "--data.micro_batch_size=2", f"--data.global_batch_tokens={TOKENS}",
        "--data.val_tokens=4096", f"--max_steps={STEPS}",
        f"--log_every={EVERY}", "--validate_every=3", "--checkpoint_every=0", "--sample_tokens=4",
        "--sample_prompts=['','def ']",
        "--trainer.accelerator=cpu", f"--data.path={dataset}", f"--runs={runs}", "--name=run",
        f"--forecast={runs / 'law.json'}",
    ])  # fmt: skip
    assert code == 0
    return runs / "run"


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]


# ---------------------------------------------------------------------- what a run writes


def test_every_curve_of_the_layout_is_written(events: EventAccumulator) -> None:
    """TensorBoard shows an empty chart for a name that nobody writes."""
    written = events.Tags()["scalars"]
    patterns = [
        pattern
        for _, charts, _ in layout(TEXT_LOSS, forecast="val/loss")
        for shown in charts.values()
        for pattern in shown
    ]
    assert len(patterns) > 10
    for pattern in patterns:
        assert any(re.match(pattern, tag) for tag in written), pattern
    assert "custom_scalars__config__" in events.Tags()["tensors"]  # the layout itself


def test_the_forecast_is_drawn_beside_the_validation_and_compared_at_the_end(
    run: Path, events: EventAccumulator
) -> None:
    n = count_parameters(
        model_config(yaml.safe_load((run / "config.yaml").read_text())["model"]["net"])
    ).matmul
    expected = {
        step: LAW["E"] + LAW["A"] / n ** LAW["alpha"] + LAW["B"] / (step * TOKENS) ** LAW["beta"]
        for step in (3, 6)
    }
    assert {
        event.step: event.value for event in events.Scalars("Loss_forecast/forecast/loss")
    } == pytest.approx(expected, rel=1e-6)
    low, high = (
        events.Scalars(f"Loss_forecast/forecast/{end}")[-1].value for end in ("low", "high")
    )
    assert low == pytest.approx(expected[6] * np.exp(-0.02), rel=0.01)
    assert high == pytest.approx((expected[6] + 0.1) * np.exp(0.02), rel=0.01)
    actual = [line["val/loss"] for line in read_metrics(run) if "val/loss" in line][-1]
    page = (run / "summary.md").read_text()
    assert (
        f"| forecast | {expected[6]:.3f} ({low:.3f}–{high:.3f}) by law.json; actual {actual:.4f},"
        f" {actual - expected[6]:+.4f} (" in page
    )
    assert (
        f"loss {expected[6]:.3f} ({low:.3f}–{high:.3f}) by law.json expected" in page
    )  # in the plan's line
    assert "), within |" in page if low <= actual <= high else "), outside its interval" in page


def test_the_step_axis_counts_optimizer_steps(events: EventAccumulator) -> None:
    assert [event.step for event in events.Scalars("Loss/train/loss")] == [2, 4, 6]
    assert [event.step for event in events.Scalars("Loss/val/loss")] == [3, 6]
    tokens = events.Scalars("Progress/progress/tokens")
    assert {(event.step, event.value) for event in tokens} == {
        (s, s * TOKENS) for s in (2, 3, 4, 6)
    }


def test_losses_are_drawn_over_tokens_and_flops(run: Path, events: EventAccumulator) -> None:
    lines = [line for line in read_metrics(run) if "val/loss" in line]
    for axis, key, unit in (("tokens", "progress/tokens", 1), ("GFLOPs", "progress/flops", 1e9)):
        found = events.Scalars(f"Loss_over_{axis}/val/loss")
        assert [event.step for event in found] == [round(line[key] / unit) for line in lines]
        assert [event.value for event in found] == pytest.approx(
            [line["val/loss"] for line in lines], rel=1e-6
        )


def test_tensorboard_and_the_metrics_file_agree(run: Path, events: EventAccumulator) -> None:
    lines = read_metrics(run)
    tags = {key for line in lines for key in line} - {"step"}
    scalars = {tag for tag in events.Tags()["scalars"] if "_over_" not in tag}
    assert {tag_of(key, TEXT_LOSS) for key in tags} == scalars
    assert all(tag.partition("/")[0][0].isupper() for tag in scalars), "a metric has no section"
    for tag in tags:
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        found = [(event.step, event.value) for event in events.Scalars(tag_of(tag, TEXT_LOSS))]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx(
            [value for _, value in expected], rel=1e-6
        ), tag


def test_flops_and_the_split_of_step_time(run: Path) -> None:
    from lit_pretrain.scaling.flops import flops_per_token

    net = yaml.safe_load((run / "config.yaml").read_text())["model"]["net"]
    per_token = flops_per_token(model_config(net), 32).training
    windows = [line for line in read_metrics(run) if "train/loss" in line]
    for line in windows:
        assert line["progress/flops"] == pytest.approx(line["step"] * TOKENS * per_token)
        assert line["throughput/flops_per_second"] == pytest.approx(
            line["throughput/tokens_per_second"] * per_token
        )
        assert line["throughput/tokens_per_second"] * line["time/step_seconds"] == pytest.approx(
            TOKENS
        )
        parts = [line[f"time/{part}_fraction"] for part in ("data", "compute", "other")]
        assert all(0 <= part <= 1 for part in parts)
        assert sum(parts) == pytest.approx(1, abs=0.02)
        assert line["data/supervised_fraction"] == 1
        assert sum(line[f"mixture/{source}"] for source in SOURCES) == pytest.approx(1)
        assert (
            "throughput/mfu" not in line
        )  # a CPU's peak is not known, and a guessed one would mean nothing


def test_the_config_and_the_samples_are_there(run: Path, events: EventAccumulator) -> None:
    (config,) = text_of(events, "config/text_summary")
    assert yaml.safe_load(config.removeprefix("```yaml\n").removesuffix("```")) == yaml.safe_load(
        (run / "config.yaml").read_text()
    )
    samples = {
        tag: text_of(events, tag) for tag in events.Tags()["tensors"] if tag.startswith("samples/")
    }
    assert set(samples) == {"samples/start/text_summary", "samples/def/text_summary"}
    assert samples["samples/def/text_summary"][-1].startswith("    def ")


# ---------------------------------------------------------------------- a window by itself


def made(sink: list[tuple[int, dict[str, float]]], **options: Any) -> Metrics:
    settings: dict[str, Any] = {
        "every": 2,
        "sources": ("a", "b"),
        "batch": BatchSizes.one(100),
        "flops_per_token": 1e6,
        "peak": None,
    }
    return Metrics(**(settings | options), sinks=[lambda step, values: sink.append((step, values))])


def trainer(step: int = 0, max_steps: int = 10) -> Any:
    optimizer = SimpleNamespace(param_groups=[{"role": "matrix", "lr": 0.1}, {"lr": 0.2}])
    return SimpleNamespace(
        global_step=step, max_steps=max_steps, world_size=1, is_global_zero=True,
        optimizers=[optimizer],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip


def take(metrics: Metrics, step: int, nats: list[float], tokens: list[float], norm: float) -> None:
    metrics.on_train_batch_start(trainer(step))
    metrics.on_train_batch_end(
        trainer(step + 1), stage(torch.tensor(nats), torch.tensor(tokens), norm)
    )


def stage(nats_S: torch.Tensor, tokens_S: torch.Tensor, norm: float = 1.0) -> SimpleNamespace:
    """What a stage with cross-entropy knows of a step: each token is a term, and there are no
    means of its own.
    """
    sums = {
        "nats_S": nats_S,
        "tokens_S": tokens_S,
        "terms_S": tokens_S,
        "means_M2": torch.zeros(0, 2),
        "grad_norm": torch.tensor(norm),
    }
    return SimpleNamespace(sums=sums, metric_names=CrossEntropy().metric_names)


def test_means_of_a_window_are_over_tokens_and_not_over_steps() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    metrics = made(told)
    metrics.on_train_start(trainer())
    take(metrics, 0, [10.0, 0.0], [10.0, 0.0], 1.0)
    assert told == []  # nothing is read within a window
    take(metrics, 1, [40.0, 60.0], [10.0, 30.0], 3.0)
    ((step, values),) = told
    assert step == 2
    assert values["train/loss"] == 110 / 50  # not the mean of 1 and 2.5
    assert (values["train_loss/a"], values["train_loss/b"]) == (50 / 20, 60 / 30)
    assert (values["mixture/a"], values["mixture/b"]) == (0.4, 0.6)
    assert (values["train/grad_norm"], values["train/grad_norm_max"]) == (2.0, 3.0)
    assert values["data/supervised_fraction"] == 50 / 200
    assert (values["lr/matrix"], values["lr/1"]) == (0.1, 0.2)
    take(metrics, 2, [1.0, 0.0], [1.0, 0.0], 1.0)
    take(metrics, 3, [1.0, 0.0], [1.0, 0.0], 1.0)
    assert told[1][1]["train/loss"] == 1.0  # a window begins with nothing
    assert "train_loss/b" not in told[1][1]


def test_utilisation_where_the_peak_is_known() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    metrics = made(told, every=1, peak=4e9)
    metrics.on_train_start(trainer())
    take(metrics, 0, [1.0, 1.0], [1.0, 1.0], 1.0)
    values = told[0][1]
    assert values["throughput/mfu"] == pytest.approx(
        values["throughput/tokens_per_second"] * 1e6 / 4e9
    )
    assert values["throughput/mfu"] == pytest.approx(100 * 1e6 / values["time/step_seconds"] / 4e9)


def test_pauses_are_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lit_pretrain.callbacks.metrics.time.perf_counter", lambda: now[0])
    told: list[tuple[int, dict[str, float]]] = []
    metrics = made(told, every=1)
    metrics.on_train_start(trainer())
    now[0] = 1.0  # a second of waiting for data
    metrics.on_train_batch_start(trainer())
    now[0] = 4.0
    metrics.on_train_batch_end(trainer(1), stage(torch.ones(2), torch.ones(2)))
    assert told[0][1]["time/step_seconds"] == 4.0
    assert (told[0][1]["time/data_fraction"], told[0][1]["time/compute_fraction"]) == (0.25, 0.75)
    now[0] = 104.0  # a checkpoint of 100 seconds
    metrics.pause(100.0)
    metrics.on_train_batch_start(trainer(1))
    now[0] = 106.0
    metrics.on_train_batch_end(trainer(2), stage(torch.ones(2), torch.ones(2)))
    assert told[1][1]["time/step_seconds"] == 2.0
    assert metrics.train_seconds == 6.0


def test_an_unfinished_window_travels_in_the_checkpoint() -> None:
    whole: list[tuple[int, dict[str, float]]] = []
    resumed: list[tuple[int, dict[str, float]]] = []
    first = made(whole, every=3)
    first.on_train_start(trainer())
    take(first, 0, [3.0, 1.0], [2.0, 1.0], 1.0)
    take(first, 1, [5.0, 0.0], [4.0, 0.0], 5.0)
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(trainer(2), None, checkpoint)
    assert checkpoint[WINDOW_KEY]["norms"] == [1.0, 5.0]
    second = made(resumed, every=3)
    second.on_load_checkpoint(trainer(2), None, checkpoint)
    second.on_train_start(trainer(2))
    for metrics in (first, second):
        take(metrics, 2, [1.0, 7.0], [1.0, 2.0], 3.0)
    measured = ("throughput/", "time/")
    a, b = (
        {k: v for k, v in told[0][1].items() if not k.startswith(measured)}
        for told in (whole, resumed)
    )
    assert a == b


def test_windows_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="log_every=0 must be at least 1"):
        made([], every=0)


def test_groups_that_never_differ_are_warned_of_once_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    signal = GroupSignal()
    signal(1, {"val/loss": 0.0})
    assert signal.remarks() == []
    for step in (4, 8):
        signal(step, {"train/groups_with_signal": 0.0})
    assert capsys.readouterr().err.count("up to step 4 no answer had another reward") == 1
    assert "the policy learned nothing" in signal.remarks()[0]
    signal(12, {"train/groups_with_signal": 0.25})
    assert signal.remarks() == []
