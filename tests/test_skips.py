"""Skips: what is left of an order is arithmetic, equal to deleting the ranges from a list; and runs
that leave steps out, through the real command line.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.checkpoints import Checkpoints
from lit_pretrain.checkpoint.layout import best_record
from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.checkpoint.weights import read_record, weights_identity
from lit_pretrain.data import PromptData, RowSource, Task
from lit_pretrain.data.chat.samples import Epochs, SourceRows
from lit_pretrain.data.text.order import Order
from lit_pretrain.data.text.stretches import Change, SourceBlocks
from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import read_config
from lit_pretrain.report.run_folder import read_skips
from lit_pretrain.skips import Skips
from tests.test_resume import at_step, losses, options, read_rows

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda r: (r[0], r[0] + r[1])), max_size=5
)


@given(RANGES, st.integers(0, 80), st.integers(1, 4))
def test_it_is_the_order_without_the_ranges(
    ranges: list[tuple[int, int]], n: int, size: int
) -> None:
    skips = Skips.of(ranges)
    gone = {place for begin, end in ranges for place in range(begin, end)}
    kept = [place for place in range(400) if place not in gone]
    assert skips.place(n) == kept[n]
    assert skips.gone(n) == (kept[n - 1] + 1 if n else 0)
    assert skips.kept_until(n) == sum(place < n for place in kept)
    assert skips.count == len(gone)
    assert Skips.parse(str(skips)) == skips
    assert skips | Skips() == skips
    groups = {place // size for place in gone}
    assert skips.whole(size) == Skips.of((g * size, (g + 1) * size) for g in groups)
    assert skips.whole(size).over(size).times(size) == skips.whole(size)
    samples = {size * place + i for place in gone for i in range(size)}
    assert skips.times(size) == Skips.of((s, s + 1) for s in samples)


@given(RANGES, RANGES, st.integers(0, 60))
def test_whether_a_run_may_leave_out_more(
    ranges: list[tuple[int, int]], more: list[tuple[int, int]], n: int
) -> None:
    one, two = Skips.of(ranges), Skips.of(more)
    same = [one.place(i) for i in range(n)] == [two.place(i) for i in range(n)]
    assert one.begins_as(two, n) is same


@pytest.mark.parametrize("text", ["5", "5:", ":5", "7:5", "5:5", "-3:4", "1:2;3:4", "a:b", "1:2,"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="BEGIN:END"):
        Skips.parse(text)


@given(RANGES, st.integers(1, 70))
def test_the_order_of_text_leaves_them_out(ranges: list[tuple[int, int]], n: int) -> None:
    """Also where they lie across a change of the mixture, and counted by source."""
    sources = [SourceBlocks("a", (5, 4)), SourceBlocks("b", (7,))]
    changes = [Change(20, {"a": 1.0, "b": 3.0}, "later")]
    skips = Skips.of(ranges)
    whole = Order(sources, changes=changes, seed=3, cycle=8)
    order = Order(sources, changes=changes, seed=3, cycle=8, skips=skips)
    read = [order(i) for i in range(n)]
    assert read == [whole(skips.place(i)) for i in range(n)]
    assert order.counts(n) == tuple(sum(s.source == k for s in read) for k in range(2))


def test_the_order_ends_earlier() -> None:
    order = Order(
        [SourceBlocks("a", (10,))], max_epochs=2, cycle=4, skips=Skips(((3, 5), (18, 30)))
    )
    assert order.end == 16
    assert order.counts(16) == (16,)
    with pytest.raises(UserError, match="no sample 16"):
        order(16)


def test_the_order_of_rows_leaves_them_out() -> None:

    rows = [
        SourceRows("a", np.ones(7, dtype=np.int64)),
        SourceRows("b", np.ones(4, dtype=np.int64)),
    ]
    whole = Epochs(rows, capacity=None, seed=1)
    skips = Skips(((2, 5), (9, 14)))
    order = Epochs(rows, capacity=None, seed=1, skips=skips)
    assert [order(n) for n in range(20)] == [whole(skips.place(n)) for n in range(20)]


# ---------------------------------------------------------------------- runs


pytestmark = pytest.mark.usefixtures("one_thread")


def weights(run: Path) -> dict[str, str]:
    return {p.name: weights_identity(str(p)) for p in sorted((run / "checkpoints").glob("*.ckpt"))}


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` reads everything, `skipping` never reads the steps 9 and 10 of the order."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(options(dataset, runs, "plain")) == 0
    assert main(options(dataset, runs, "skipping", "--skip_steps=9:11")) == 0
    return runs


def test_a_run_says_what_it_leaves_out(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = runs / "skipping"
    assert losses(run)[:10] == losses(runs / "plain")[:10]  # steps 1 to 9, and a validation
    assert losses(run) != losses(runs / "plain")
    assert read_config(run / "config.yaml")["skip_steps"] == "9:11"
    assert (
        read_record(next((run / "checkpoints").glob("*14.ckpt"))).contract["skip_steps"] == "9:11"
    )
    assert json.loads((run / "provenance.json").read_text())["skipped"] == "9:11"
    lineage = Lineage.read(run)
    assert lineage is not None
    assert lineage.stages[0]["data"]["skipped"] == "9:11"
    capsys.readouterr()
    assert main(["inspect", "run", str(run)]) == 0
    assert "left out of the order: steps 9:11" in capsys.readouterr().out
    assert "left out of the order: steps 9:11 (2 steps)" in (run / "summary.md").read_text()

    def order(place: str, step: int, *more: str) -> list[str]:
        assert main(["inspect", "order", place, f"--step={step}", *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.split(maxsplit=2)[2] for line in lines if line.startswith("  sample")]

    assert order(str(run), 8) == order(str(runs / "plain"), 8)
    assert order(str(run), 9) == order(str(runs / "plain"), 11)
    shutil.copy(run / "config.yaml", tmp_path / "config.yaml")
    assert order(str(tmp_path / "config.yaml"), 10) == order(str(runs / "plain"), 12)
    assert main(["inspect", "order", str(run), "--step=9"]) == 0
    assert "step 9: samples 72 to 79, which is step 11 without skips" in capsys.readouterr().out


def test_a_resume_that_adds_skips_goes_back_and_ends_in_the_same_bits(
    runs: Path, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A finished run, whose newest checkpoints have read what is to be left out, is killed between
    the decision and the deed, and again between two checkpoints. The command that goes on knows of
    no skips.
    """
    run = Path(shutil.copytree(runs / "plain", tmp_path / "again"))
    again = options(dataset, tmp_path, "again", "--resume=auto")
    assert main([*again, "--skip_steps=2:3"]) == 2
    assert "is left from before the first step that is to be left out" in capfd.readouterr().err
    assert not (run / "skips.json").exists()
    newest = run / "checkpoints" / "step=00000014.ckpt"
    named = options(dataset, tmp_path, "again", f"--resume={newest}", "--skip_steps=9:11")
    assert main(named) == 2
    assert "stands at step 14 and has read steps that are to be left out" in capfd.readouterr().err

    def die(*_: object, **__: object) -> None:
        raise RuntimeError("cosmic ray")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "setup", die)
        with pytest.raises(RuntimeError, match="cosmic ray"):
            main([*again, "--skip_steps=9:11"])
    assert newest.exists()
    assert read_skips(run) == Skips(((9, 11),))
    capfd.readouterr()
    with at_step(10, die), pytest.raises(RuntimeError, match="cosmic ray"):
        main(again)
    said = capfd.readouterr().err
    assert "step=00000014.ckpt, step=00000012.ckpt" in said
    assert "the run goes back" in said
    assert sorted(p.name for p in (run / "abandoned").iterdir()) == [
        "step=00000012.ckpt",
        "step=00000014.ckpt",
    ]
    assert main(again) == 0
    assert losses(run) == losses(runs / "skipping")
    assert weights(run) == weights(runs / "skipping")
    assert best_record(run) == best_record(runs / "skipping")
    assert read_config(run / "config.yaml")["skip_steps"] == "9:11"
    assert main([*again, "--skip_steps=9:11"]) == 0
    assert "nothing is left to do" in capfd.readouterr().out
    assert main(["inspect", "run", str(run), "--verify"]) == 0
    file = run / "skips.json"
    file.write_text(file.read_text().replace("9:11", "9:12"))
    capfd.readouterr()
    assert main(["inspect", "run", str(run), "--verify"]) == 2
    assert main(again) == 2
    assert "skips.json is damaged" in capfd.readouterr().err


def test_a_fork_keeps_what_its_run_left_out(runs: Path, dataset: Path) -> None:
    """And reads on from there, whether it changes the mixture or leaves out more."""
    checkpoint = runs / "skipping" / "checkpoints" / "step=00000012.ckpt"
    fork = (f"--fork={checkpoint}", "--skip_steps=15:16")
    with read_rows() as rows:
        assert main(options(dataset, runs, "fork", *fork)) == 0
    assert read_skips(runs / "fork") == Skips(((9, 11), (15, 16)))
    with read_rows() as plain:
        longer = options(
            dataset, runs, "longer", "--max_steps=17", "--model.schedule.kind=constant"
        )
        assert main(longer) == 0
    assert {step: tokens(read) for step, read in rows.items()} == {
        12: tokens(plain[14]),
        13: tokens(plain[16]),
    }
    assert main(options(dataset, runs, "no", f"--fork={checkpoint}", "--skip_steps=12:13")) == 2


def tokens(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the rows of a step without their numbers."""
    return [row[1:] for row in rows]


def test_steps_that_learn_from_the_same_answers_are_left_out_together() -> None:
    data = PromptData(sources={"sums": RowSource(task=Task(rows=40))}, updates=2)
    data.leave_out(Skips.parse("3:4"))
    assert data.skips == Skips(((2, 4),))
