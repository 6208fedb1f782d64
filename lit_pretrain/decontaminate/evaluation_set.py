"""Evaluation sets: the records of a file that models are scored on, their texts, and a hash
that recognises the set again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError

_PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
EVALUATION_FORMATS = (".jsonl", ".json", ".txt", ".parquet")
"""Suffixes of files that can be read; the first three also packed (.gz, .zst, .bz2)."""


def read_json_records(
    path: str | os.PathLike[str], separator: str = "\n", what: str = "the evaluation set"
) -> list[dict[str, Any]]:
    """All records of a file, in its order. The whole file is held: evaluation sets are a few MB.

    Args:
        path: jsonl: an object a line. json: a list of objects. parquet: a row each. txt: a record
            `{"text": ...}` per piece that is not blank.
        separator: Txt only: what stands between pieces; an empty line (two line feeds) makes each
            paragraph one.
        what: What the file is, for messages.

    Raises:
        UserError: The file is missing, damaged, of another format, or holds something else than
            records.
    """
    path = Path(path).expanduser()
    suffix = path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix
    if suffix not in EVALUATION_FORMATS or (suffix == ".parquet" and path.suffix in _PACKED):
        raise UserError(
            f"{what} {path} cannot be read: its name must end in {', '.join(EVALUATION_FORMATS)}"
            " (packed or not)"
        )
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                rows: list[dict[str, Any]] = file.read().to_pylist()
            return rows
        text = _unpacked(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{what} {path} does not exist (relative paths start at {Path.cwd()})"
        ) from None
    except (
        OSError,
        EOFError,
        ValueError,
    ) as error:  # pyarrow's errors and those of UTF-8 are ValueErrors
        raise UserError(f"{what} {path} cannot be read: {error}. Fetch it again.") from None
    if suffix == ".txt":
        return [{"text": piece.strip()} for piece in text.split(separator) if piece.strip()]
    if suffix == ".json":
        whole = _parsed(text, str(path))
        if not isinstance(whole, list):
            raise UserError(
                f"{what} {path} holds a JSON {type(whole).__name__}; it must be a list of objects."
                " Convert it to that or to jsonl."
            )
        return [_object(record, f"{path}, record {n}") for n, record in enumerate(whole, start=1)]
    # Not splitlines: JSON strings may hold U+2028 and its like as they are.
    lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    return [_object(_parsed(line, f"{path}:{n}"), f"{path}:{n}") for n, line in lines]


def texts_of(record: dict[str, Any], fields: Iterable[str], where: str) -> list[str]:
    """The texts of a record that count, in the order of `fields`, without repetitions.

    Args:
        record: One record of `read_records`.
        fields: Each gives texts of its own. `a.b` looks into the object `a`. A field that holds a
            list gives one text per element. `a + b` joins fields by a space; with lists, each
            element with each.
        where: Of the record, for messages.

    Raises:
        UserError: A field is missing, or holds no text.
    """
    texts: dict[str, None] = {}
    for field in fields:
        parts = [
            _values(record, name.strip().split("."), f"{where}: the field {name.strip()!r}")
            for name in field.split("+")
        ]
        texts.update(
            dict.fromkeys(" ".join(combination) for combination in itertools.product(*parts))
        )
    return list(texts)


def content_sha256(records: Iterable[dict[str, Any]]) -> str:
    """sha256 of the records as a bag: the same whatever the file's name, format, packing, and
    the order of its rows and keys.
    """
    canonical = sorted(
        json.dumps(record, sort_keys=True, separators=(",", ":"), default=str) for record in records
    )
    return hashlib.sha256("\n".join(canonical).encode()).hexdigest()


def _unpacked(path: Path) -> bytes:
    if path.suffix not in _PACKED:
        return path.read_bytes()
    import pyarrow

    # pyarrow, because zstandard's own reader takes a truncated file for a complete one.
    with pyarrow.input_stream(str(path), compression=_PACKED[path.suffix]) as stream:
        return bytes(stream.read())


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{where} holds a JSON {type(value).__name__}; each record must be an object"
        )
    return value


def _values(value: Any, names: list[str], where: str) -> Iterator[str]:
    """The texts at the end of a path; null gives none, numbers give their digits."""
    if isinstance(value, list):
        for element in value:
            yield from _values(element, names, where)
    elif value is None:
        return
    elif names:
        if not isinstance(value, dict) or names[0] not in value:
            has = (
                f"it has {', '.join(map(repr, value)) or 'none'}"
                if isinstance(value, dict)
                else f"{type(value).__name__} has no fields"
            )
            raise UserError(f"{where} is missing ({has}). Correct `fields`.")
        yield from _values(value[names[0]], names[1:], where)
    elif isinstance(value, str | int | float):
        yield str(value)
    else:
        raise UserError(
            f"{where} holds an object ({', '.join(map(repr, value))}), not text. Name one of its"
            " fields after a dot."
        )


# Gate: which evaluation sets a dataset was held against, so that a score can say whether it is
# clean.


@dataclass(frozen=True)
class GateRecord:
    """What the gate did about one evaluation set; an entry of the manifest."""

    name: str
    """As in the config."""
    file_sha256: str
    """Of the file as it lay on disk."""
    content_sha256: str
    """Of the records, whatever the file's name, format and order
    (`evaluation_set.content_sha256`).
    """
    fields: tuple[str, ...]
    """The fields of a record that were looked for."""
    items: int
    """Records of the set."""
    unchecked_items: int
    """Those that are too short to be told from chance, and were not looked for."""
    ngram: int
    """Words in a row that make a hit."""
    min_words: int
    """Shorter texts were looked for as a whole, down to this number of words."""
    action: str
    """remove or mark: what happened to documents with a hit."""
    documents_hit: int
    """Documents with a hit, over all sources."""
    items_hit: int
    """Records of the set found in at least one document."""
    licence: str | None = None
    """Of the set, in the words of the config."""
    origin: str | None = None
    """Where the set came from, in the words of the config."""

    @property
    def clean(self) -> bool:
        """Whether no checked item is left in the data: hits were removed, or there were none."""
        return self.action == "remove" or self.documents_hit == 0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> GateRecord:
        """The inverse of `dataclasses.asdict` through JSON."""
        return cls(**{**raw, "fields": tuple(raw["fields"])})


def declared(
    gate: Iterable[GateRecord], path: str | os.PathLike[str], separator: str = "\n"
) -> GateRecord | None:
    """The gate's record of an evaluation set, None when the data were never held against it.

    Args:
        gate: The records of the manifest.
        path: The file that a score is to be measured on; it is recognised by its records, not by
            its name.
        separator: Of a txt file, see `read_records`.

    Raises:
        UserError: The file cannot be read.
    """
    wanted = content_sha256(read_json_records(path, separator))
    return next((record for record in gate if record.content_sha256 == wanted), None)
