"""`mixture optimise` as a user runs it. Losses are made from a planted law in place of training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.scaling import mixture_law
from lit_pretrain.scaling.mixture_law import MixtureLaw, best_mixture

SOURCES = ("story", "sums", "code")
LAWS = {
    "story": MixtureLaw(0.1, np.array([-2.0, 0.1, 0.0])),
    "sums": MixtureLaw(-0.2, np.array([-0.1, -2.2, 0.1])),
    "code": MixtureLaw(0.0, np.array([0.0, 0.0, -1.8])),
}
BASE: dict[str, Any] = {
    "model": {
        "net": {"n_layer": 1, "width": 16, "n_head": 1, "max_seq_len": 32, "vocab_size": 512},
        "optimizer": "MuonAdamW",
        "compile": "off",
    },
    "data": {"seq_len": 32, "global_batch_tokens": 128, "val_tokens": 256},
    "trainer": {"accelerator": "cpu"},
    "sample_prompts": [], "validate_every": 0, "checkpoint_every": 0, "log_every": 1,
    "max_steps": 4,
}  # fmt: skip
TARGET = '--target={"story": 1, "sums": 2}'


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_law, "_RESAMPLES", 10)


@pytest.fixture
def base(tmp_path: Path, dataset: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump({**BASE, "data": {**BASE["data"], "path": str(dataset)}}))
    return str(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def optimise(base: str, out: Path, *options: str) -> int:
    try:
        return main(["mixture", "optimise", base, f"--out={out}", *options])
    except SystemExit as stop:  # of the parser
        return int(str(stop.code))


def make(out: Path, *, effect: float = 1.0, salt: int = 0) -> list[str]:
    """Finish the runs that the list names, with the losses that the planted laws give."""
    made = []
    for config in sorted(out.glob("configs/*.yaml")):
        run = yaml.safe_load(config.read_text())
        folder = out / run["name"]
        if folder.exists():
            continue
        weights = np.array([run["data"]["weights"].get(source, 0.0) for source in SOURCES])
        assert weights.sum() == pytest.approx(1)
        rng = np.random.default_rng([salt, *map(ord, run["name"])])
        line = {"step": 4, "val/loss": 1.0}
        for source, law in LAWS.items():
            loss = 1.5 + effect * (float(law.loss(weights)) - 1.5)
            line[f"val_bits_per_byte/{source}"] = loss * float(np.exp(rng.normal(0, 0.003)))
        folder.mkdir()
        (folder / "config.yaml").write_text(config.read_text())
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "summary.md").write_text("")
        made.append(run["name"])
    return made


def truth(dataset: Path, kl: float = 0.05) -> np.ndarray:
    manifest = json.loads((dataset / "manifest.json").read_text())
    tokens = [manifest["sources"][s]["splits"]["train"]["tokens"] for s in SOURCES]
    natural = np.array(tokens) / sum(tokens)
    laws, targets = [LAWS["story"], LAWS["sums"]], [1 / 3, 2 / 3]
    return best_mixture(laws, targets, natural, np.ones(3), kl)


def test_a_planted_optimum_is_found_and_confirmed(
    base: str, out: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimise(base, out, TARGET, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "16 mixtures, 3 seeds of the natural one, and 6 runs to confirm the best" in shown
    assert "total: 25 runs" in shown
    assert not out.exists()
    # Another machine makes the runs; the same command says what is missing.
    assert optimise(base, out, TARGET, "--engine=list") == 0
    assert "19 runs" in capsys.readouterr().out
    first = make(out)
    assert len(first) == 19
    assert optimise(base, out, TARGET, "--engine=list") == 0
    shown = capsys.readouterr().out
    assert "total: 19 runs" in shown
    assert "now with fresh seeds\ntotal: 6 runs" in shown
    second = make(out)
    assert len(second) == 6
    seeds = {
        (run["data"]["seed"], run["model"]["seed"])
        for run in (yaml.safe_load((out / name / "config.yaml").read_text()) for name in second)
    }
    assert seeds == {(3, 3), (4, 4), (5, 5)}
    assert optimise(base, out, TARGET, "--engine=list") == 0
    shown = capsys.readouterr().out
    assert "Confirmed: the best mixture beats the natural one by" in shown
    assert make(out) == []
    assert shown.count("; 0 to make") == 2
    report = json.loads((out / "mixture.json").read_text())
    found = np.array([report["best"][source] for source in SOURCES])
    assert np.abs(found - truth(dataset)).sum() <= 0.1
    assert report["confirmed"]["gain"] > 2 * report["confirmed"]["standard_error"] > 0
    assert report["predicted"]["best"] == pytest.approx(
        np.mean(report["confirmed"]["best"]), rel=0.01
    )
    for name in first:
        assert any(run["name"] == name for run in report["runs"])
    page = (out / "mixture.html").read_text()
    assert "Confirmed" in page
    assert first[0] in page
    # `fit` takes the weights, and reads what they say.
    weights = yaml.safe_load((out / "weights.yaml").read_text())
    assert weights == {"data": {"weights": {s: w for s, w in report["best"].items() if w}}}
    options = ["--config", base, "--config", str(out / "weights.yaml"), f"--runs={out}/fit"]
    assert main(["fit", *options, "--name=run", "--max_steps=2"]) == 0


def test_what_is_no_better_is_not_called_better(
    base: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise alone: whatever the law takes for the best, the fresh seeds decide."""
    options = ("--engine=list", "--kl=0", "--mixtures=6")
    outcomes = []
    for _ in range(3):
        assert optimise(base, out, '--target={"code": 1}', *options) == 0
        outcomes.append(capsys.readouterr().out)
        make(out, effect=0.0, salt=1)
    report = json.loads((out / "mixture.json").read_text())
    confirmed = report["confirmed"]
    better = confirmed is not None and confirmed["gain"] > 2 * confirmed["standard_error"]
    assert ("Confirmed:" in outcomes[-1]) == better
    assert not better, "this seed was chosen for a confirmation that fails"
    assert "Stay with the natural mixture" in outcomes[-1]
    weights = yaml.safe_load((out / "weights.yaml").read_text())["data"]["weights"]
    assert weights == report["natural"]


def test_caps_bind_and_a_measured_source_need_not_be_trained_on(
    base: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        '--target={"story": 1}', "--leave_out=[story]", "--tokens=150_000", "--max_epochs=2",
        "--mixtures=6", "--repeats=2", "--engine=list",
    )  # fmt: skip
    for _ in range(3):
        assert optimise(base, out, *options) == 0
        make(out)
    report = json.loads((out / "mixture.json").read_text())
    assert report["sources"] == ["sums", "code"]
    for source in report["sources"]:
        cap = min(1.0, 2 * report["tokens"][source] / 150_000)
        assert report["cap"][source] == pytest.approx(cap)
        assert report["best"][source] <= cap + 0.001
        for run in report["runs"]:
            assert run["weights"][source] <= cap + 0.001
    assert report["cap"]["code"] < 1
    capsys.readouterr()
    # Runs of other settings are not taken for these.
    assert optimise(base, out, *options, "--set={max_steps: 5}") == 2
    assert "was made by other settings: max_steps was 4 and is 5" in capsys.readouterr().err


def test_caps_that_leave_no_choice_are_refused(
    base: str, out: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = json.loads((dataset / "manifest.json").read_text())["sources"]
    total = sum(sources[source]["splits"]["train"]["tokens"] for source in SOURCES)
    assert optimise(base, out, TARGET, f"--tokens={total}", "--max_epochs=1") == 2
    said = capsys.readouterr()
    assert "leave 1 mixture to try; the law of 3 sources needs at least 5" in said.err
    assert said.out == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "target is empty"),
        (['--target={"storey": 1}'], "has no source 'storey'. Did you mean 'story'?"),
        (['--target={"story": 0}'], "target.story=0 must be positive"),
        ([TARGET, "--leave_out=[stori]"], "leave_out: "),
        ([TARGET, '--leave_out=["story", "sums"]'], "has 1 source to mix"),
        ([TARGET, "--tokens=1e12"], "more than max_epochs=4 passes over the"),
        ([TARGET, "--tokens=-1"], "tokens=-1 must be positive"),
        ([TARGET, "--max_epochs=0"], "max_epochs=0 must be positive"),
        ([TARGET, "--kl=-1"], "kl=-1 must be at least 0"),
        ([TARGET, "--repeats=1"], "repeats=1 must be at least 2"),
        ([TARGET, "--mixtures=4"], "the law of 3 sources needs at least 5"),
        ([TARGET, "--design_seed=-1"], "design_seed=-1 must be at least 0"),
        ([TARGET, "--jobs=0"], "jobs=0 must be at least 1"),
        ([TARGET, "--set={name: x}"], "set: name is for the sweep to set"),
        ([TARGET, "--set={data: {weights: {story: 1}}}"], "data.weights is for the mixtures"),
        ([TARGET, "--set={data: {temperature: 2.0}}"], "data.temperature is for the mixtures"),
        ([TARGET, "--set={data: {path: nowhere}}"], "nowhere is no prepared dataset"),
    ],
)
def test_mistakes_are_one_message(
    options: list[str], message: str, base: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimise(base, out, *options) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("error: ")
    assert not out.exists()
