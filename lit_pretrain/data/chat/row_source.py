"""Row source: a file of post-training rows, read, checked and split the same way every time."""

from __future__ import annotations

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

import numpy as np

from lit_pretrain.chat.messages import BadRow, TrainingRow
from lit_pretrain.data.chat.formats import find_format, read_row
from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256
from lit_pretrain.hashing import splitmix64
from lit_pretrain.record_files import RECORD_SUFFIXES, read_records

# Tasks: problems that are made, not read, with answers that can be checked: arithmetic, and
# reasoning-gym where it is installed.


_OPERATIONS = {
    "addition": ("+", operator.add),
    "subtraction": ("-", operator.sub),
    "multiplication": ("*", operator.mul),
}


@dataclass(kw_only=True)
class Task:
    """A kind of problem."""

    name: str = "addition"
    """addition, subtraction or multiplication; or a dataset of reasoning-gym, such as
    reasoning_gym/chain_sum.
    """
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
        raise UserError(
            f"{where}.name={task.name!r} is unknown; there are {', '.join(_OPERATIONS)} and"
            " reasoning_gym/NAME"
        )
    sign, apply = _OPERATIONS[task.name]
    below = 10**task.digits
    if task.rows > below**2:
        raise UserError(
            f"{where}: there are only {below**2:,} problems of {task.digits} digits,"
            f" rows={task.rows:,}"
        )
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
            rows.append(
                {
                    "prompt": task.prompt.format(a=a, b=b, op=sign),
                    "completion": answer,
                    "answer": answer,
                    "task": task.name,
                }
            )
    return rows


def _reasoning_gym(task: Task, where: str) -> list[dict[str, Any]]:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(
            f"{where}.name={task.name!r} needs reasoning-gym: pip install 'lit_pretrain[reasoning]'"
        ) from None
    name = task.name.split("/", 1)[1]
    try:
        dataset = reasoning_gym.create_dataset(
            name, size=task.rows, seed=task.seed, **(task.options or {})
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{where}: reasoning-gym does not make {name!r}: {error}") from None
    return [
        # The whole entry: the scorer of its dataset, reasoning_gym.get_score_answer_fn(name), looks
        # at its metadata.
        {
            "prompt": entry["question"],
            "completion": str(entry["answer"]),
            "answer": str(entry["answer"]),
            "task": name,
            "entry": entry,
        }
        for entry in dataset
    ]


def as_task(value: Any) -> Task | None:
    """A task from plain values."""
    return value if value is None or isinstance(value, Task) else Task(**value)


def task_identity(task: Task | None) -> dict[str, Any] | None:
    """What decides the problems."""
    return None if task is None else asdict(task)


ROW_SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True)
class RowSource:
    """One named file of rows, or a task that makes them."""

    path: Optional[str] = None
    """A json (a list of objects), jsonl or parquet file; json and jsonl may be packed (.gz,
    .zst, .bz2).
    """
    task: Optional[Task] = None
    """Made rows in place of a file; they have the fields prompt, completion and answer."""
    format: Optional[str] = None
    """How its rows are laid out: sharegpt, alpaca, prompt_completion, preference, kto, ... Null:
    messages; prompt_completion for a task.
    """
    fields: Optional[dict[str, str]] = None
    """Part of a row -> field that holds it, where it differs from the format's, such as
    {messages: dialogue}.
    """
    roles: Optional[dict[str, str]] = None
    """Role in the file -> system, user, assistant or tool, such as {bot: assistant}."""
    system: Optional[str] = None
    """System message of the rows that have none."""
    weight: float = 1.0
    """How often an epoch takes each row of it."""
    validation_path: Optional[str] = None
    """A file of held-out rows; without it a share of `path` is held out by hash."""


class RowSplit(NamedTuple):
    """A row with the part of the data it belongs to."""

    name: str
    """train, validation or test."""
    where: str
    """File and number of the row, for messages."""
    row: TrainingRow


@dataclass
class RowTally:
    """What became of the rows of one source."""

    read: int = 0
    """Rows in its files."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    noted: Counter[str] = field(default_factory=Counter)
    """Rows kept but changed or not wholly shown, by what happened."""

    def line(self, name: str, kept: int) -> str:
        """One line for people."""
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.dropped.items()))
        noted = ", ".join(f"{what} {count:,}" for what, count in sorted(self.noted.items()))
        text = f"{name}: {self.read:,} rows, {kept:,} used, dropped {sum(self.dropped.values()):,}"
        return text + (f" ({dropped})" if dropped else "") + (f"; {noted}" if noted else "")


def settle_row_source(
    bad: BadRow, where: str, tally: RowTally, on_bad_row: Literal["refuse", "drop"]
) -> None:
    """Count a row that cannot be used, or refuse the file.

    Raises:
        UserError: It is a mistake, and mistakes are refused.
    """
    if bad.mistake and on_bad_row == "refuse":
        raise UserError(
            f"{where}: {bad} (to leave such rows out and count them: data.on_bad_row=drop)"
        ) from None
    tally.dropped[bad.reason] += 1


def row_hash(row: Mapping[str, Any]) -> str:
    """sha256 of what a row says, whatever the order of its fields."""
    return hashlib.sha256(
        json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode(
            "utf-8", "surrogatepass"
        )
    ).hexdigest()


def row_split_of(row: Mapping[str, Any], *, validation: float, test: float) -> str:
    """Where a row belongs: a function of what it says alone, so that no other row, order or
    seed moves it, and equal rows stay together.
    """
    place = int(row_hash(row)[:16], 16) / 2**64
    return "validation" if place < validation else "test" if place < validation + test else "train"


def read_source(
    name: str,
    source: RowSource,
    *,
    kind: str,
    validation: float,
    test: float,
    on_bad_row: Literal["refuse", "drop"],
    tally: RowTally,
) -> Iterator[RowSplit]:
    """The usable rows of a source, in the order of its files.

    Args:
        name: Of the source.
        source: The source.
        kind: conversation, preference, verdict or problem.
        validation: Share held out for validation, unless the source has a file for it.
        test: Share held out for the test.
        on_bad_row: Whether a mistake stops everything or is counted.
        tally: What is counted goes here.

    Raises:
        UserError: A file cannot be read, its format is unknown, or a row is a mistake.
    """
    format = find_format(
        _format(source),
        kind=kind,
        fields=source.fields,
        roles=source.roles,
        where=f"data.sources.{name}",
    )
    share = 0.0 if source.validation_path is not None else validation
    for path, split in ((source.path, None), (source.validation_path, "validation")):
        if path is not None:
            records = read_records(path, what="the file of rows")
        elif split is None and source.task is not None:
            records = task_rows(source.task, f"data.sources.{name}.task")
        else:
            continue
        for number, record in enumerate(records, start=1):
            tally.read += 1
            where = f"{path or name}, row {number}"
            try:
                row = read_row(record, format, kind=kind, system=source.system)
            except BadRow as bad:
                settle_row_source(bad, where, tally, on_bad_row)
                continue
            yield RowSplit(split or row_split_of(record, validation=share, test=test), where, row)


def check_sources(sources: Mapping[str, RowSource]) -> None:
    """Refuse what cannot be read before anything is.

    Raises:
        UserError: There is no source, a file is missing or of another kind, or a weight is not
            positive.
    """
    if not sources:
        raise UserError(
            "data.sources names no file; give at least one, such as sources: {mine: {path:"
            " rows.jsonl, format: messages}}"
        )
    for name, source in sources.items():
        if not 0 < source.weight < float("inf"):
            raise UserError(
                f"data.sources.{name}.weight={source.weight} must be positive; leave the source out"
                " instead of giving it none"
            )
        if (source.path is None) == (source.task is None):
            raise UserError(f"data.sources.{name} needs either a path or a task")
        for path in filter(None, (source.path, source.validation_path)):
            if not Path(path).expanduser().is_file():
                raise UserError(
                    f"data.sources.{name}: {path} does not exist (relative paths start at"
                    f" {Path.cwd()})"
                )
            if not any(
                suffix in (".json", ".jsonl", ".parquet") for suffix in Path(path).suffixes[-2:]
            ):
                raise UserError(
                    f"data.sources.{name}: {path} is not"
                    f" {', '.join(f for f in RECORD_SUFFIXES if f != '.txt')} (packed or not)"
                )


def rows_identity(sources: Mapping[str, RowSource]) -> dict[str, Any]:
    """What decides the rows: the content of the files and how they are read, not where they lie."""

    def digest(path: Optional[str]) -> Optional[str]:
        return None if path is None else file_sha256(Path(path).expanduser())

    return {
        name: {
            "sha256": digest(source.path), "validation_sha256": digest(source.validation_path),
            "format": _format(source),
            "fields": source.fields, "roles": source.roles, "system": source.system,
            "weight": source.weight,
            "task": task_identity(source.task),
        }
        for name, source in sources.items()
    }  # fmt: skip


def as_sources(
    values: Optional[Mapping[str, Any]],
    *,
    path: Optional[str],
    format: str,
    fields: Optional[dict[str, str]],
) -> dict[str, RowSource]:
    """Sources from plain values, as a config holds them, or from the one file that it names
    instead.

    Args:
        values: Sources by name.
        path: One file, in their place.
        format: Its format.
        fields: Part of a row -> field of that file that holds it.

    Raises:
        UserError: Both are given or neither is, or a source has a setting that there is not.
    """
    if (values is None) == (path is None):
        raise UserError(
            "data needs files of rows: give either data.path and data.format, or data.sources, and"
            " not both"
        )
    if path is not None:
        values = {Path(path).name.split(".")[0]: RowSource(path=path, format=format, fields=fields)}

    def source(value: Any) -> RowSource:
        return (
            value
            if isinstance(value, RowSource)
            else RowSource(**{**value, "task": as_task(value.get("task"))})
        )

    try:
        return {name: source(value) for name, value in (values or {}).items()}
    except TypeError as error:
        raise UserError(f"data.sources: {error}") from None


def _format(source: RowSource) -> str:
    return source.format or ("messages" if source.task is None else "prompt_completion")


def tallies(names: Iterable[str]) -> dict[str, RowTally]:
    """An empty tally for each source."""
    return {name: RowTally() for name in names}
