"""Runs with a schedule of the batch, through the real command line: their rows, rates and figures,
and that they go on to the bit before, at and after the place where the size changes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.plain_data import read_config
from lit_pretrain.report.run_folder import read_metrics
from tests.test_distributed import fit as fit_apart
from tests.test_resume import losses, options, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [128] * 4 + [256] * 3 + [512] * 3
"""Tokens of every step of the run: 2,816 together."""
TOKENS = sum(SIZES)
SCHEDULE = "[{from_tokens: 0, tokens: 128}, {from_tokens: 500, tokens: 256}, {from_tokens: 1200, tokens: 512}]"  # fmt: skip  # noqa: E501
OTHER = SCHEDULE.replace("1200, tokens: 512", "1280, tokens: 1024")
"""The same for the first seven steps."""
WSD = ["--model.schedule.kind=wsd", "--model.schedule.decay=1024 tokens", "--max_steps=null"]


def scheduled(dataset: Path, runs: Path, name: str, *extra: str) -> list[str]:
    return options(
        dataset, runs, name, "--data.global_batch_tokens=null", f"--data.batch_schedule={SCHEDULE}",
        *WSD, "--max_tokens=2800", "--checkpoint_every=1", "--keep_checkpoints=20",
        "--validate_every=0", *extra,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The run without a stop, and the rows that its steps have read."""
    runs = tmp_path_factory.mktemp("whole")
    with read_rows() as rows:
        assert main(scheduled(dataset, runs, "run")) == 0
    return runs / "run", rows


def cut(run: Path, runs: Path, step: int) -> Path:
    """A copy of a run as it was when it had made so many steps."""
    copy = runs / run.name
    shutil.copytree(run, copy)
    for file in (copy / "checkpoints").glob("step=*.ckpt"):
        if int(file.stem.removeprefix("step=")) > step:
            file.unlink()
    (copy / "summary.md").unlink()
    return copy


def train_lines(run: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(run) if "train/loss" in line]


def test_its_steps_read_the_rows_of_a_run_with_one_size(
    dataset: Path, tmp_path: Path, whole: tuple[Path, Any]
) -> None:
    rows = whole[1]
    assert [len(rows[step]) * 32 for step in sorted(rows)] == SIZES
    with read_rows() as plain:
        assert main(options(dataset, tmp_path, "plain", "--max_steps=7")) == 0
    flat = [row for step in sorted(rows) for row in rows[step]]
    assert [row for step in sorted(plain) for row in plain[step]] == flat[: 7 * 8]
    assert [row[0] for row in flat] == list(range(TOKENS // 32))


def test_its_rates_and_figures_are_those_of_its_tokens(whole: tuple[Path, Any]) -> None:
    run, _ = whole
    lines = train_lines(run)
    ends = [sum(SIZES[: n + 1]) for n in range(len(SIZES))]
    assert [line["progress/tokens"] for line in lines] == ends
    assert read_config(run / "config.yaml")["max_steps"] == len(SIZES)
    flops = {line["progress/flops"] / line["progress/tokens"] for line in lines}
    assert max(flops) == pytest.approx(min(flops))
    assert {line["data/supervised_fraction"] for line in lines} == {1.0}
    for line, size in zip(lines, SIZES, strict=True):
        rate = size / line["time/step_seconds"]
        assert line["throughput/tokens_per_second"] == pytest.approx(rate, rel=1e-3)
    # The decay begins 1,024 tokens before the end of the run and is linear in tokens.
    peak = lines[0]["lr/matrix"]
    for line, end, size in zip(lines, ends, SIZES, strict=True):
        left = (TOKENS - (end - size)) / 1024
        assert line["lr/matrix"] == pytest.approx(peak * min(1.0, left))
    assert f"{TOKENS:,}" in (run / "summary.md").read_text()


@pytest.mark.parametrize("step", [3, 4, 5])
def test_it_goes_on_to_the_bit_around_a_change_of_the_size(
    dataset: Path, tmp_path: Path, whole: tuple[Path, Any], step: int
) -> None:
    copy = cut(whole[0], tmp_path, step)
    with read_rows() as rows:
        assert main(scheduled(dataset, tmp_path, "run", "--resume=auto")) == 0
    assert rows == {n: whole[1][n] for n in range(step, len(SIZES))}
    assert losses(copy) == losses(whole[0])


def test_one_entry_is_the_plain_size(dataset: Path, tmp_path: Path) -> None:
    arguments = ["--max_steps=3", "--validate_every=0"]
    assert main(options(dataset, tmp_path, "plain", *arguments)) == 0
    entry = ["--data.global_batch_tokens=null", "--data.batch_schedule"]
    entry.append("[{from_tokens: 0, tokens: 256}]")
    assert main(options(dataset, tmp_path, "entry", *arguments, *entry)) == 0
    plain, same = (next((tmp_path / n / "checkpoints").glob("step=*")) for n in ("plain", "entry"))
    assert plain.read_bytes() == same.read_bytes()
    assert losses(tmp_path / "plain") == losses(tmp_path / "entry")
    longer = ["--resume=auto", "--model.schedule.kind=constant", "--max_steps=3"]
    assert main(options(dataset, tmp_path, "plain", *arguments, *entry, *longer[:1])) == 0


def test_a_gradient_is_the_mean_over_the_rows_of_its_own_step(
    dataset: Path, tmp_path: Path
) -> None:
    """With weights that stand still, a step equals one of a run whose steps all have its size."""
    still = [
        "--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=1e-30",
        "--model.net.dropout=0", "--validate_every=0", "--data.micro_batch_size=4",
        "--data.global_batch_tokens=null",
    ]  # fmt: skip
    ramp = "--data.batch_schedule=[{from_tokens: 0, tokens: 128}, {from_tokens: 512, tokens: 512}]"
    assert main(options(dataset, tmp_path, "ramp", *still, "--max_steps=5", ramp)) == 0
    plain = "--data.global_batch_tokens=512"
    assert main(options(dataset, tmp_path, "plain", *still, "--max_steps=2", plain)) == 0
    ramped, same = train_lines(tmp_path / "ramp"), train_lines(tmp_path / "plain")
    for name in ("train/loss", "train/grad_norm"):
        assert ramped[4][name] == same[1][name]
        assert ramped[3][name] != same[0][name]


def test_the_size_of_steps_to_come_may_change(
    dataset: Path, tmp_path: Path, whole: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where neither sizes nor rates of the steps made so far would have been others."""
    copy = cut(whole[0], tmp_path, 6)
    other = ["--resume=auto", f"--data.batch_schedule={OTHER}"]
    assert main(scheduled(dataset, tmp_path, "run", *other)) == 0
    assert train_lines(copy)[-1]["progress/tokens"] == 128 * 4 + 256 * 3 + 1024 * 2
    assert losses(copy)[:6] == losses(whole[0])[:6]
    assert read_config(copy / "config.yaml")["data"]["batch_schedule"][2]["tokens"] == 1024
    capsys.readouterr()
    assert main(["inspect", "order", str(copy), "--step", "7", "--json_lines"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["sample"] for line in shown] == list(range(40, 72))


@pytest.mark.parametrize(
    ("step", "extra", "says"),
    [
        (
            8,
            [f"--data.batch_schedule={OTHER}"],
            "the 8 steps before the checkpoint have other size",
        ),
        (
            6,
            [f"--data.batch_schedule={OTHER}", "--model.schedule.kind=cosine"],
            "keep their sizes, but would have had other learning rates",
        ),
    ],
)
def test_the_size_of_steps_that_were_made_stays(
    dataset: Path, tmp_path: Path, whole: tuple[Path, Any], step: int, extra: list[str], says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cut(whole[0], tmp_path, step)
    assert main(scheduled(dataset, tmp_path, "run", "--resume=auto", *extra)) == 2
    said = capsys.readouterr().err
    assert "data.batch_schedule: the checkpoint has" in said
    assert says in said


def test_a_fork_reads_on_in_steps_of_another_size(
    dataset: Path, tmp_path: Path, whole: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fork = [f"--fork={whole[0]}/checkpoints/step=00000005.ckpt", "--max_tokens=null"]
    fork += ["--max_steps=7", "--model.schedule.decay=1 steps"]
    size = ["--data.batch_schedule=null", "--data.global_batch_tokens=64"]
    assert main(scheduled(dataset, tmp_path, "refused", *fork, *size)) == 2
    said = capsys.readouterr().err
    assert "the 5 steps before the checkpoint have other sizes" in said
    entries = said.partition("data.batch_schedule: [{from_tokens: 0")[2].partition("]")[0]
    schedule = "[{from_tokens: 0" + entries.replace("...", "64") + "]"
    with read_rows() as rows:
        change = f"--data.batch_schedule={schedule}"
        assert main(scheduled(dataset, tmp_path, "fork", *fork, change)) == 0
    assert [row[0] for step in sorted(rows) for row in rows[step]] == [24, 25, 26, 27]


def test_steps_that_are_left_out_keep_their_size(
    dataset: Path, tmp_path: Path, whole: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A step reads the rows of its place in the order, and is as large as that place. A run that
    leaves steps out later equals, rates included, one that has done so from the start.
    """
    skip = "--skip_steps=3:6"
    with read_rows() as rows:
        assert main(scheduled(dataset, tmp_path, "start", skip)) == 0
    assert [len(rows[step]) * 32 for step in sorted(rows)] == [128] * 3 + [256] + [512] * 6
    assert [row[0] for step in sorted(rows) for row in rows[step]] == list(range(116))
    capsys.readouterr()
    assert main(["inspect", "order", str(tmp_path / "start"), "--step", "3"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "step 3: samples 12 to 19, which is step 6 without skips"
    tokens = [line["progress/tokens"] for line in train_lines(tmp_path / "start")]
    assert tokens == [128, 256, 384, 640, *range(1152, 3713, 512)]
    later = cut(whole[0], tmp_path, 5)
    assert main(scheduled(dataset, tmp_path, "run", "--resume=auto", skip)) == 0
    assert losses(later) == losses(tmp_path / "start")
    rates = [line["lr/matrix"] for line in train_lines(later)]
    assert rates == [line["lr/matrix"] for line in train_lines(whole[0])]


def test_the_views_of_a_run_know_its_schedule(
    tmp_path: Path, whole: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = whole[0], str(whole[0] / "config.yaml")
    assert main(["inspect", "order", str(run), "--step", "6", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "step 6: samples 32 to 39\n" in said
    assert "step 7: samples 40 to 55\n" in said
    assert main(["inspect", "batch", "--config", config, "--step", "7", "--rows", "99"]) == 0
    said = capsys.readouterr().out
    assert [f"sample {n}," in said for n in (39, 40, 55, 56)] == [False, True, True, False]
    assert main(["plan", "--config", config, "--json"]) == 0
    length = json.loads(capsys.readouterr().out)["length"]
    assert (length["tokens"], length["steps"]) == (TOKENS, len(SIZES))
    assert [(b["tokens"], b["steps"]) for b in length["batches"]] == [(128, 4), (256, 3), (512, 3)]
    assert main(["replay", str(run), "--step", "7"]) == 0
    assert "equal to the last bit" in capsys.readouterr().out


def test_every_size_must_divide(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scheduled(dataset, tmp_path, "run", "--trainer.devices=3")) == 2
    said = capsys.readouterr().err
    assert "data.batch_schedule: tokens=128 must be a multiple of devices × data.seq_len" in said
    assert "the nearest is 96, or take 2 or 4 devices" in said
    assert main(scheduled(dataset, tmp_path, "run", "--data.seq_len=96")) == 2
    assert "tokens=128 must be a multiple of data.seq_len = 96" in capsys.readouterr().err
    assert main(scheduled(dataset, tmp_path, "run", "--data.global_batch_tokens=128")) == 2
    assert "not both" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_equal_one_and_hand_over(dataset: Path, tmp_path: Path) -> None:
    ramp = [
        "--data.global_batch_tokens=null",
        "--data.batch_schedule=[{from_tokens: 0, tokens: 128}, {from_tokens: 384, tokens: 512}]",
        "--data.micro_batch_size=2", "--max_steps=6", "--checkpoint_every=1",
        "--keep_checkpoints=9",
    ]  # fmt: skip
    fit_apart(dataset, tmp_path, "one", *ramp)
    fit_apart(dataset, tmp_path, "two", *ramp, "--trainer.devices=2")
    one, two = (train_lines(tmp_path / name) for name in ("one", "two"))
    assert [line["progress/tokens"] for line in two] == [128, 256, 384, 896, 1408, 1920]
    for a, b in zip(one, two, strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], abs=2e-6)
    cut(tmp_path / "two", tmp_path / "cut", 3)
    fit_apart(dataset, tmp_path / "cut", "two", *ramp, "--resume=auto")
    for a, b in zip(one, train_lines(tmp_path / "cut" / "two"), strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], abs=2e-6)
