"""Row sources: files of post-training rows, or tasks that generate rows; read, checked and split.

The split of a row depends on its content alone, so it is the same every time.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from lit_pretrain.chat.messages import BadRow, TrainingRow
from lit_pretrain.data.chat.detection import AUTO, detect_format
from lit_pretrain.data.chat.formats import ROW_FORMATS, find_format, load_format
from lit_pretrain.data.chat.row_reader import expand_record, read_row
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.files import file_sha256
from lit_pretrain.hashing import splitmix64
from lit_pretrain.record_files import RECORD_SUFFIXES, RecordMistake, scan_records

_OPERATIONS = {
    "addition": ("+", operator.add),
    "subtraction": ("-", operator.sub),
    "multiplication": ("*", operator.mul),
}


class GeneratedRow(TypedDict, total=False):
    """A row that a task generates; `entry` only by reasoning-gym."""

    prompt: str
    completion: str
    answer: str
    task: str
    entry: Mapping[str, Any]
    """The whole entry, because the scorer of its dataset, reasoning_gym.get_score_answer_fn(name),
    looks at its metadata.
    """


@dataclass(kw_only=True)
class Task:
    """Generated problems with answers that can be checked: arithmetic, or reasoning-gym's."""

    name: str = "addition"
    """addition, subtraction or multiplication; or reasoning_gym/NAME, a dataset of reasoning-gym
    such as reasoning_gym/chain_sum.
    """
    rows: int = 10_000
    """Number of problems; those of arithmetic are all different."""
    digits: int = 2
    """Arithmetic: operands range from 0 to 10^digits - 1."""
    prompt: str = "What is {a} {op} {b}?"
    """Arithmetic: the text of a problem."""
    seed: int = 0
    """Seed of the problems."""
    options: dict[str, Any] | None = None
    """reasoning-gym: options of the dataset."""


def task_rows(task: Task, setting: str) -> list[GeneratedRow]:
    """Generate the problems of a task as rows with prompt, completion and answer.

    Args:
        task: What to generate.
        setting: Name of its setting, for messages.

    Raises:
        UserError: The task is unknown or impossible, or reasoning-gym is not installed.
    """
    if task.rows < 1 or task.digits < 1:
        raise UserError(f"{setting}: rows={task.rows} and digits={task.digits} must be at least 1")
    if task.name.startswith("reasoning_gym/"):
        return _reasoning_gym(task, setting)
    if task.name not in _OPERATIONS:
        raise UserError(
            f"{setting}.name={task.name!r} is unknown.{did_you_mean(task.name, _OPERATIONS)} There"
            f" are {', '.join(_OPERATIONS)} and reasoning_gym/NAME"
        )
    sign, apply = _OPERATIONS[task.name]
    below = 10**task.digits
    if task.rows > below**2:
        raise UserError(
            f"{setting}: there are only {below**2:,} problems of {task.digits} digits,"
            f" rows={task.rows:,}"
        )
    rows: list[GeneratedRow] = []
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


def _reasoning_gym(task: Task, setting: str) -> list[GeneratedRow]:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(
            f"{setting}.name={task.name!r} needs reasoning-gym: pip install"
            " 'lit_pretrain[reasoning]'"
        ) from None
    name = task.name.split("/", 1)[1]
    try:
        dataset = reasoning_gym.create_dataset(
            name, size=task.rows, seed=task.seed, **(task.options or {})
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{setting}: reasoning-gym cannot generate {name!r}: {error}") from None
    return [
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
    """Build a task from the plain values of a config."""
    return value if value is None or isinstance(value, Task) else Task(**value)


ROW_SPLITS = ("train", "validation", "test")
OnBadRow = Literal["refuse", "drop"]
"""Whether a row that is a mistake stops everything or is dropped and counted."""


@dataclass(kw_only=True)
class RowSource:
    """A named file of rows, or a task that generates them."""

    path: str | None = None
    """A json (a list of objects), jsonl or parquet file; json and jsonl may be compressed (.gz,
    .zst, .bz2).
    """
    task: Task | None = None
    """Generates rows in place of a file; they have the fields prompt, completion and answer."""
    format: str | None = None
    """Layout of the rows: sharegpt, alpaca, prompt_completion, preference, kto, ...; auto finds it
    from the fields of the rows. Null takes messages for a file and prompt_completion for a task.
    """
    fields: dict[str, str] | None = None
    """Part of a row -> field that holds it, if it differs from the format's field, such as
    {messages: dialogue}.
    """
    roles: dict[str, str] | None = None
    """Role in the file -> system, user, assistant or tool, such as {bot: assistant}."""
    ignore: list[str] | None = None
    """Fields of rows or messages to leave out on purpose, such as [title]; a field that holds text
    and that nobody reads is refused otherwise. Also marks such as <image> that are meant as text.
    """
    system: str | None = None
    """System message for rows that have none."""
    weight: float = 1.0
    """How often an epoch takes each of its rows."""
    validation_path: str | None = None
    """File of held-out rows; null holds out a share of `path` by hash."""


class RowSplit(NamedTuple):
    """A row with the split it belongs to."""

    split: str
    """train, validation or test."""
    origin: str
    """File and number of the row, for messages."""
    row: TrainingRow


@dataclass
class RowTally:
    """Counts of what became of the rows of one source."""

    read: int = 0
    """Rows read from its files."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Dropped rows by reason."""
    noted: Counter[str] = field(default_factory=Counter)
    """Rows that were kept but changed, or are not shown in full, by what happened."""
    first: dict[str, str] = field(default_factory=dict)
    """The first dropped row of each reason, and what is wrong with it."""

    def line(self, name: str, kept: int) -> str:
        """Write the counts as one line."""
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.dropped.items()))
        noted = ", ".join(f"{what} {count:,}" for what, count in sorted(self.noted.items()))
        text = f"{name}: {self.read:,} rows, {kept:,} used, dropped {sum(self.dropped.values()):,}"
        return text + (f" ({dropped})" if dropped else "") + (f"; {noted}" if noted else "")


def drop_row(bad: BadRow, origin: str, tally: RowTally, on_bad_row: OnBadRow) -> None:
    """Count a row that cannot be used, or stop at a mistake.

    Raises:
        UserError: The row is a mistake, and `on_bad_row` is refuse.
    """
    if bad.mistake and on_bad_row == "refuse":
        raise UserError(
            f"{origin}: {bad} (to leave such rows out and count them: --data.on_bad_row drop)"
        ) from None
    tally.dropped[bad.reason] += 1
    tally.first.setdefault(bad.reason, f"{origin}: {bad}")


def row_hash(row: Mapping[str, Any]) -> str:
    """Hash the content of a row, whatever the order of its fields."""
    return hashlib.sha256(
        json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode(
            "utf-8", "surrogatepass"
        )
    ).hexdigest()


def row_split_of(row: Mapping[str, Any], *, validation: float, test: float) -> str:
    """Assign a row to a split by its content alone.

    So no other row, order or seed moves it, and equal rows stay together.
    """
    position = int(row_hash(row)[:16], 16) / 2**64  # uniform in [0, 1)
    if position < validation:
        return "validation"
    return "test" if position < validation + test else "train"


def read_source(
    name: str,
    source: RowSource,
    *,
    kind: str,
    validation: float,
    test: float,
    on_bad_row: OnBadRow,
    tally: RowTally,
) -> Iterator[RowSplit]:
    """Yield the usable rows of a source, in the order of its files.

    Args:
        name: Name of the source.
        source: The source.
        kind: conversation, preference, verdict, stepwise or problem.
        validation: Share held out for validation, unless the source has a file for it.
        test: Share held out for the test.
        on_bad_row: What to do with a row that is a mistake.
        tally: Counts the rows.

    Raises:
        UserError: A file cannot be read, its format is unknown, or a row is a mistake.
    """
    format = find_format(
        _format(source),
        kind=kind,
        fields=source.fields,
        roles=source.roles,
        setting=f"data.sources.{name}",
    )
    share = 0.0 if source.validation_path is not None else validation
    for path, split in ((source.path, None), (source.validation_path, "validation")):
        if path is not None:
            records: Iterable[Mapping[str, Any] | RecordMistake] = scan_records(
                path, what="the file of rows"
            )
        elif split is None and source.task is not None:
            records = task_rows(source.task, f"data.sources.{name}.task")
        else:
            continue
        for number, record in enumerate(records, start=1):
            origin = f"{path or name}, row {number}"
            if isinstance(record, RecordMistake):
                drop_row(BadRow(record.reason, record.detail), origin, tally, on_bad_row)
                continue
            where = split or row_split_of(record, validation=share, test=test)
            padded = path is not None and Path(path).suffix.lower() in PADDED_SUFFIXES
            try:
                expanded = expand_record(
                    without_padding(record) if padded else record,
                    format,
                    kind=kind,
                    ignore=source.ignore or (),
                )
            except BadRow as bad:
                tally.read += 1
                drop_row(bad, origin, tally, on_bad_row)
                continue
            for part in expanded.rows:
                tally.read += 1
                try:
                    row = read_row(
                        part, expanded.format, kind=kind, system=source.system,
                        ignore=source.ignore or (), check_unread=path is not None,
                        notes=expanded.notes,
                    )  # fmt: skip
                except BadRow as bad:
                    drop_row(bad, origin, tally, on_bad_row)
                    continue
                yield RowSplit(where, origin, row)


PADDED_SUFFIXES = (".parquet",)
"""Files in which every object of a column has the fields of all others, null where it had none."""


def without_padding(record: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the nulls with which Arrow fills the objects of a row up, at every depth.

    An explicit null looks the same there, so it goes too; write such objects as JSON text to keep
    it. The content of a message stays null beside its tool calls, as in OpenAI's files.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            message = value.get("role") is not None
            return {
                key: strip(item)
                for key, item in value.items()
                if item is not None or (message and key == "content")
            }
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value

    return {key: strip(value) for key, value in record.items()}


def with_formats(sources: Mapping[str, RowSource], kind: str) -> dict[str, RowSource]:
    """Return sources whose format has a name, found from their rows where it is to be.

    Args:
        sources: The sources.
        kind: conversation, preference, verdict, stepwise or problem.

    Raises:
        UserError: No format reads the rows.
    """

    def named(name: str, source: RowSource) -> RowSource:
        if source.format != AUTO:
            return source
        if source.path is None:
            return replace(source, format=None)
        scanned = scan_records(source.path, what="the file of rows")
        rows: Iterable[Mapping[str, Any]] = (
            row for row in scanned if not isinstance(row, RecordMistake)
        )
        if Path(source.path).suffix.lower() in PADDED_SUFFIXES:
            rows = map(without_padding, rows)
        format = detect_format(
            rows, kind=kind, fields=source.fields, roles=source.roles,
            ignore=source.ignore or (), setting=f"data.sources.{name}",
        )  # fmt: skip
        return replace(source, format=format)

    return {name: named(name, source) for name, source in sources.items()}


def check_sources(sources: Mapping[str, RowSource]) -> None:
    """Refuse sources that do not say what to read, or how often.

    Raises:
        UserError: There is no source, one names no rows, or a weight is not positive.
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


def check_source_files(sources: Mapping[str, RowSource]) -> None:
    """Refuse sources whose files are not on this machine.

    Raises:
        UserError: Names the first that is missing.
    """
    for name, source in sources.items():
        for path in filter(None, (source.path, source.validation_path)):
            file = Path(path).expanduser()
            if file.is_dir():
                inside = sorted(map(str, islice(file.iterdir(), 5)))
                raise UserError(
                    f"data.sources.{name}: {path} is a folder; name one file for each source"
                    f"{f', such as {inside[0]}' if inside else ''}"
                )
            if not file.is_file():
                raise UserError(
                    f"data.sources.{name}: {path} does not exist (relative paths start at"
                    f" {Path.cwd()})"
                )
            if not any(
                suffix.lower() in (".json", ".jsonl", ".parquet")
                for suffix in Path(path).suffixes[-2:]
            ):
                raise UserError(
                    f"data.sources.{name}: {path} is not"
                    f" {', '.join(f for f in RECORD_SUFFIXES if f != '.txt')} (packed or not);"
                    " write each row as a JSON object on a line of its own"
                )


class OwnFormat(TypedDict, total=False):
    """What the identity of a source holds only where it is set."""

    own_format: Mapping[str, Any]
    """The content of a format of the user's own; ours are identified by their names."""
    ignore: list[str]


class SourceIdentity(OwnFormat):
    """What decides the rows of a source; its hash is part of the identity of the data."""

    sha256: str | None
    validation_sha256: str | None
    format: str
    fields: dict[str, str] | None
    roles: dict[str, str] | None
    system: str | None
    weight: float
    task: Mapping[str, Any] | None


def rows_identity(sources: Mapping[str, RowSource]) -> dict[str, SourceIdentity]:
    """Collect what decides the rows: the content of the files and how they are read, not paths."""

    def digest(path: str | None) -> str | None:
        return None if path is None else file_sha256(Path(path).expanduser())

    return {
        name: {
            "sha256": digest(source.path), "validation_sha256": digest(source.validation_path),
            "format": _format(source),
            "fields": source.fields, "roles": source.roles, "system": source.system,
            "weight": source.weight,
            "task": None if source.task is None else asdict(source.task),
            **_own_format(source),
            **_ignored(source),
        }
        for name, source in sources.items()
    }  # fmt: skip


def _ignored(source: RowSource) -> OwnFormat:
    """Give the fields that are left out, if any: the checkpoints of before know of none."""
    return {} if source.ignore is None else {"ignore": source.ignore}


def _own_format(source: RowSource) -> OwnFormat:
    """Give the content of a format of the user's own, which its name does not identify."""
    name = _format(source)
    if name in ROW_FORMATS or "." not in name:
        return {}
    format = load_format(name, "data.sources")
    content: dict[str, Any] = {
        "fields": dict(format.fields),
        "optional": sorted(format.optional),
        "roles": dict(format.roles),
        "answer_after": format.answer_after,
    }
    # Left out at its default, as in checkpoints that were written before these fields existed.
    if format.unused:
        content["unused"] = sorted(format.unused)
    if format.worked:
        content["worked"] = True
    if format.shape != "plain":
        content["shape"] = format.shape
    return {"own_format": content}


def as_sources(
    values: Mapping[str, Any] | None,
    *,
    path: str | None,
    format: str,
    fields: dict[str, str] | None,
    ignore: list[str] | None = None,
) -> dict[str, RowSource]:
    """Build sources from the plain values of a config, or from the one file that it names instead.

    Args:
        values: Sources by name.
        path: A single file in place of `values`.
        format: Format of that file.
        fields: Part of a row -> field of that file that holds it.
        ignore: Fields of that file to leave out on purpose.

    Raises:
        UserError: Both or neither of `values` and `path` are given, or a setting is unknown.
    """
    if (values is None) == (path is None):
        raise UserError(
            "data needs files of rows: give either data.path and data.format, or data.sources, and"
            " not both"
        )
    if path is not None:
        values = {
            Path(path).name.split(".")[0]: RowSource(
                path=path, format=format, fields=fields, ignore=ignore
            )
        }

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
