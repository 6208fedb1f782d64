"""Local engine: run tasks in this process, or each in a process of its own on this machine.

Not datatrove's LocalPipelineExecutor: its pool waits for ever for a worker that the kernel killed
(seen: `kill -9` of a worker, no end after minutes), and its tasks outlive a parent that was killed.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import parent_process
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.engine.task_stage import Advance, TaskStage

_PRELOAD = [
    "lit_pretrain.prepare.pipeline",
    "numpy",
    "pyarrow.parquet",
    "tiktoken",
    "tokenizers",
    "xxhash",
]
"""Imported once by the server that tasks are forked from."""
_POLL_SECONDS = 0.2
_DISK_CODE = 74
"""Exit code of a task that met a full or broken disk (EX_IOERR of sysexits.h): it may not have
been able to write its failure.
"""


def run_locally(stage: TaskStage[Any], workers: int, advance: Advance) -> None:
    """Do the open tasks of a stage.

    Args:
        stage: What to do; its files say how each task ended.
        workers: Tasks at a time; with one, they run in this process.
        advance: Takes the work that was done since its last call.
    """
    tasks = stage.open_tasks()
    # The largest first: with few tasks the last one decides how long all of it takes.
    tasks.sort(key=lambda number: (-stage.sizes[number], number))
    if workers == 1 or len(tasks) == 1:
        for number in tasks:
            try:
                stage.run(number, advance)
            except OSError as error:
                raise stage.disk_trouble(number, f"{type(error).__name__}: {error}") from error
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    done: Synchronized[int] = context.Value("q", 0)
    reported = 0
    running: dict[int, ForkServerProcess] = {}
    try:
        while tasks or running:
            while tasks and len(running) < workers:
                number = tasks.pop(0)
                process = context.Process(
                    target=_child, args=(stage, number, done), name=f"{stage.name}-{number}"
                )
                process.start()
                running[number] = process
            multiprocessing.connection.wait(
                [process.sentinel for process in running.values()], timeout=_POLL_SECONDS
            )
            advance(done.value - reported)
            reported = done.value
            for number, process in list(running.items()):
                if process.exitcode is not None:
                    process.join()
                    del running[number]
                    if process.exitcode:
                        _explain(stage, number, process.exitcode)
        advance(done.value - reported)  # what the last tasks did after the last look
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _explain(stage: TaskStage[Any], number: int, code: int) -> None:
    """Raise the failure that a task has written, or say which signal killed it."""
    failure = stage.failure(number)
    if failure is not None:
        raise failure
    if code == _DISK_CODE:
        raise stage.disk_trouble(number, "OSError, and there was no room to write down which")
    if code > 0:
        stage.results()
    raise UserError(
        f"task {number} of {stage.name} was killed by signal {-code}"
        + (" (most often for lack of memory; fewer workers need less)" if code == -9 else "")
        + ". Run again: finished tasks are kept."
    )


def _child(stage: TaskStage[Any], number: int, done: Synchronized[int]) -> None:
    """Run a task in a process of its own."""
    # A terminal sends Ctrl-C to all processes; the one that started this task ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def advance(size: int) -> None:
        with done.get_lock():
            done.value += size

    try:
        stage.run(number, advance)
    except OSError:
        os._exit(_DISK_CODE)
    except Exception:
        os._exit(1)  # `run` has written the failure; a traceback on the terminal helps nobody


def _end_with_parent() -> None:
    """End the task when the process that started it has gone, however it ended."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
