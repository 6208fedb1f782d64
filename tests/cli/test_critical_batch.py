"""`scaling critical-batch` on a tiny run: its branches, their rates, and what it concludes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.scaling.scaling_critical_batch import branch_tokens
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.scaling.batch_rules import BranchOutcome, critical_factor, moved

RUN = (
    "fit", "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=1",
    "--model.compile=off", "--data.seq_len=32", "--data.global_batch_tokens=64",
    "--data.val_tokens=512", "--max_steps=8", "--checkpoint_every=2", "--keep_checkpoints=9",
    "--validate_every=0", "--sample_prompts=[]", "--trainer.accelerator=cpu",
    "--trainer.precision=32-true", "--model.schedule.kind=wsd", "--model.schedule.warmup=8 steps",
    "--model.schedule.decay=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run within its warm-up, with checkpoints at every second step; not to be changed."""
    folder = tmp_path_factory.mktemp("branched")
    assert main([*RUN, f"--data.path={dataset}", f"--runs={folder}", "--name=base"]) == 0
    return folder / "base"


def branch(run: Path, out: Path, *options: str) -> int:
    try:
        return main(["scaling", "critical-batch", str(run), f"--out={out}", *options])
    except SystemExit as stop:  # of the parser
        return int(str(stop.code))


def configs(out: Path) -> dict[str, Any]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in out.glob("configs/*.yaml")}


def test_branches_read_the_same_tokens_at_rates_for_their_batch(run: Path, tmp_path: Path) -> None:
    assert branch(run, tmp_path, "--step=4", "--factors=0.5,1,4", "--window=1000", "--engine=list"
                  ) == 0  # fmt: skip
    found = configs(tmp_path)
    assert set(found) == {"0.5x", "1x", "4x"}
    own = yaml.safe_load((run / "config.yaml").read_text())["model"]["optimizer"]["init_args"]
    for name, steps, size in (("0.5x", 32, 32), ("1x", 16, 64), ("4x", 4, 256)):
        config, factor = found[name], size / 64
        assert config["max_steps"] == 4 + steps
        assert steps * size == 1024
        assert config["fork"].endswith("step=00000004.ckpt")
        assert config["model"]["schedule"]["kind"] == "constant"
        settings = config["model"]["optimizer"]["init_args"]
        # Four of eight steps of warm-up are made: half of the peak.
        assert settings["matrix_lr"] == pytest.approx(own["matrix_lr"] * 0.5 * factor**0.5)
        assert settings["head_lr"] == pytest.approx(own["head_lr"] * 0.5 * factor**0.5)
        assert settings["betas"] == pytest.approx([own["betas"][0], own["betas"][1] ** factor])
    assert found["1x"]["data"]["global_batch_tokens"] == 64
    assert found["4x"]["data"]["batch_schedule"] == [
        {"from_tokens": 0, "tokens": 64}, {"from_tokens": 256, "tokens": 256}
    ]  # fmt: skip


def test_a_schedule_of_the_batch_stays_what_it_was(dataset: Path, tmp_path: Path) -> None:
    """Factors are those of the size at the checkpoint, and later sizes are the branch's own."""
    entries = ("0, tokens: 32", "64, tokens: 64", "256, tokens: 128")
    batch = f"[{', '.join(f'{{from_tokens: {its}}}' for its in entries)}]"
    run = [option for option in RUN if "global_batch" not in option]
    given = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=base"]
    assert main([*run, *given, f"--data.batch_schedule={batch}"]) == 0
    options = ("--step=4", "--factors=0.5,1,2", "--window=256", "--engine=list")
    assert branch(tmp_path / "base", tmp_path / "out", *options) == 0
    found = configs(tmp_path / "out")
    first = [{"from_tokens": 0, "tokens": 32}, {"from_tokens": 64, "tokens": 64}]
    # Step 4 has read 2 × 32 + 2 × 64 tokens.
    assert found["1x"]["data"]["batch_schedule"] == first
    for name, size in (("0.5x", 32), ("2x", 128)):
        its = found[name]["data"]["batch_schedule"]
        assert its == [*first, {"from_tokens": 192, "tokens": size}]
    assert [found[name]["max_steps"] for name in ("0.5x", "1x", "2x")] == [12, 8, 6]


def test_the_plan_comes_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert branch(run, out, "--factors=2", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "step=00000008.ckpt: 8.19 k tokens in every branch" in said
    assert "total: 2 runs" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step=3"], "keeps no step=00000003.ckpt; it keeps those of the steps 2, 4, 6, 8"),
        (["--factors=1"], "name at least one factor beside 1"),
        (["--factors=1,-2,0"], "-2, 0 must be positive and finite"),
        (["--factors=two"], "numbers with commas are needed"),
        (["--factors=0.75"], "0.75 × 64 tokens are 1.5 rows of 32"),
        (["--window=0"], "--window 0 must be a positive number of tokens"),
        (["--tolerance=-1"], "--tolerance -1 must be finite and not negative"),
    ],
    ids=["step", "one", "signs", "words", "rows", "window", "tolerance"],
)
def test_mistakes_are_named(
    options: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert branch(run, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_factor_is_the_decimal_that_was_given() -> None:
    """Of whole rows by it none is refused, though 2.2 × 1,440 is no whole number in binary."""
    for rows in range(1, 60):
        for hundredths in range(1, 300):
            if rows * hundredths % 100 == 0:
                found = branch_tokens(hundredths / 100, rows * 32, 32)
                assert found == rows * hundredths * 32 // 100


def test_runs_over_rows_are_refused(
    chat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert branch(chat_run, tmp_path / "out") == 2
    assert "trains on ChatData, whose steps are counted in rows" in capsys.readouterr().err
    assert branch(tmp_path, tmp_path / "out") == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["base_batch_tokens", "base_tokens"])
def test_rates_that_follow_the_batch_by_themselves_are_refused(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    (copy / "checkpoints").mkdir(parents=True)
    file = run / "checkpoints" / "step=00000008.ckpt"
    (copy / "checkpoints" / file.name).write_bytes(file.read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["transfer"] = {"base_width": 16, "base_depth": 1, name: 64}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert branch(copy, tmp_path / "out") == 2
    assert f"model.transfer.{name}=64 of " in capsys.readouterr().err


def test_the_largest_batch_that_is_as_good_is_named(
    run: Path, tmp_path: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses of the stand-in are all 3, so the last factor is as good, and larger ones may be."""
    options = ("--factors=2,4", "--window=512", "--jobs=3")
    assert branch(run, tmp_path, *options) == 0
    said = capsys.readouterr().out
    assert "within 0.01 nats after 512 tokens: 256 tokens, factor 4; try larger factors" in said
    record = json.loads((tmp_path / "critical_batch.json").read_text())
    assert record["critical"] == {"factor": 4, "batch_tokens": 256}
    assert (tmp_path / "critical_batch.png").read_bytes().startswith(b"\x89PNG")
    assert branch(run, tmp_path, *options) == 0
    assert len((tmp_path / "made.txt").read_text().split()) == 3


def test_a_batch_is_critical_within_the_tolerance() -> None:
    losses = {0.5: 2.99, 1: 3.0, 2: 3.004, 4: 3.02, 8: 3.1}
    outcomes = [BranchOutcome(k, int(64 * k), 1, loss, ()) for k, loss in losses.items()]
    assert [critical_factor(outcomes, t) for t in (0.0, 0.005, 0.03, 1.0)] == [1, 2, 4, 8]


def test_rates_and_decays_follow_the_batch() -> None:
    found = moved(
        {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-8}, factor=4, share=0.5
    )
    assert found == {
        "lr": pytest.approx(1e-3), "betas": [0.9, pytest.approx(0.95**4)],
        "weight_decay": pytest.approx(0.2), "eps": 1e-8,
    }  # fmt: skip


def test_a_rate_that_follows_another_and_betas_by_role() -> None:
    found = moved(
        {"matrix_lr": 0.02, "embedding_scalar_lr": None, "role_betas": {"head": [0.8, 0.96]}},
        factor=4, share=1.0,
    )  # fmt: skip
    assert found == {
        "matrix_lr": pytest.approx(0.04), "embedding_scalar_lr": None,
        "role_betas": {"head": [0.8, pytest.approx(0.96**4)]},
    }  # fmt: skip


@pytest.mark.slow
def test_branches_are_trained(dataset: Path, run: Path, tmp_path: Path) -> None:
    """That of factor 1 is a plain fork with a constant rate, to the last bit."""
    out = tmp_path / "out"
    assert branch(run, out, "--step=8", "--factors=1,2", "--window=256", "--threads=1") == 0
    record = json.loads((out / "critical_batch.json").read_text())
    first, second = record["branches"]
    assert [its["steps"] for its in (first, second)] == [4, 2]
    assert first["curve"][-1][0] == second["curve"][-1][0] == 256
    assert first["loss"] != second["loss"]
    plain = [
        *RUN[:1], f"--config={run / 'config.yaml'}", f"--runs={tmp_path}", "--name=plain",
        f"--fork={run / 'checkpoints' / 'step=00000008.ckpt'}", "--max_steps=12",
        "--model.schedule.kind=constant", "--model.schedule.warmup=0",
    ]  # fmt: skip
    assert main(plain) == 0
    last = [line["val/loss"] for line in read_metrics(tmp_path / "plain") if "val/loss" in line]
    assert first["loss"] == last[-1]
