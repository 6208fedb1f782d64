"""Errors and warnings: what a user can mend, in one message without a traceback."""

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a signal or the time limit stopped the run, which can be resumed."""
INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells count: somebody pressed Ctrl-C."""
HUNG_EXIT_CODE = 76
"""No rank made progress within `hang_timeout`; the run can be resumed from its last checkpoint."""


class UserError(ValueError):
    """Say what was wrong, where, what was found, and what to do about it.

    The command line prints the message and exits with `exit_code`; every other exception keeps its
    traceback, because it is our mistake.
    """

    exit_code: int = 2


class DivergedError(UserError):
    """Stop training before an update whose loss or gradient is not finite.

    The last good checkpoint is kept.

    Args:
        message: Names the step and the values.
        samples: Global sample numbers of the step, from which the documents can be looked up.
    """

    exit_code = 3

    def __init__(self, message: str, samples: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.samples = tuple(samples)


def warn(message: str) -> None:
    """Print one line to the user that stops nothing."""
    print(f"warning: {message}", file=sys.stderr)


def message_of(error: UserError) -> str:
    """Return the message for the user, without the traceback of a loader's worker.

    torch passes the exception of a worker on with the worker's traceback as its message.
    """
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
    return text


def cause_of(error: BaseException) -> str:
    """Describe an exception of the user's code in one line: its type, message and place.

    The place is left out where it is ours or Python's own.
    """
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", os.path.dirname(__file__)))
    ]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 1, cutoff: float = 0.6) -> str:
    """Return " Did you mean 'x'?" for a misspelt name, or "" if no known name is near it.

    Takes the arguments of `nearest`; the space in front lets it follow a sentence.
    """
    near = nearest(name, known, limit=limit, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def nearest(name: str, known: Iterable[str], *, limit: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that a misspelt name most likely meant, the best first.

    Case does not count. If no whole name is near, the last part of dotted names decides, so that
    `learning_rat` finds `model.optimizer.learning_rate`.

    Args:
        name: What was given.
        known: The valid names; of those that differ in case alone, the first counts.
        limit: Return at most this many.
        cutoff: Similarity from 0 to 1 that a known name must reach (`difflib.get_close_matches`).
    """
    whole: dict[str, str] = {}
    last_part: dict[str, str] = {}
    for candidate in known:
        whole.setdefault(candidate.lower(), candidate)
        last_part.setdefault(candidate.lower().rsplit(".", 1)[-1], candidate)
    for query, names in (
        (name.lower(), whole),
        (name.lower().rsplit(".", 1)[-1], last_part),
    ):
        if near := difflib.get_close_matches(query, names, n=limit, cutoff=cutoff):
            return [names[match] for match in near]
    return []
