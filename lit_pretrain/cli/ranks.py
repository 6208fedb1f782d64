"""Ranks: the processes of one run, as one process to the person who started it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lit_pretrain.errors import UserError

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables in which torchrun, Lightning and Slurm number their processes."""
PATIENCE_SECONDS = 10.0


def is_first_process() -> bool:
    """Whether this process is the one that makes the run folder, known before there is a Trainer."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


@contextmanager
def one_voice(*, launched: bool) -> Iterator[None]:
    """Let the first process report what all of them know.

    When all ranks stop for the same reason, Lightning's launcher kills the first one if it sees another end before it: the report and the
    exit code would be lost. So a launched process waits for the first to end and then ends silently. If the first one does not end, it does
    not know of the mistake and waits in a collective: then this process reports, and its end lets the launcher stop the others.

    Args:
        launched: Whether this process was started by another one of the run.
    """
    parent = os.getppid()
    try:
        yield
    except UserError as error:
        if launched:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                if os.getppid() != parent:
                    raise SystemExit(error.exit_code) from error
                time.sleep(0.05)
        raise
