"""TensorBoard as a person sees it: served, opened in headless Chromium, and looked at."""

import importlib.util
import json
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from lit_pretrain.__main__ import main

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def chromium() -> None:
    pytest.importorskip("selenium", reason="needs the dev extra")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Debian's chromium and chromium-driver are not installed")


HERE = ("--trainer.accelerator=cpu", "--model.compile=off", "--sample_tokens=4")


def fit(runs: Path, name: str, dataset: Path, *options: str) -> None:
    code = main([
        "fit", "--config", str(ROOT / "configs/pretrain/llama_adamw.yaml"), "--model.net.n_layer=2",
        "--model.net.width=32", "--model.net.n_head=2", "--model.net.ffn_width=64",
        "--model.net.max_seq_len=128", "--data.seq_len=32", "--data.micro_batch_size=2",
        "--data.global_batch_tokens=128", "--data.val_tokens=256", "--max_steps=20",
        "--log_every=2", "--validate_every=5", f"--data.path={dataset}", f"--runs={runs}",
        f"--name={name}", *HERE, *options,
    ])  # fmt: skip
    assert code == 0


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
def test_the_curves_are_drawn(dataset: Path, tmp_path: Path) -> None:
    fit(tmp_path / "runs", "drawn", dataset)
    picture = load("picture")
    with picture.tensorboard(tmp_path / "runs") as address:
        curves = picture.draw(address, tmp_path / "full.png", width=900, height=700)
        empty = tmp_path / "nothing"
        empty.mkdir()
    assert curves >= 4  # train, validation, and the sources beside them
    with Image.open(tmp_path / "full.png") as shown:
        colours = {colour for _, colour in shown.convert("RGB").getcolors(900 * 700) or []}
    orange = {c for c in colours if c[0] > 200 and 60 < c[1] < 140 and c[2] < 90}
    assert orange, "the picture holds nothing in the colour of the first run"
    with picture.tensorboard(empty) as address:
        assert (
            picture.draw(address, tmp_path / "empty.png", width=900, height=700, seconds=6) == 0
        )  # the check can fail


@pytest.fixture(scope="module")
def ten_runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three stages, of which some stand for several: a name and the same figures."""
    work = tmp_path_factory.mktemp("reviewed")
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f"The fox is {i}.", "rejected": f"{i} hens, or none."}
        for i in range(40)
    ]
    (work / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = work / "runs"
    fit(runs, "base", dataset)
    for name, data, file, objective in (
        ("sft", "ChatData", "rows", {}),
        ("dpo", "PreferenceData", "pairs", {"class_path": "lit_pretrain.objective.DPO"}),
    ):
        settings = {
            "path": str(work / f"{file}.jsonl"), "format": "auto", "validation": 0.2,
            "seq_len": 128, "global_batch_rows": 8, "micro_batch_size": 4,
        }  # fmt: skip
        config: dict[str, Any] = {
            "model": {"objective": objective} if objective else {},
            "data": {"class_path": f"lit_pretrain.data.{data}", "init_args": settings},
        }
        (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
        start = ["posttrain", "--from", str(runs / "base"), "--config", str(work / f"{name}.yaml")]
        often = ["--max_steps=8", "--log_every=1", "--validate_every=2", "--sample_prompts=[]"]
        assert main([*start, *often, *HERE, f"--runs={runs}", f"--name={name}"]) == 0
    for number in range(2, 7):
        shutil.copytree(runs / "base", runs / f"base-{number}")
    for number in range(2, 4):
        shutil.copytree(runs / "dpo", runs / f"dpo-{number}")
    assert len(list(runs.iterdir())) == 10
    return runs


CHARTS = """
const charts = [], runs = [];
const walk = (node) => {
  if (node.tagName === 'TF-CUSTOM-SCALAR-MULTI-LINE-CHART-CARD' || node.tagName === 'CARD-VIEW') {
    const box = node.getBoundingClientRect();
    const find = (inner) => {
      if (inner.matches && inner.matches('tf-card-heading, .tag')) return inner;
      for (const child of [...(inner.shadowRoot ? inner.shadowRoot.children : []),
                           ...(inner.children || [])]) {
        const found = find(child);
        if (found) return found;
      }
      return null;
    };
    const title = find(node);
    if (box.height > 0) {
      charts.push([title ? (title.displayName || title.innerText) : '', box.top, box.bottom]);
    }
  }
  if (node.tagName === 'TF-MULTI-CHECKBOX') runs.push(...node.names);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children || []) walk(child);
};
walk(document.documentElement);
return [charts, runs, innerHeight];
"""
"""Title, upper and lower edge of every chart that is unfolded; names of runs; height of the window.
"""


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
@pytest.mark.parametrize(
    "count", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 10]
)
def test_a_person_finds_the_losses(count: int, ten_runs: Path, tmp_path: Path) -> None:
    """The page that the guide names shows few charts, with titles that tell them apart."""
    names = (
        ["base", "dpo", "sft"][:count] if count < 10 else sorted(p.name for p in ten_runs.iterdir())
    )
    for name in names:
        shutil.copytree(ten_runs / name, tmp_path / name)
    picture = load("picture")
    with picture.tensorboard(tmp_path) as address:
        for width, height in ((1600, 1000), (1280, 800)):
            with picture.browser(width, height) as page:
                page.get(f"{address}?smoothing=0#{picture.PAGE}")
                end, curves, before = time.monotonic() + 120, 0, -1
                while time.monotonic() < end and not (curves and curves == before):
                    before = curves
                    time.sleep(1)
                    curves = int(page.execute_script(picture.COUNT_CURVES))
                charts, runs, fold = page.execute_script(CHARTS)
            titles = [title for title, *_ in charts]
            assert len(titles) == len(set(titles)), titles
            assert all(titles)
            above = [title for title, top, _ in charts if top < fold]
            assert any("train and validation" in title for title in above)
            assert 2 <= len(above) <= 12
            assert sorted(runs) == names
            assert curves >= 2 * count
