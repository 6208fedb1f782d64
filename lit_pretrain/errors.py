"""UserError: a mistake the user can mend, reported in one message and without a traceback."""

from collections.abc import Sequence


class UserError(ValueError):
    """What was wrong, where, what was found, and what to do about it.

    The command line prints the message and exits with `exit_code`; every other exception keeps its
    traceback, because it is our mistake.
    """

    exit_code: int = 2


class DivergedError(UserError):
    """A loss or gradient that is not finite: training stopped before the update, the last good
    checkpoint is kept.

    Args:
        message: Names the step and the values.
        samples: Global sample numbers of the step, from which the documents can be looked up.
    """

    exit_code = 3

    def __init__(self, message: str, samples: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.samples = tuple(samples)


def message_of(error: UserError) -> str:
    """What to tell the user: torch passes an exception of a loader's worker on with the
    worker's traceback as its message.
    """
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
    return text


PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a signal or the time limit stopped the run, which can be resumed."""
INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells count: somebody pressed Ctrl-C."""
