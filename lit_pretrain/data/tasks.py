"""Tasks: problems that are made, not read, with answers that can be checked: arithmetic, and reasoning-gym where it is installed."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np

from lit_pretrain.data.permutation import splitmix64
from lit_pretrain.errors import UserError

_OPERATIONS = {"addition": ("+", operator.add), "subtraction": ("-", operator.sub), "multiplication": ("*", operator.mul)}


@dataclass(kw_only=True)
class Task:
    """A kind of problem."""

    name: str = "addition"
    """addition, subtraction or multiplication; or a dataset of reasoning-gym, such as reasoning_gym/chain_sum."""
    rows: int = 10_000
    """How many problems; those of arithmetic are all different."""
    digits: int = 2
    """Arithmetic: numbers from 0 to 10^digits - 1."""
    prompt: str = "What is {a} {op} {b}?"
    """Arithmetic: the text of a problem."""
    seed: int = 0
    """Seed of the problems."""
    options: Optional[dict[str, Any]] = None
    """reasoning-gym: settings of the dataset."""


def task_rows(task: Task, where: str) -> list[dict[str, Any]]:
    """The problems, as rows with prompt, completion and answer.

    Args:
        task: What to make.
        where: The setting, for messages.

    Raises:
        UserError: The task is unknown or cannot be, or reasoning-gym is not installed.
    """
    if task.rows < 1 or task.digits < 1:
        raise UserError(f"{where}: rows={task.rows} and digits={task.digits} must be at least 1")
    if task.name.startswith("reasoning_gym/"):
        return _reasoning_gym(task, where)
    if task.name not in _OPERATIONS:
        raise UserError(f"{where}.name={task.name!r} is unknown; there are {', '.join(_OPERATIONS)} and reasoning_gym/NAME")
    sign, apply = _OPERATIONS[task.name]
    below = 10**task.digits
    if task.rows > below**2:
        raise UserError(f"{where}: there are only {below**2:,} problems of {task.digits} digits, rows={task.rows:,}")
    rows: list[dict[str, Any]] = []
    seen: set[tuple[int, int]] = set()
    i = 0
    while len(rows) < task.rows:
        key = np.array([i], dtype=np.uint64) ^ np.uint64((task.seed * 0x9E3779B97F4A7C15) % 2**64)
        a, b = divmod(int(splitmix64(splitmix64(key))[0]) % below**2, below)
        i += 1
        if (a, b) not in seen:
            seen.add((a, b))
            answer = str(apply(a, b))
            rows.append({"prompt": task.prompt.format(a=a, b=b, op=sign), "completion": answer, "answer": answer, "task": task.name})
    return rows


def _reasoning_gym(task: Task, where: str) -> list[dict[str, Any]]:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(f"{where}.name={task.name!r} needs reasoning-gym: pip install 'lit_pretrain[reasoning]'") from None
    name = task.name.split("/", 1)[1]
    try:
        dataset = reasoning_gym.create_dataset(name, size=task.rows, seed=task.seed, **(task.options or {}))
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{where}: reasoning-gym does not make {name!r}: {error}") from None
    return [
        # The whole entry: the scorer of its dataset, reasoning_gym.get_score_answer_fn(name), looks at its metadata.
        {"prompt": entry["question"], "completion": str(entry["answer"]), "answer": str(entry["answer"]), "task": name, "entry": entry}
        for entry in dataset
    ]


def as_task(value: Any) -> Task | None:
    """A task from plain values."""
    return value if value is None or isinstance(value, Task) else Task(**value)


def task_identity(task: Task | None) -> dict[str, Any] | None:
    """What decides the problems."""
    return None if task is None else asdict(task)
