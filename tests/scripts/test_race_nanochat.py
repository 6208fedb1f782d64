"""scripts/race_nanochat.py: the rows of `fit`, the arithmetic of `validate`, its schedules."""

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import yaml

import lit_pretrain
from lit_pretrain.__main__ import main as cli
from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.data.text.text_data import TextData

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["Functions", "Module"])
def test_its_code_is_trained_and_measured(
    script: ModuleType,
    nanochat: Callable[[str], Path],
    kind: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps, batch, width = 30, 256, 32
    script.main([
        f"--nanochat={nanochat(kind)}", f"--data={dataset}", "--seq_len=32",
        f"--batch_tokens={batch}", "--micro_batch_size=4", f"--width={width}", "--n_layer=2",
        f"--steps={steps}", "--rates=20", "--compile=off", f"--runs={tmp_path}", "--name=theirs",
    ])  # fmt: skip
    result = json.loads((tmp_path / "theirs" / "result.json").read_text())
    assert result["parameters"] == 2 * 512 * width
    assert (result["steps"], result["tokens"]) == (steps, steps * batch)
    assert 0 < result["loss"] < math.log(512) - 0.5  # a head of zeros guesses
    assert f"({result['bits_per_byte']:.4f} bits/byte)" in capsys.readouterr().out
    # What nanochat would have asked of its optimizer for this batch, this width and this horizon.
    asked = sys.modules["nanochat.gpt"].asked
    by_batch = math.sqrt(batch / 524_288)
    rates = {"embedding_lr": 0.3, "unembedding_lr": 0.008, "matrix_lr": 0.02, "scalar_lr": 0.5}
    for name, rate in rates.items():
        assert asked[name] == pytest.approx(20 * by_batch * rate)
    tuned_on = 12 * (12 * 12 * 768**2 + 512 * 768)  # tokens
    assert asked["weight_decay"] == pytest.approx(
        0.28 * by_batch * tuned_on / (steps * batch)
    )  # --rates leaves it alone


def test_rows_and_labels_are_those_of_fit(script: ModuleType, dataset: Path) -> None:
    data = TextData(str(dataset), seq_len=32, global_batch_tokens=128, micro_batch_size=2, seed=3)
    expected = lit_pretrain.open_data(dataset).batches(
        "train", seq_len=32, batch_size=4, epochs=None, seed=3
    )
    for step, rows in itertools.islice(zip(script.training_rows(data), expected, strict=False), 40):
        assert len(step) == 2
        assert torch.equal(torch.cat([micro.tokens_BT for micro in step]), rows.ids_BT)
        assert torch.equal(torch.cat([micro.labels_BT for micro in step]), rows.labels_BT)


def test_a_network_of_ours_gets_the_figures_of_validate(
    script: ModuleType, quickstart: Path, tmp_path: Path
) -> None:
    run, data = quickstart / "runs" / "quickstart", quickstart / "data" / "embedded"
    assert not cli([
        "validate", "--run", str(run), f"--data.path={data}", "--data.val_tokens=null",
        f"--json={tmp_path / 'figures.json'}", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    figures = json.loads((tmp_path / "figures.json").read_text())
    net = lit_pretrain.load(run, device="cpu").net

    def nats_of(batch: script.Batch) -> torch.Tensor:  # type: ignore[name-defined]
        logits_BTV = net.logits(net(batch.tokens_BT, batch.doc_BT)).float()
        return F.cross_entropy(
            logits_BTV.mT, batch.labels_BT, ignore_index=IGNORE_INDEX, reduction="none"
        )

    held_out = TextData(str(data), seq_len=64, micro_batch_size=8, val_tokens=None)
    found = script.measure(held_out, nats_of)
    assert found["loss"] == pytest.approx(figures["val/loss"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(figures["val/bits_per_byte"], rel=1e-5)


def test_the_schedule(script: ModuleType) -> None:
    schedule = script.Schedule(steps=1000, weight_decay=2.0)
    # 40 steps of warm-up, and a warm-down over the last 650 to 0.05.
    assert [schedule.rate(step) for step in (0, 39, 40, 350)] == [1 / 40, 1.0, 1.0, 1.0]
    assert schedule.rate(675) == pytest.approx(0.525)
    assert schedule.rate(999) == pytest.approx(0.05 + 0.95 / 650)
    # Muon's momentum rises until step 400, and then is that of the warm-down.
    found = [schedule.momentum(step) for step in (0, 200, 399, 675, 1000)]
    assert found == pytest.approx([0.85, 0.91, 0.9697, 0.935, 0.90])
    assert script.Schedule(steps=4000, weight_decay=2.0).momentum(500) == pytest.approx(0.97)
    assert [schedule.decay(step) for step in (0, 500, 1000)] == pytest.approx([2.0, 1.0, 0.0])
    # A run that is shorter than the warm-up.
    assert script.Schedule(steps=1, weight_decay=0.0).rate(0) == 1 / 40


def test_a_folder_without_nanochat_is_named(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no nanochat/gpt.py.*git clone"):
        script.main([f"--nanochat={tmp_path}", "--steps=1"])


def test_the_entrants_parse(script: ModuleType) -> None:
    entrants = yaml.safe_load((ROOT / "configs" / "race" / "nanochat.yaml").read_text())
    theirs = [given.split() for given in entrants.values() if "race_nanochat.py" in given]
    assert theirs
    for given in theirs:
        assert script.arguments().parse_args([*given[1:], "--steps=1"]).width > 0
