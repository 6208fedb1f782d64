"""Remote: files of a dataset from a directory or an object store."""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_pretrain.data.manifest import FILENAME, Manifest
from lit_pretrain.errors import UserError

SCRATCH = ".fetch-"
"""Begins the name of a folder beside a file that is being fetched."""


def is_remote(location: str) -> bool:
    """Whether the location is a URL such as s3://bucket/folder."""
    return "://" in location


def allow_plain_http(storage_options: Mapping[str, Any] | None) -> None:
    """Let LitData's object-store client speak to an http:// endpoint that the user named, such as MinIO on the same machine.

    LitData 0.2.76 has no option for it, and its client refuses the scheme; an https:// or default endpoint changes nothing.
    """
    if str((storage_options or {}).get("endpoint_url", "")).startswith("http://"):
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


def cache_folder(location: str, cache_dir: str | None) -> Path:
    """Where what is fetched from a remote location is kept, one folder per location."""
    base = Path(cache_dir) if cache_dir else Path(tempfile.gettempdir()) / "lit_pretrain_cache"
    return base / hashlib.sha256(location.encode()).hexdigest()[:16]


def download(url: str, target: Path, *, storage_options: Mapping[str, Any] | None, check: Callable[[Path], None] | None = None) -> None:
    """Fetch one object of a store; the file appears whole or not at all.

    Args:
        url: Address of the object.
        target: Where it goes; an older file there is replaced.
        storage_options: Passed to the object store's client.
        check: Called with the fetched file before it gets its name; raises if it is not what was wanted.

    Raises:
        UserError: The object store does not have it or cannot be reached.
    """
    from litdata.streaming.downloader import get_downloader  # imports boto3: only for remote data

    allow_plain_http(storage_options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as scratch:
        fetched = Path(scratch) / target.name
        try:
            get_downloader(url.rsplit("/", 1)[0], scratch, [], dict(storage_options or {})).download_file(url, str(fetched))
        except Exception as error:  # each store's client has its own exceptions; the cause is kept
            raise UserError(f"cannot fetch {url}: {_reason(error)}; check the address, the credentials and data.storage_options") from error
        if not fetched.is_file():
            raise UserError(f"cannot fetch {url}: the object store does not have it")
        if check is not None:
            check(fetched)
        os.replace(fetched, target)


def _reason(error: Exception) -> str:
    """The first line of what a store's client says (LitData's prints all of its inner state), and the operating system's word."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    inner = re.findall(r'message: "([^"\n]+)"', str(error))
    first = lines[0].strip()
    return f"{first} ({inner[-1]})" if inner and inner[-1] not in first else first


def fetch(location: str, name: str, *, cache_dir: str | None, storage_options: Mapping[str, Any] | None) -> Path:
    """A local copy of one small file; fetched afresh each time, because the original may have been replaced.

    Raises:
        UserError: The object store does not have it or cannot be reached.
    """
    if not is_remote(location):
        return Path(location) / name
    target = cache_folder(location, cache_dir) / name
    download(f"{location.rstrip('/')}/{name}", target, storage_options=storage_options)
    return target


def load_manifest(location: str, *, cache_dir: str | None = None, storage_options: Mapping[str, Any] | None = None) -> Manifest:
    """The manifest of a dataset in a directory or under a URL."""
    if not is_remote(location):
        return Manifest.load(location)
    path = fetch(location, FILENAME, cache_dir=cache_dir, storage_options=storage_options)
    return Manifest.parse(path.read_text(encoding="utf-8"), f"{location.rstrip('/')}/{FILENAME}")
