"""Rewinds: how often and where a run went back to an older checkpoint, decided before it does.

A rewind is a line of `rewinds.json`, on the disk before anything acts on it. Until it is done, that
is, until the newer checkpoints are set aside, every attempt of the run begins with it: a kill at
any moment ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from lit_pretrain.errors import UserError
from lit_pretrain.files import read_sealed_json, seal_json, write_file
from lit_pretrain.skips import Skips

REWINDS = "rewinds.json"


@dataclass(frozen=True)
class Rewind:
    """Describe one return to an older checkpoint."""

    to: int
    """Optimizer step of the checkpoint; 0 is the beginning of the run."""
    skips: str
    """All steps that the run leaves out of its order from then on, as `skip_steps` writes them."""
    held: str = ""
    """All steps of the run whose update is left out, in the same form."""
    spike: int | None = None
    """Step at which the guard saw a spike; None of a rewind by hand."""
    reason: str = ""
    """What the guard saw, or the options of the command."""
    done: bool = False
    """Whether the newer checkpoints have been set aside."""

    @property
    def kept(self) -> Skips:
        """Return the steps that the run leaves out from then on."""
        return Skips.parse(self.skips)

    @property
    def held_steps(self) -> Skips:
        """Return the steps whose update is left out."""
        return Skips.parse(self.held)

    @property
    def line(self) -> str:
        """Describe the rewind in a line."""
        where = f"to step {self.to}" if self.to else "to its beginning"
        why = self.reason if self.spike is None else f"a spike at step {self.spike}: {self.reason}"
        return f"went back {where}: {why}"


def read_rewinds(run: Path) -> tuple[Rewind, ...]:
    """Read the rewinds of a run, the oldest first; none if it has no rewinds.json.

    Raises:
        UserError: The file is damaged.
    """
    file = run / REWINDS
    if not file.is_file():
        return ()
    names = {field.name for field in fields(Rewind)}
    try:
        listed = read_sealed_json(file)["rewinds"]
        found = tuple(
            Rewind(**{name: value for name, value in entry.items() if name in names})
            for entry in listed
        )
        for rewind in found:
            rewind.kept, rewind.held_steps  # noqa: B018 - both raise where the text is damaged
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): it says from where the run went back, and which steps it"
            " leaves out. Remove it, and go on with the skip_steps of the newest config in"
            f" {run}: --skip_steps BEGIN:END"
        ) from None
    return found


def write_rewinds(run: Path, rewinds: Sequence[Rewind]) -> None:
    """Record the rewinds of a run durably."""
    if rewinds:
        write_file(run / REWINDS, seal_json({"rewinds": [asdict(rewind) for rewind in rewinds]}))
    else:
        (run / REWINDS).unlink(missing_ok=True)  # of a start that failed before its first step


def finish_rewind(run: Path) -> None:
    """Record that the newer checkpoints are set aside."""
    rewinds = read_rewinds(run)
    if rewinds and not rewinds[-1].done:
        write_rewinds(run, (*rewinds[:-1], replace(rewinds[-1], done=True)))
