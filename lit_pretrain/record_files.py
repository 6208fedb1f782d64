"""Record files: the rows of a JSON Lines, JSON, Parquet or text file, packed or not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import parse_json

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
RECORD_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")
"""Suffixes of files that can be read; all but .parquet also packed (.gz, .zst, .bz2)."""


def read_records(
    path: str | os.PathLike[str], separator: str = "\n", what: str = "the evaluation set"
) -> list[dict[str, Any]]:
    """Return all records of a file, in its order.

    The whole file is held in memory: evaluation sets and files of training rows are a few MB.

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
    suffix = path.with_suffix("").suffix if path.suffix in _COMPRESSIONS else path.suffix
    if suffix not in RECORD_SUFFIXES or (suffix == ".parquet" and path.suffix in _COMPRESSIONS):
        raise UserError(
            f"{what} {path} cannot be read: its name must end in {', '.join(RECORD_SUFFIXES)}"
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
    except (OSError, EOFError, ValueError) as error:
        # The errors of pyarrow and of UTF-8 are ValueErrors.
        raise UserError(f"{what} {path} cannot be read: {error}. Fetch it again.") from None
    if suffix == ".txt":
        return [{"text": piece.strip()} for piece in text.split(separator) if piece.strip()]
    if suffix == ".json":
        whole = parse_json(text, str(path))
        if not isinstance(whole, list):
            raise UserError(
                f"{what} {path} holds a JSON {type(whole).__name__}; it must be a list of objects."
                " Convert it to that or to jsonl."
            )
        return [_object(record, f"{path}, record {n}") for n, record in enumerate(whole, start=1)]
    # `splitlines` would break at U+2028 and the like, which JSON strings may hold unescaped.
    lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    return [_object(parse_json(line, f"{path}:{n}"), f"{path}:{n}") for n, line in lines]


def _unpacked(path: Path) -> bytes:
    if path.suffix not in _COMPRESSIONS:
        return path.read_bytes()
    import pyarrow

    # zstandard's own reader takes a truncated file for a complete one; pyarrow's does not.
    with pyarrow.input_stream(str(path), compression=_COMPRESSIONS[path.suffix]) as stream:
        return bytes(stream.read())


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{where} holds a JSON {type(value).__name__}; each record must be an object"
        )
    return value
