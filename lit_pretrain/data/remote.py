"""Remote: small files of a dataset (manifest, tokenizer) from a directory or an object store."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_pretrain.data.manifest import FILENAME, Manifest
from lit_pretrain.errors import UserError


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


def fetch(location: str, name: str, *, cache_dir: str | None, storage_options: Mapping[str, Any] | None) -> Path:
    """A local copy of one small file; fetched afresh each time, because the original may have been replaced.

    Raises:
        UserError: The object store does not have it or cannot be reached.
    """
    if not is_remote(location):
        return Path(location) / name
    from litdata.streaming.downloader import get_downloader  # imports boto3: only for remote data

    allow_plain_http(storage_options)
    folder = cache_folder(location, cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{location.rstrip('/')}/{name}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        downloader = get_downloader(location, scratch, [], dict(storage_options or {}))
        fetched = Path(scratch) / name
        try:
            downloader.download_file(url, str(fetched))
        except Exception as error:  # each store's client has its own exceptions; the cause is kept and shown
            raise UserError(
                f"cannot fetch {url}: {error}; check the address, the credentials and data.storage_options"
            ) from error
        if not fetched.is_file():
            raise UserError(f"cannot fetch {url}: the object store does not have it")
        os.replace(fetched, folder / name)
    return folder / name


def load_manifest(location: str, *, cache_dir: str | None = None, storage_options: Mapping[str, Any] | None = None) -> Manifest:
    """The manifest of a dataset in a directory or under a URL."""
    if not is_remote(location):
        return Manifest.load(location)
    path = fetch(location, FILENAME, cache_dir=cache_dir, storage_options=storage_options)
    return Manifest.parse(path.read_text(encoding="utf-8"), f"{location.rstrip('/')}/{FILENAME}")
