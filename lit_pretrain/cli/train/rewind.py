"""Rewind: what a run does about a spike from which its guard goes back."""

from dataclasses import replace

from lit_pretrain.checkpoint.digests import damage
from lit_pretrain.checkpoint.layout import checkpoints, newest_complete, resolve, step_of
from lit_pretrain.checkpoint.weights import read_record
from lit_pretrain.cli.train.train_cli import TrainCLI
from lit_pretrain.errors import DivergedError, UserError, warn
from lit_pretrain.report.rewinds import Rewind, write_rewinds
from lit_pretrain.skips import Skips
from lit_pretrain.stage.guard import Spike
from lit_pretrain.step_size import counted


def record_rewind(cli: TrainCLI, spike: Spike) -> None:
    """Decide where a run goes back to and what it leaves out, and record that durably.

    The steps around a spike are left out of the order. If the run has gone back from there before,
    with other rows, then the rows are not at fault: the update before the spike is left out, and if
    that does not help, `guard.margin` updates more each time.

    Raises:
        DivergedError: The run has gone back often enough, or has no data left.
    """
    place, data, guard = cli.place, cli.datamodule, cli.settings.guard
    earlier = [rewind.spike for rewind in place.rewinds if rewind.spike is not None]
    if len(earlier) >= guard.max_rewinds:
        raise DivergedError(
            f"{spike}; the run has gone back {counted(len(earlier), 'times')} already (spikes at"
            f" {', '.join(f'step {step}' for step in earlier) or 'no step'}): a lower rate may"
            " help, by --fork, or a higher guard.max_rewinds",
            spike.samples,
        )
    skips, held = data.skips, place.held
    before = sum(abs(step - spike.step) <= guard.margin for step in earlier)
    width = guard.margin if before == 0 else 1 + guard.margin * (before - 1)
    to, begin = _checkpoint_before(cli, max(0, spike.step - width), spike.step)
    if before and begin < spike.step:
        updates = Skips(((begin, spike.step),))
        held |= updates
        what = f"the updates of steps {updates}, because other rows spiked there as well"
    else:
        end = skips.place(spike.step) + guard.margin + 1
        left_out = Skips(((skips.place(begin), end),)).whole(data.updates)
        skips |= left_out
        what = f"the rows of steps {left_out}"
    data.leave_out(skips)
    try:
        data.check_length(cli.config.max_steps)
    except UserError as error:
        raise DivergedError(
            f"{spike}; its rows cannot be left out: {error}", spike.samples
        ) from error
    rewind = Rewind(to, str(skips), str(held), spike.step, spike.reason)
    # An earlier one was done when this attempt began, after it had been read.
    done = (replace(each, done=True) for each in place.rewinds)
    write_rewinds(place.folder, (*done, rewind))
    warn(
        f"{spike}; the run goes back to step {to} and leaves out {what} (rewind"
        f" {len(earlier) + 1} of at most {guard.max_rewinds})"
    )


def _checkpoint_before(cli: TrainCLI, begin: int, step: int) -> tuple[int, int]:
    """Choose the checkpoint from which a run goes on after a spike.

    Args:
        cli: The run.
        begin: First step that is to be left out.
        step: Step of the spike.

    Returns:
        The step of the newest sound checkpoint from before `begin`, and `begin`. If there is none,
        the oldest from before the spike, and its step as the first that is left out. If there is
        none either, 0 for the beginning of the run.
    """
    folder = cli.place.folder
    found = newest_complete(folder, fits=lambda path: (step_of(path) or 0) <= begin)
    if found is not None:
        return step_of(found) or 0, begin
    for path in checkpoints(folder):
        own = step_of(path) or 0
        if own <= step and damage(path) is None:
            return own, own
    first = 0
    if cli.settings.fork is not None:
        first = read_record(resolve(cli.settings.fork)).step
    return 0, max(begin, first)
