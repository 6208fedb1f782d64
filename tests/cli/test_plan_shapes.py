"""`lit_pretrain plan --minutes`: the shape for a time, through the command line."""

import contextlib
import dataclasses
import io
import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.plan import PlanSettings, measured_steps, shapes
from lit_pretrain.cli.plan.question import PlanCLI
from lit_pretrain.cli.plan.shapes import propose_shape
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.scaling.shape_search import CPU, TimedStep

ROOT = Path(__file__).parents[2]
QUICK = ["--config", str(ROOT / "configs/pretrain/muon.yaml")]


def propose(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["plan", *QUICK, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with contextlib.suppress(SystemExit):
        assert main(["plan", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ModelConfig]:
    """The networks whose steps are measured, on a machine twice as slow as that of the model."""
    found: list[ModelConfig] = []

    def measure(setting: Any, net: ModelConfig, path: str, tokens: int) -> TimedStep:
        found.append(net)
        return TimedStep(net, tokens, 2 * CPU.seconds(net, tokens), "2026-01-02 03:04")

    monkeypatch.setattr(shapes, "measure_step", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture(scope="module")
def other_vocabulary(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset as if it had been prepared with 320 ids: a third more tokens of the same text."""
    folder = tmp_path_factory.mktemp("small") / "small"
    shutil.copytree(dataset, folder)
    manifest = Manifest.load(folder)
    sources = {
        name: dataclasses.replace(
            source,
            splits={
                split: dataclasses.replace(its, tokens=its.tokens * 4 // 3)
                for split, its in source.splits.items()
            },
        )
        for name, source in manifest.sources.items()
    }
    tokenizer = dataclasses.replace(manifest.tokenizer, vocab_size=320)
    manifest = dataclasses.replace(manifest, sources=sources, tokenizer=tokenizer)
    (folder / "manifest.json").write_text(manifest.dump(), encoding="utf-8")
    return folder


def test_a_shape_that_fits_the_time(dataset: Path, asked: list[ModelConfig]) -> None:
    found = propose("--data.path", str(dataset), "--minutes", "4")
    best, own = found["best"][0], found["own"]
    assert best["steps"] * best["step_seconds"] <= 240
    assert (best["steps"] + 1) * best["step_seconds"] > 240
    net = yaml.safe_load(Path(QUICK[1]).read_text())["model"]["net"]
    assert (own["n_layer"], own["width"]) == (net["n_layer"], net["width"])
    assert best["bits_per_byte"] <= min(its["bits_per_byte"] for its in [own, *found["best"]])
    assert best["n_head"] * 64 == best["width"]
    assert best["tokens"] == best["steps"] * 4096
    assert best["measured"] == "2026-01-02 03:04"
    assert all(its["why"] for its in found["neighbours"])
    assert any("(2026-01-02 03:04)" in line for line in found["time_from"])


def test_the_command_trains_the_proposal(dataset: Path, asked: list[ModelConfig]) -> None:
    options = ["--data.path", str(dataset), "--data.seq_len", "64", "--minutes=4", "--measure"]
    found = propose(*options, "--model.net.width", "128", "--model.net.n_head", "2")
    words = shlex.split(found["command"])
    assert words[:2] == ["lit_pretrain", "fit"]
    assert not [word for word in words if word.removeprefix("--") in PlanSettings.__annotations__]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["plan", *words[2:], "--json"]) == 0
    plan, best = json.loads(out.getvalue()), found["best"][0]
    assert plan["length"]["steps"] == best["steps"]
    assert plan["parameters"]["total"] == best["parameters"]
    assert plan["memory"]["layout"]["seq_len"] == 64


def test_what_was_measured_is_kept(
    dataset: Path, asked: list[ModelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.path", str(dataset), "--minutes", "4"]
    first = propose(*options)
    measured = len(asked)
    assert 1 <= measured <= shapes.MEASURED
    assert propose(*options) == first
    assert len(asked) == measured
    propose(*options, "--measure")
    assert len(asked) == 2 * measured
    propose(*options, "--data.micro_batch_size", "4")  # another step takes other seconds
    assert len(asked) > 2 * measured
    for file in measured_steps.library_folder().glob("step_seconds-*.json"):
        file.write_text('{"steps": [{}]}')
    assert "remove it, and they are measured again" in fails(capsys, *QUICK, *options)


def test_less_of_the_time_buys_less(dataset: Path, asked: list[ModelConfig]) -> None:
    options = ["--data.path", str(dataset), "--minutes", "4"]
    whole, part = propose(*options), propose(*options, "--goodput", "0.5")
    assert part["best"][0]["bits_per_byte"] > whole["best"][0]["bits_per_byte"]


def test_vocabularies_compare_by_bytes(
    dataset: Path, other_vocabulary: Path, asked: list[ModelConfig]
) -> None:
    options = ["--data.path", str(dataset), "--minutes", "4"]
    found = propose(*options, "--datasets", f"[{other_vocabulary}]")
    assert {its["data"] for its in found["neighbours"]} == {str(dataset), str(other_vocabulary)}
    assert {its["vocab_size"] for its in found["neighbours"]} == {512, 320}
    if found["best"][0]["data"] != str(dataset):
        assert f"--data.path {other_vocabulary}" in found["command"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--device", "H100", "--devices", "2"], "2 × H100 in bf16"),
        (["--device", "H100", "--mfu", "0.3"], "30% of the peak at every shape (given)"),
        (["--device", "TPU v4"], "35% of the peak at every shape"),
    ],
)
def test_a_known_device_is_not_measured(
    options: list[str], told: str, dataset: Path, asked: list[ModelConfig]
) -> None:
    found = propose("--data.path", str(dataset), "--minutes", "1", *options)
    assert told in found["time_from"][0]
    assert not asked
    assert found["best"][0]["measured"] is None


def test_memory_limits_the_shapes(dataset: Path, asked: list[ModelConfig]) -> None:
    options = ["--data.path", str(dataset), "--minutes", "60", "--device", "H100"]
    found = propose(*options, "--memory_gib", "3")
    assert found["too_large"] > propose(*options)["too_large"]


def test_the_table_by_a_published_law(
    dataset: Path, asked: list[ModelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.path", str(dataset), "--minutes", "4", "--law", "besiroglu"]
    assert main(["plan", *QUICK, *options]) == 0
    told = capsys.readouterr().out
    assert told.startswith("shapes for 4 minutes\n")
    for part in (
        "\n1      ",
        "\nyours  6 × 384",
        "why its neighbours lose",
        "\nto train the first:",
    ):
        assert part in told
    assert "lit_pretrain fit --config " in told.splitlines()[-1]
    assert "besiroglu: " in told
    assert "outside the law's range: N" in told


REFUSED = {
    "tokens_per_second": 2000.0, "price": 2.0, "dollars": 3.0, "days": 1.0, "hours": 2.0,
    "unique_tokens": 1e6, "inference_tokens": 1e9, "png": "plan.png", "layout": "auto",
    "devices": 2, "device": "Abacus", "mfu": 0.4,
}  # fmt: skip
TAKEN = {"minutes", "datasets", "measure", "memory_gib", "goodput", "head", "law", "json", "stage",
         "lora_rank", "dtype", "machine_devices", "network_gbits"}  # fmt: skip


def test_options_that_do_not_go_with_it(
    dataset: Path, asked: list[ModelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option of a plan is taken or refused; wrong values say what is wrong."""
    assert set(PlanSettings.__dataclass_fields__) == TAKEN | set(REFUSED)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({name: value}, name) for name, value in REFUSED.items()
    ]
    wrong += [
        ({"minutes": 0.0}, "--minutes 0 must be positive and finite"),
        ({"minutes": -3.0}, "--minutes -3 must be positive and finite"),
        ({"minutes": math.inf}, "--minutes inf must be positive and finite"),
        ({"minutes": math.nan}, "--minutes nan must be positive and finite"),
        ({"stage": "lora"}, "the config plans lora"),
        ({"law": "kaplan"}, "of the form kaplan"),
        ({"law": "nowhere"}, "there is no published law 'nowhere'"),
        ({"datasets": ["nowhere"]}, "nowhere is no prepared dataset"),
        ({"device": "T4"}, "the peak of T4 in bf16 is not known"),
    ]
    cli = PlanCLI([*QUICK, "--data.path", str(dataset), "--minutes", "4"])
    settings, given = cli.settings, cli.given
    for values, told in wrong:
        cli.settings, cli.given = dataclasses.replace(settings, **values), given.clone()
        for name, value in values.items():
            cli.given[name] = value
        with pytest.raises(UserError) as raised:
            propose_shape(cli, [])
        assert told in str(raised.value)
    assert not asked
    for options, told in (
        (["--minutes", "4", "--max_steps", "9"], "so leave max_steps=9 out"),
        (["--minutes", "4", "--hours", "2"], "--hours does not go with --minutes"),
        (["--measure"], "--measure is for --minutes"),
    ):
        assert told in fails(capsys, *QUICK, "--data.path", str(dataset), *options)


def test_data_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(capsys, *QUICK, "--data.path", "nowhere", "--minutes", "4")
    assert "nowhere is no prepared dataset on this machine" in told
    bare = ["--config", str(ROOT / "configs/model/llama_60m.yaml"), "--minutes", "4"]
    assert "--minutes needs the dataset" in fails(capsys, *bare)


def test_other_text_does_not_compare(
    dataset: Path, tmp_path: Path, asked: list[ModelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    manifest = Manifest.load(dataset)
    name, source = next(iter(manifest.sources.items()))
    changed = {name: dataclasses.replace(source, content_sha256="0" * 64)}
    manifest = dataclasses.replace(manifest, sources={**manifest.sources, **changed})
    (other / "manifest.json").write_text(manifest.dump(), encoding="utf-8")
    told = fails(
        capsys, *QUICK, "--data.path", str(dataset), "--minutes", "4", "--datasets", f"[{other}]"
    )
    assert f"{other} is made of other files than {dataset}" in told


def test_real_steps(dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps of `fit` itself are timed, and leave nothing but their seconds."""
    monkeypatch.setattr(shapes, "MEASURED", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = propose(
        "--data.path", str(dataset), "--minutes", "0.01", "--data.seq_len", "32",
        "--data.global_batch_tokens", "64", "--model.compile", "off",
        "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    [file] = measured_steps.library_folder().glob("step_seconds-*.json")
    [kept] = json.loads(file.read_text())["steps"]
    assert kept["seconds"] > 0
    assert kept["date"] in found["time_from"][1]


def test_steps_that_cannot_be_made(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = measured_steps.Setting("a machine", False, "key", {
        **yaml.safe_load((ROOT / "configs/pretrain/muon.yaml").read_text()),
        "no_such_option": 1, "trainer": {"callbacks": None},
    })  # fmt: skip
    net = ModelConfig(n_layer=1, width=64, n_head=1)
    with pytest.raises(UserError, match="no step of 1 × 64 could be measured here: `fit` ended"):
        measured_steps.measure_step(setting, net, str(dataset), 64)
