"""Errors and warnings: what a user can mend, in one message without a traceback."""

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a signal or the time limit stopped the run, which can be resumed."""
INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells count: somebody pressed Ctrl-C."""
HUNG_EXIT_CODE = 76
"""No rank made progress within `hang_timeout`; the run can be resumed from its last checkpoint."""

SAVING_THREAD = "lit_pretrain-save"
"""Name of the threads that write and upload checkpoints beside training."""


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


class CollapsedError(UserError):
    """Stop training that has collapsed: its numbers are finite, and nothing is learned any more."""

    exit_code = 4


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


_MORE_SPACE = "free some space there"
_OTHER_PLACE = "choose another place, or mend its permissions"
_SOUND_DISK = "the disk or its connection is at fault"
_MORE_FILES = "allow more open files, for instance with `ulimit -n 4096`"
_MORE_MEMORY = (
    "give the process more memory (`ulimit -v`, the job's limit), or make the work smaller"
)
_SYSTEM_CURES = {
    errno.ENOSPC: _MORE_SPACE,
    errno.EDQUOT: _MORE_SPACE,
    errno.EFBIG: "allow larger files (`ulimit -f`), or choose a file system that takes them",
    errno.EROFS: _OTHER_PLACE,
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.ENOTDIR: _OTHER_PLACE,
    errno.EISDIR: _OTHER_PLACE,
    errno.ELOOP: _OTHER_PLACE,
    errno.ENAMETOOLONG: "choose a shorter name: file systems allow 255 bytes",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.EIO: _SOUND_DISK,
    errno.ESTALE: _SOUND_DISK,
    errno.ENOMEM: _MORE_MEMORY,
    errno.EAGAIN: "allow more processes (`ulimit -u`)",
}
"""Error numbers with which the system refuses a call, whoever makes it -> what a user can do.

A missing file is not among them: that one is opened at all may be our mistake.
"""
_NUMBERED = re.compile(r"\(os error (\d+)\)|unable to \w+.*\((\d+)\)|Error code (\d+) \(")
"""The error number in messages of Rust libraries, of torch's shared memory and of its allocator."""
_ZIP_WRITER = "inline_container.cc"
"""What every RuntimeError of torch's zip writer names."""
_MORE_SHARED = "enlarge /dev/shm, or set data.num_workers to 0"
_SHARED = "</torch_"
"""How torch's messages name its files in /dev/shm."""
_LACKS = {
    "out of shared memory": _MORE_SHARED,
    "out of memory": "make data.micro_batch_size smaller",
    "ancdata": _MORE_FILES,
    "Too many open files": _MORE_FILES,
    "can't start new thread": "allow more processes (`ulimit -u`) or memory (`ulimit -v`)",
    "failed to map segment": _MORE_MEMORY,
}
"""What RuntimeErrors and ImportErrors say of a lack that they give no number of -> what to do."""


def refusal_of_system(error: BaseException) -> str | None:
    """Say in one line that the system refused what any process may ask: space, memory, files.

    Returns:
        What was refused, where, and what to do; None if the error is of another kind.
    """
    if isinstance(error, UserError):
        return None
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f' ({error})' if str(error) else ''}; {_MORE_MEMORY}"
    if (hidden := error_of_file(error)) is not None:
        error = hidden
    met = error.__context__
    if isinstance(error, RuntimeError) and isinstance(met, (OSError, MemoryError)):
        # A library meets the refusal, and fails again while it tidies up.
        return refusal_of_system(met)
    number = error.errno if isinstance(error, OSError) else None
    # A loader's worker passes its error on with a traceback as the message.
    text = str(error).strip().splitlines()[-1] if str(error).strip() else ""
    if number is None and (found := _NUMBERED.search(text)) is not None:
        number = int(next(filter(None, found.groups())))
    if number in _SYSTEM_CURES:
        place = getattr(error, "filename", None)
        where = f"{os.fsdecode(place)}: " if isinstance(place, (str, bytes)) else ""
        if number == errno.ENOSPC and not where and (_SHARED in text or _of_processes(error)):
            return f"/dev/shm: {os.strerror(number)}; {_MORE_SHARED}"
        return f"{where}{os.strerror(number)}; {_SYSTEM_CURES[number]}"
    if isinstance(error, (RuntimeError, ImportError, OSError)):
        for lack, cure in _LACKS.items():
            if lack in text:
                return f"{text}; {cure}"
    return None


def _of_processes(error: BaseException) -> bool:
    """Tell whether an error comes from what processes share, such as locks and queues."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "multiprocessing" in frames[-1].filename


def error_of_file(error: BaseException) -> OSError | None:
    """Return the error of the file that torch's zip writer has hidden behind ones of its own."""
    found: BaseException | None = error
    while isinstance(found, RuntimeError) and _ZIP_WRITER in str(found):
        found = found.__context__
    return found if found is not error and isinstance(found, OSError) else None


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
