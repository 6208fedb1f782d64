"""Remote input: list the files at an address, and fetch complete local copies of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from lit_pretrain.errors import UserError
from lit_pretrain.files import is_remote

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before each further attempt: long enough for a busy object store to recover, and short
enough for a person to wait.
"""
_TIMEOUT = 60.0
_BLOCK = 1 << 20
_PERMANENT = frozenset({400, 401, 403, 404, 405, 410})
"""HTTP status codes that another attempt does not change."""
_T = TypeVar("_T")


class _IncompleteTransfer(Exception):
    """A transfer ended too early or went on too long."""


class RemoteFile(NamedTuple):
    """What a store or a server says about a file."""

    address: str
    bytes: int
    version: str
    """Its ETag, else the time of its last change: another content has another one. Empty if the
    server sends neither.
    """


def s3_objects(address: str, storage_options: Mapping[str, Any]) -> list[RemoteFile]:
    """List every object whose key begins like the address.

    Raises:
        UserError: The store cannot be reached, or refuses.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")

    def listing() -> list[RemoteFile]:
        pages = (
            _s3(storage_options)
            .get_paginator("list_objects_v2")
            .paginate(Bucket=bucket, Prefix=prefix)
        )
        return [
            RemoteFile(
                f"s3://{bucket}/{entry['Key']}",
                int(entry["Size"]),
                entry.get("ETag") or str(entry.get("LastModified", "")),
            )
            for page in pages
            for entry in page.get("Contents", ())
        ]

    return _attempts(address, "list", listing)


def url_file(address: str) -> RemoteFile:
    """Describe a file on a web server.

    Raises:
        UserError: It does not exist, the server cannot be reached, or does not say how large it is.
    """

    def headers() -> Mapping[str, str]:
        with _get(address) as answer:
            return cast("Mapping[str, str]", answer.headers)

    found = _attempts(address, "fetch", headers)
    length = found.get("Content-Length")
    if length is None or not length.isdigit():
        raise UserError(
            f"{address}: the server does not say how large the file is, so a broken transfer would"
            " go unnoticed; download it yourself and give its path"
        )
    return RemoteFile(address, int(length), found.get("ETag") or found.get("Last-Modified") or "")


@contextlib.contextmanager
def local_copy(
    location: str, size: int, *, scratch: Path, storage_options: Mapping[str, Any]
) -> Iterator[Path]:
    """Yield a complete copy of a remote file while the block runs, or a local file itself.

    Args:
        location: Path or address.
        size: Bytes that it must have.
        scratch: Directory for the copy, which is removed at the end.
        storage_options: For the client of the object store.

    Raises:
        UserError: It cannot be fetched whole; the message names the address and the cause.
    """
    if not is_remote(location):
        yield Path(location)
        return
    scratch.mkdir(parents=True, exist_ok=True)
    suffix = "".join(Path(location.partition("?")[0]).suffixes[-2:])
    handle, path = tempfile.mkstemp(suffix=suffix, dir=scratch)
    os.close(handle)
    try:
        try:
            _attempts(
                location, "fetch", lambda: _fetch(location, size, Path(path), storage_options)
            )
        except (
            OSError
        ) as error:  # of this disk: `_attempts` has turned the network's into UserError
            raise UserError(
                f"cannot store a copy of {location} below {scratch}: {error.strerror or error}"
            ) from None
        yield Path(path)
    finally:
        Path(path).unlink(missing_ok=True)


def _fetch(location: str, size: int, target: Path, storage_options: Mapping[str, Any]) -> None:
    """Make one attempt to fetch a file, from the beginning."""
    if location.startswith("s3://"):
        bucket, _, key = location.removeprefix("s3://").partition("/")
        body: contextlib.AbstractContextManager[BinaryIO] = contextlib.closing(
            _s3(storage_options).get_object(Bucket=bucket, Key=key)["Body"]
        )
    else:
        body = cast("contextlib.AbstractContextManager[BinaryIO]", _get(location))
    done = 0
    with body as stream, target.open("wb") as file:
        while block := stream.read(_BLOCK):
            file.write(block)
            done += len(block)
            if done > size:
                break
    if done != size:
        raise _IncompleteTransfer(
            f"{'more than ' if done > size else ''}{done:,} bytes came where {size:,} were listed"
        )


def _get(address: str) -> Any:
    """Open the answer to a request."""
    request = urllib.request.Request(
        address, headers={"User-Agent": "lit_pretrain", "Accept-Encoding": "identity"}
    )
    return urllib.request.urlopen(request, timeout=_TIMEOUT)


def _s3(storage_options: Mapping[str, Any]) -> Any:
    """Make a client of the object store."""
    try:
        import boto3
    except ImportError:
        raise UserError("s3:// needs the package boto3: pip install boto3") from None
    return boto3.client("s3", **storage_options)


def _attempts(address: str, verb: str, do: Callable[[], _T]) -> _T:
    """Run `do`, and try again after a pause if the cause of the failure may be temporary."""
    for pause in (*PAUSES, None):
        try:
            return do()
        except UserError:
            raise
        # The clients of stores have exceptions of their own; those of the disk are raised below.
        except Exception as error:
            if not _is_transfer(error):
                raise
            if pause is None or _status(error) in _PERMANENT:
                raise UserError(
                    f"cannot {verb} {address}: {_cause(error)}; check the address, the network, and"
                    " for s3:// the credentials and the source's `storage_options`"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_transfer(error: Exception) -> bool:
    """Check whether an error comes from the network or a store, not this disk or program."""
    if isinstance(
        error,
        (
            _IncompleteTransfer,
            http.client.HTTPException,
            urllib.error.URLError,
            ssl.SSLError,
            ConnectionError,
            TimeoutError,
        ),
    ):
        return True
    return type(error).__module__.split(".")[0] in ("botocore", "boto3", "urllib3")


def _status(error: Exception) -> int | None:
    """Read the HTTP status that an exception carries.

    What the client itself finds wrong, such as missing credentials, counts as 400.
    """
    if isinstance(error, urllib.error.HTTPError):
        return error.code
    if type(error).__name__ in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "NoRegionError",
    ):
        return 400
    response = getattr(error, "response", None)
    status = (
        response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(response, dict)
        else None
    )
    return status if isinstance(status, int) else None


def _cause(error: Exception) -> str:
    """Describe an error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0] or type(error).__name__


def hub_files(
    where: str, name: str, *, subset: str | None, split: str, revision: str | None
) -> list[Path]:
    """List the Arrow files of a dataset on the hub; download those that the cache does not hold.

    Raises:
        UserError: `datasets` is not installed, or the dataset cannot be fetched.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{where}: a dataset on the hub needs the package `datasets`: pip install"
            " 'lit_pretrain[hf]'"
        ) from None
    try:
        loaded = datasets.load_dataset(name, subset, split=split, revision=revision)
    # Hub, network and builders have exceptions of their own; the message keeps the cause.
    except Exception as error:
        raise UserError(
            f"{where}: the dataset {name!r} (subset {subset!r}, split {split!r}) cannot be fetched"
            f" from the Hugging Face hub: {_cause(error)}; check its name and the network, or save"
            " it elsewhere with `save_to_disk` and give its `path`"
        ) from error
    return [Path(entry["filename"]) for entry in loaded.cache_files]
