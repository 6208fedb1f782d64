"""A rewind that is killed: real processes that are gone within a moment of it end in the same bits,
on as many ranks as before and on others. The moments between them: tests/test_guard.py.
"""

import itertools
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import checkpoints
from lit_pretrain.checkpoint.remote_run import COMPLETE
from lit_pretrain.checkpoint.weights import weights_identity
from lit_pretrain.report.rewinds import read_rewinds
from tests.test_distributed import BASE, ONE, TWO, figures, finish, start

pytestmark = pytest.mark.usefixtures("one_thread")

DYING = """
import os
import signal
from pathlib import Path

import lightning as L

from lit_pretrain.callbacks import checkpoints, uploads
from lit_pretrain.cli.train import rewind, run

seen = {"patched": False, "decided": False}


def die(*_, **__):
    os.killpg(0, signal.SIGKILL)  # all ranks, as when a machine is lost
    signal.pause()


class Dying(L.Callback):
    '''Multiplies the rates of a step, and kills the run at a moment of the rewind that follows.'''

    def __init__(self, moment: str = "never", step: int = 20) -> None:
        self.moment, self.step = moment, step
        if not seen["patched"]:
            seen["patched"] = True
            self.patch()

    def patch(self) -> None:
        moment = self.moment
        write, done = rewind.write_rewinds, checkpoints.finish_rewind
        rename = checkpoints.rename_durably

        def write_rewinds(*arguments):
            if moment == "before the decision":
                die()
            write(*arguments)
            seen["decided"] = True
            if moment == "after the decision":
                die()

        def rename_durably(source, target):
            rename(source, target)
            if moment == "one is set aside" and target.parent.name == "abandoned":
                die()

        def finish_rewind(*arguments):
            if moment == "all are set aside":
                die()
            done(*arguments)
            if moment == "the rewind is done":
                die()

        rewind.write_rewinds, checkpoints.finish_rewind = write_rewinds, finish_rewind
        checkpoints.rename_durably = rename_durably
        if moment == "the next attempt begins":
            run.hand_over_processes = die
        if moment == "its home is cleaned":
            uploads.Uploads.go_back = die

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            for group in optimizer.param_groups:
                group["lr"] *= 1e5

    def on_load_checkpoint(self, *arguments) -> None:
        if self.moment == "while restoring" and seen["decided"]:
            die()

    def on_train_batch_start(self, trainer, *arguments) -> None:
        if self.moment == "in the first step after it" and seen["decided"]:
            die()

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if self.moment == "after the first step after it" and seen["decided"]:
            die()
"""
SETTINGS = [
    "--max_steps=26", "--validate_every=0", "--checkpoint_every=4", "--guard.action=rewind",
    "--guard.window=16", "--guard.threshold=6", "--guard.margin=2",
]  # fmt: skip
LAST = "step=00000026.ckpt"
QUICK = "after the decision"
MOMENTS = [
    "before the decision", QUICK, "the next attempt begins", "one is set aside",
    "its home is cleaned", "all are set aside", "the rewind is done", "while restoring",
    "in the first step after it", "after the first step after it",
]  # fmt: skip


def dying(moment: str) -> str:
    return f"--trainer.callbacks+={{class_path: dying.Dying, init_args: {{moment: {moment}}}}}"


@contextmanager
def found_by_python(folder: Path) -> Iterator[None]:
    """Let this process find the callback; it is patched anew in each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("dying", None)


def here(dataset: Path, folder: Path, name: str, *extra: str) -> None:
    """Run to the end in this process."""
    arguments = [*BASE, *SETTINGS, dying("never"), *ONE]
    places = [f"--data.path={dataset}", f"--runs={folder}", f"--name={name}"]
    with found_by_python(folder):
        assert main(["fit", *arguments, *places, *extra]) == 0


def killed(dataset: Path, folder: Path, name: str, moment: str, *extra: str) -> None:
    code, said = finish(start(dataset, folder, name, *SETTINGS, dying(moment), *extra))
    assert code == -signal.SIGKILL, said


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the callback and `whole`, which goes back twice: the rows are not at fault."""
    folder = tmp_path_factory.mktemp("rewinds")
    (folder / "dying.py").write_text(DYING)
    here(dataset, folder, "whole")
    assert [rewind.to for rewind in read_rewinds(folder / "whole")] == [16, 20]
    return folder


@pytest.mark.parametrize(
    "moment",
    [m if m == QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS],
)
def test_a_kill_within_a_rewind_ends_in_the_same_bits(
    dataset: Path, folder: Path, moment: str
) -> None:
    """Also where the machine is lost with its disk, and what had been uploaded is all there is."""
    name = moment.replace(" ", "-")
    lost = f"{name}-lost"
    home = (f"--runs=file://{folder}/store", f"--local_runs={folder}")
    killed(dataset, folder, name, moment, *ONE, *home)
    store = folder / "store"
    shutil.copytree(store / name, store / lost)
    for run in (name, lost):
        here(dataset, folder, run, *home, "--resume=auto")
        assert figures(folder / run) == figures(folder / "whole")
        last = [str(folder / each / "checkpoints" / LAST) for each in (run, "whole")]
        assert weights_identity(last[0]) == weights_identity(last[1])
        assert read_rewinds(folder / run) == read_rewinds(folder / "whole")
        kept = {path.name for path in checkpoints(folder / run)}
        marks = {path.stem for path in (store / run / "checkpoints").glob(f"*{COMPLETE}")}
        assert marks == kept


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(ONE, TWO), (TWO, ONE)], ids=["1-2", "2-1"])
def test_on_other_ranks_as_well(
    dataset: Path, folder: Path, before: list[str], after: list[str]
) -> None:
    """Wherever it is killed, the other ranks go on from the same checkpoint."""
    ends = []
    for moment in ("before the decision", "one is set aside", "after the first step after it"):
        name = f"{len(before + after)}-{before == ONE}-{moment.replace(' ', '-')}"
        killed(dataset, folder, name, moment, *before)
        again = start(dataset, folder, name, *SETTINGS, dying("never"), *after, "--resume=auto")
        code, said = finish(again)
        assert code == 0, said
        ends.append(weights_identity(str(folder / name / "checkpoints" / LAST)))
        assert figures(folder / name) == pytest.approx(figures(folder / "whole"), abs=1e-3)
        assert read_rewinds(folder / name) == read_rewinds(folder / "whole")
    assert all(a == b for a, b in itertools.pairwise(ends))


@pytest.mark.slow
def test_two_ranks_end_together_when_there_is_no_way_back(dataset: Path, folder: Path) -> None:
    extra = ("--guard.max_rewinds=0", "--hang_timeout=60")
    code, said = finish(start(dataset, folder, "no-way", *SETTINGS, dying("never"), *TWO, *extra))
    assert code == 3, said
    assert said.count("the run has gone back 0 times already") == 1
    assert "Traceback" not in said
