"""The guard: spikes are warned of, left out or gone back from; collapse ends a run; and whatever
kills a run while it goes back, it ends in the same bits.
"""

import functools
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.weights import weights_identity
from lit_pretrain.errors import UserError
from lit_pretrain.report.rewinds import read_rewinds
from lit_pretrain.report.run_folder import last_validation, read_metrics, read_skips
from lit_pretrain.skips import Skips
from lit_pretrain.stage.guard import LEAST, Guard, GuardSettings
from lit_pretrain.stage.stage import Stage
from tests.test_resume import at_step, losses, options, read_rows

# ---------------------------------------------------------------------- the arithmetic


def guard(**settings: Any) -> Guard:
    return Guard(GuardSettings(**settings), guessing=math.log(100), needs_gradient=True)


def test_a_leap_is_a_spike_and_noise_is_none() -> None:
    noise = random.Random(0)
    watched = guard()
    for step in range(2000):
        loss, norm = (
            2 + 4 * math.exp(-step / 300) + noise.gauss(0, 0.05),
            noise.lognormvariate(0, 0.3),
        )
        assert watched.spike(loss, norm) is None
    assert "the loss is 4," in str(watched.spike(4.0, 1.0))
    assert "gradient norm is 50," in str(watched.spike(2.0, 50.0))
    assert watched.spike(0.5, 0.01) is None  # only upwards
    assert "nan" in str(watched.spike(math.nan, 1.0))
    assert "inf" in str(watched.spike(2.0, math.inf))


def test_a_new_level_is_a_spike_until_the_median_has_followed() -> None:
    watched = guard(window=32)
    assert [watched.spike(1.0, 1.0) for _ in range(40)] == [None] * 40
    found = [watched.spike(3.0, 1.0) is not None for _ in range(40)]
    assert found.index(False) in range(6, 12)
    assert not any(found[12:])


def test_a_norm_counts_by_factors() -> None:
    """Small networks double their norm now and then, while the loss falls on."""
    for scale in (1e-6, 1.0, 1e6):
        watched = guard()
        for step in range(100):
            watched.spike(1.0, scale * (1.02 if step % 2 else 0.98))
        assert watched.spike(1.0, 2.6 * scale) is None
        assert f"the gradient norm is {2.9 * scale:.4g}," in str(watched.spike(1.0, 2.9 * scale))


def test_too_few_steps_are_no_measure() -> None:
    watched = guard()
    for _ in range(LEAST - 1):
        watched.spike(1.0, 1.0)
    assert watched.spike(9.0, 9.0) is None
    assert watched.spike(9.0, 1.0) is not None


def test_a_restored_guard_decides_the_same() -> None:
    noise = random.Random(1)
    one, two = guard(), guard()
    for step in range(300):
        if step % 50 == 49:
            two = guard()
            two.load_state(one.state())
        values = noise.gauss(4.7, 0.1) * (2 if step % 37 == 0 else 1), noise.random()
        assert one.spike(*values) == two.spike(*values)
        assert one.guesses(values[0]) == two.guesses(values[0])
        assert one.state() == two.state()


@pytest.mark.parametrize(
    "wrong", [{"window": 3}, {"margin": 0}, {"threshold": 0.0}, {"max_rewinds": -1}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"guard.{next(iter(wrong))}"):
        GuardSettings(**wrong)


# ---------------------------------------------------------------------- runs

STEPS = 48
SMALL = [
    f"--max_steps={STEPS}", "--model.net.dropout=0", "--validate_every=0", "--checkpoint_every=8",
    "--data.global_batch_tokens=512", "--data.val_tokens=8192",
    "--guard.window=16", "--guard.threshold=6", "--guard.margin=2",
]  # fmt: skip
REWIND = "--guard.action=rewind"


pytestmark = pytest.mark.usefixtures("one_thread")


def fit(dataset: Path, runs: Path, name: str, *extra: str) -> int:
    return main(options(dataset, runs, name, *SMALL, *extra))


def weights(run: Path, step: int = STEPS) -> str:
    return weights_identity(str(run / "checkpoints" / f"step={step:08d}.ckpt"))


@contextmanager
def poisoned(rows: list[tuple[int, ...]]) -> Iterator[list[int]]:
    """Let the labels of the steps that read one of these rows be noise."""
    plain, found, poison = Stage.training_step, [], {row[1:] for row in rows}

    @functools.wraps(plain)
    def training_step(self: Stage, batch: Any, batch_idx: int) -> Any:
        if any(tuple(row) in poison for micro in batch for row in micro.tokens_BT.tolist()):
            found.append(self.global_step)
            batch = [
                micro._replace(labels_BT=(micro.labels_BT * 7919 + 13).remainder(512))
                for micro in batch
            ]
        return plain(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "training_step", training_step)
        yield found


@contextmanager
def leaping(step: int) -> Iterator[list[int]]:
    """Multiply the rates of one step, which are small late in the run, by a hundred thousand."""
    plain, found = Stage.configure_gradient_clipping, []

    @functools.wraps(plain)
    def configure_gradient_clipping(self: Stage, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, optimizer, *args, **kwargs)
        if self.global_step == step:
            found.append(step)
            for group in optimizer.param_groups:
                group["lr"] *= 1e5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "configure_gradient_clipping", configure_gradient_clipping)
        yield found


@pytest.fixture(scope="module")
def clean(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    """A run without a spike, and the rows that its steps read; `without` leaves 28 to 32 out."""
    runs = tmp_path_factory.mktemp("clean")
    with read_rows() as rows:
        assert fit(dataset, runs, "clean", REWIND) == 0
    assert fit(dataset, runs, "without", "--skip_steps=28:33") == 0
    return runs, rows


def test_a_clean_run_has_no_spike(clean: tuple[Path, Any], dataset: Path, tmp_path: Path) -> None:
    """And the guard changes no bit of it."""
    assert not (clean[0] / "clean" / "rewinds.json").exists()
    assert fit(dataset, tmp_path, "off", "--guard.action=off") == 0
    assert losses(tmp_path / "off") == losses(clean[0] / "clean")
    assert weights(tmp_path / "off") == weights(clean[0] / "clean")


def test_a_poisoned_document_is_rewound_and_left_out(
    clean: tuple[Path, Any], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, rows = clean
    with poisoned([rows[30][0]]) as found:
        assert fit(dataset, tmp_path, "run", REWIND) == 0
    run = tmp_path / "run"
    said = capfd.readouterr().err
    assert "step 30: the loss is" in said
    assert "took over the lock" not in said  # the process is the same
    assert "goes back to step 24 and leaves out the rows of steps 28:33 (rewind 1 of at" in said
    assert found == [30]
    assert read_skips(run) == Skips(((28, 33),))
    [rewind] = read_rewinds(run)
    assert (rewind.to, rewind.spike, rewind.done) == (24, 30, True)
    assert losses(run) == losses(runs / "without")  # one history, without the spike
    assert weights(run) == weights(runs / "without")
    clean_loss = last_validation(runs / "clean")["val/loss"]
    assert last_validation(run)["val/loss"] == pytest.approx(clean_loss, abs=0.01)
    assert "went back to step 24: a spike at step 30" in (run / "summary.md").read_text()
    assert main(["inspect", "run", str(run), "--verify"]) == 0
    assert "went back to step 24" in capfd.readouterr().out


@pytest.mark.slow
def test_a_rewind_across_a_change_of_the_batch_keeps_the_sizes_of_the_order(
    dataset: Path, tmp_path: Path
) -> None:
    """Steps that are left out take their sizes with them, as of a run that never read them."""
    schedule = [
        "--data.global_batch_tokens=null",
        "--data.batch_schedule=[{from_tokens: 0, tokens: 256}, {from_tokens: 7680, tokens: 512}]",
    ]
    with read_rows() as rows:
        assert fit(dataset, tmp_path, "without", *schedule, "--skip_steps=28:33") == 0
    assert [len(rows[step]) for step in (27, 28)] == [8, 16]
    with read_rows() as rows:
        assert fit(dataset, tmp_path, "clean", *schedule) == 0
    assert [len(rows[step]) for step in (29, 30)] == [8, 16]
    with poisoned([rows[30][0]]) as found:
        assert fit(dataset, tmp_path, "run", REWIND, *schedule) == 0
    assert found == [30]
    run = tmp_path / "run"
    assert [(rewind.to, rewind.spike) for rewind in read_rewinds(run)] == [(24, 30)]
    assert read_skips(run) == Skips(((28, 33),))
    assert losses(run) == losses(tmp_path / "without")
    assert weights(run) == weights(tmp_path / "without")


def test_a_rate_that_leaps_is_gone_back_from(
    clean: tuple[Path, Any], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other rows do not help, so the second time the update before the spike is left out."""
    with leaping(43) as found:
        assert fit(dataset, tmp_path, "run", REWIND) == 0
    run = tmp_path / "run"
    assert "because other rows spiked there as well" in capfd.readouterr().err
    assert len(found) == 3
    assert [rewind.held for rewind in read_rewinds(run)] == ["", "43:44"]
    assert "updates left out: steps 43:44" in (run / "summary.md").read_text()
    clean_loss = last_validation(clean[0] / "clean")["val/loss"]
    assert last_validation(run)["val/loss"] == pytest.approx(clean_loss, abs=0.01)


def test_an_update_is_skipped_and_a_resume_skips_the_same(
    clean: tuple[Path, Any], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = clean[1]
    skip = "--guard.action=skip"
    with poisoned([rows[42][0], rows[45][0]]):
        assert fit(dataset, tmp_path, "whole", skip) == 0
        assert "step 42 spikes: the loss is" in capfd.readouterr().err
        with at_step(43, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            assert fit(dataset, tmp_path, "run", skip) == 75
        assert fit(dataset, tmp_path, "run", skip, "--resume=auto") == 0
    said = capfd.readouterr().err
    assert said.count("its update is left out") == 2
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    clean_loss = last_validation(clean[0] / "clean")["val/loss"]
    assert last_validation(tmp_path / "run")["val/loss"] == pytest.approx(clean_loss, abs=0.01)


def test_by_default_a_spike_is_warned_of(
    clean: tuple[Path, Any], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with poisoned([clean[1][20][0]]):
        assert fit(dataset, tmp_path, "run", "--max_steps=24") == 0
    assert "step 20 spikes: the loss is" in capfd.readouterr().err
    assert not (tmp_path / "run" / "rewinds.json").exists()


def test_a_run_goes_back_so_often_and_then_ends(
    clean: tuple[Path, Any], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with leaping(29):
        assert fit(dataset, tmp_path, "run", REWIND, "--guard.max_rewinds=1") == 3
    said = capfd.readouterr().err
    assert "the run has gone back 1 time already (spikes at step 30)" in said
    assert "--skip_steps" in said


@pytest.fixture(scope="module")
def rewound(
    clean: tuple[Path, Any], dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that goes back by two checkpoints, because the newest one lies within the margin."""
    runs = tmp_path_factory.mktemp("rewound")
    with poisoned([clean[1][33][0]]):
        assert fit(dataset, runs, "run", REWIND, "--checkpoint_every=4", "--max_steps=36") == 0
    [rewind] = read_rewinds(runs / "run")
    assert (rewind.to, rewind.spike) == (28, 33)
    return runs / "run"


class Killed(BaseException):
    """What nothing catches."""


def test_a_kill_at_any_moment_of_a_rewind_ends_in_the_same_bits(
    clean: tuple[Path, Any], rewound: Path, dataset: Path, tmp_path: Path
) -> None:
    """One run is killed at all of them, one after the other; the command that goes on is the same.

    Before the decision it sees the same spike again. Then it begins with the rewind, until the
    newer checkpoints are set aside.
    """
    arguments = (REWIND, "--checkpoint_every=4", "--max_steps=36", "--resume=auto")

    def die(*_: object, **__: object) -> None:
        raise Killed

    def rename_and_die(source: Path, target: Path) -> None:
        source.rename(target)
        raise Killed

    checkpoints = "lit_pretrain.callbacks.checkpoints"
    moments: list[tuple[str, Callable[..., None]]] = [
        ("lit_pretrain.cli.train.run.record_rewind", die),
        ("lit_pretrain.cli.train.run.hand_over_processes", die),
        ("lit_pretrain.cli.train.run.write_skips", die),
        (f"{checkpoints}.Checkpoints._abandon", die),
        (f"{checkpoints}.rename_durably", rename_and_die),
        (f"{checkpoints}.finish_rewind", die),
    ]
    with poisoned([clean[1][33][0]]) as found:
        for name, action in moments:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(name, action)
                with pytest.raises(Killed):
                    fit(dataset, tmp_path, "run", *arguments)
        assert fit(dataset, tmp_path, "run", *arguments) == 0
    run = tmp_path / "run"
    assert found == [33, 33]
    assert losses(run) == losses(rewound)
    assert weights(run, 36) == weights(rewound, 36)
    assert read_rewinds(run) == read_rewinds(rewound)


# ---------------------------------------------------------------------- by hand


def test_a_run_goes_back_by_hand_once(
    clean: tuple[Path, Any], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A scheduler gives the same command again; then it goes on from the newest checkpoint."""
    run = Path(shutil.copytree(clean[0] / "clean", tmp_path / "run"))
    kept = sorted(path.name for path in (run / "checkpoints").glob("*.ckpt"))
    assert kept[-2:] == ["step=00000040.ckpt", "step=00000048.ckpt"]
    again = ("--resume=auto", "--rewind_to=44")
    with read_rows() as rows:
        assert fit(dataset, tmp_path, "run", *again) == 0
    assert sorted(rows) == list(range(40, STEPS))
    assert "goes back to step=00000040.ckpt and keeps step=00000048.ckpt" in capfd.readouterr().err
    assert (run / "abandoned" / "step=00000048.ckpt").exists()
    assert losses(run) == losses(clean[0] / "clean")
    assert weights(run) == weights(clean[0] / "clean")
    assert fit(dataset, tmp_path, "run", *again) == 0
    assert "--rewind_to 44 has been done before" in capfd.readouterr().err
    assert fit(dataset, tmp_path, "run", "--resume=auto", "--rewind_to=3") == 2
    assert "no sound checkpoint of" in capfd.readouterr().err
    assert fit(dataset, tmp_path, "new", "--rewind_to=3") == 2
    assert "give --resume auto with it" in capfd.readouterr().err


# ---------------------------------------------------------------------- collapse


def test_a_collapse_ends_the_run_with_a_code_of_its_own(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = [f"--model.optimizer.{role}_lr=1e6" for role in ("matrix", "embedding", "head")]
    assert fit(dataset, tmp_path, "run", *rates, "--guard.collapse_steps=8") == 4
    said = capfd.readouterr().err
    assert "training has collapsed" in said
    assert "--rewind_to STEP" in said


def test_a_long_warm_up_is_no_collapse(dataset: Path, tmp_path: Path) -> None:
    """Its loss is that of guessing for long, but its output depends on the input."""
    slow = ["--model.schedule.warmup=100000 steps", "--max_steps=100000"]
    with at_step(30, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert fit(dataset, tmp_path, "run", *slow, "--guard.collapse_steps=8") == 75
    assert read_metrics(tmp_path / "run")[-1]["train/loss"] > 6.2


def test_a_gradient_of_zero_is_a_collapse_where_there_is_something_to_learn() -> None:
    watched = guard(collapse_steps=3)
    assert [watched.without_gradient(6.2, 0.0) for _ in range(4)] == [False, False, True, True]
    assert not watched.without_gradient(6.2, 0.1)
    assert not any(watched.without_gradient(0.0, 0.0) for _ in range(9))  # all is learned
    answers = Guard(GuardSettings(collapse_steps=3), guessing=None, needs_gradient=False)
    assert not any(answers.without_gradient(1.0, 0.0) for _ in range(9))


def test_settings_of_the_guard_are_refused_in_a_line(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(dataset, tmp_path, "run", "--guard.window=2") == 2
    said = capfd.readouterr().err
    assert "guard.window=2 must be at least 16" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_look_for_a_collapse_changes_nothing_of_sharded_weights(
    dataset: Path, run_cli: Any, tmp_path: Path
) -> None:
    """In the first steps the loss is that of guessing, so that the output is looked at."""
    lines = []
    for name, looks in (("off", "--guard.action=off"), ("on", "--guard.collapse_steps=2")):
        given = options(
            dataset, tmp_path, name, *SMALL, "--trainer.devices=2", "--trainer.strategy=fsdp",
            "--max_steps=4", "--log_every=1", looks, "--model.optimizer=lit_pretrain.optim.AdamW",
            "--model.optimizer.lr=1e-5",
        )  # fmt: skip
        done = run_cli(*given)
        assert done.returncode == 0, done.stderr
        lines.append(losses(tmp_path / name))
    assert lines[0] == lines[1]
