"""Stage: independent tasks that share a name, and what is left of each that has ended.

A task is a pure function of the config and of files that earlier stages finished, so any engine may run it, at any time, again. It
writes its files under temporary names and renames them; when it has returned, its result is written, likewise, and *that file is the
mark that it is done*. A run that goes on after a fault does the tasks without one. An engine's exit code is never believed: Ray's was
seen to be 0 with a task missing.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError

Advance = Callable[[int], None]
"""Told how many bytes were done since the last call."""
Task = Callable[[int, Advance], dict[str, Any]]
"""(number of the task, advance) -> its result, as JSON can hold it. Picklable: it may run in another process or on another machine."""


@dataclass(frozen=True)
class Stage:
    """Tasks 0 to len(sizes) - 1 of one kind."""

    name: str
    """Names the directory of the results, in the order of the work: 01-clean."""
    title: str
    """For the user, while it runs: what is being done."""
    task: Task
    sizes: Sequence[int]
    """Bytes of work per task: what the progress bar counts."""
    work: Path
    """The directory of the preparation, seen by every machine that runs tasks."""

    @property
    def directory(self) -> Path:
        """Where the results go."""
        return self.work / self.name

    def open_tasks(self) -> list[int]:
        """Tasks that are not done."""
        return [number for number in range(len(self.sizes)) if not self._result(number).is_file()]

    def run(self, number: int, advance: Advance) -> None:
        """Does one task and writes its result; a failure is written down for whoever waits, and raised."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._failure(number).unlink(missing_ok=True)
        try:
            result = self.task(number, advance)
        except Exception as error:
            user = isinstance(error, UserError)
            facts = {"user": user, "disk": isinstance(error, OSError), "message": str(error) if user else traceback.format_exc()}
            _write(self._failure(number), json.dumps(facts))
            raise
        _write(self._result(number), json.dumps(result, ensure_ascii=False))

    def results(self) -> list[dict[str, Any]]:
        """Of all tasks, by number.

        Raises:
            UserError: A task failed for a reason that the user can mend, or did not come to its end.
            RuntimeError: A task failed for another reason: our mistake.
        """
        missing = self.open_tasks()
        for number in missing:
            if self._failure(number).is_file():
                facts = json.loads(self._failure(number).read_text(encoding="utf-8"))
                if facts["user"]:
                    raise UserError(facts["message"])
                if facts["disk"]:
                    last = facts["message"].strip().splitlines()[-1]
                    raise UserError(f"task {number} of {self.name} could not write or read: {last}. Free some space, then run again.")
                raise RuntimeError(f"task {number} of {self.name} failed:\n{facts['message']}")
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.sizes)} tasks of {self.name} did not end (the first: {missing[0]}): they were killed, most "
                f"often for lack of memory or time, or never started (logs: {self.directory / 'logs'}). Run again: finished tasks are kept."
            )
        return [json.loads(self._result(number).read_text(encoding="utf-8")) for number in range(len(self.sizes))]

    def _result(self, number: int) -> Path:
        return self.directory / f"{number:05d}.json"

    def _failure(self, number: int) -> Path:
        return self.directory / f"{number:05d}.failed"


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all, also where two machines write it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
