"""Chunk cache: chunks of a remote dataset on the local disk, verified and within a limit.

LitData's own cache deletes chunks behind a sequential reader, counts its limit for each source
apart, and polls. The rows of a run are read by number (`dataset[i]`), so a plain cache does: fetch
what is missing, and drop what was opened longest ago.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Chunk, Manifest, verify_chunk
from lit_pretrain.errors import UserError
from lit_pretrain.files import cache_folder, is_remote

SCRATCH = ".fetch-"
"""Begins the name of a folder beside a file that is being fetched."""


def allow_plain_http(storage_options: Mapping[str, Any] | None) -> None:
    """Let LitData's client reach an http:// endpoint that the user names, such as a local MinIO.

    LitData 0.2.76 has no option for it, and its client refuses the scheme; an https:// or default
    endpoint changes nothing.
    """
    if str((storage_options or {}).get("endpoint_url", "")).startswith("http://"):
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


def download(
    url: str,
    target: Path,
    *,
    storage_options: Mapping[str, Any] | None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Fetch one object of a store; the file appears whole or not at all.

    A cache needs no fsync: every chunk is checked against its sha256 when it is opened.

    Args:
        url: Address of the object.
        target: Where it goes; an older file there is replaced.
        storage_options: Passed to the object store's client.
        check: Called with the fetched file before it gets its name; raises if it is not what was
            wanted.

    Raises:
        UserError: The object store does not have it or cannot be reached.
    """
    from litdata.streaming.downloader import get_downloader  # imports boto3: only for remote data

    allow_plain_http(storage_options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as scratch:
        fetched = Path(scratch) / target.name
        try:
            get_downloader(
                url.rsplit("/", 1)[0], scratch, [], dict(storage_options or {})
            ).download_file(url, str(fetched))
        except Exception as error:  # each store's client has its own exceptions; the cause is kept
            raise UserError(
                f"cannot fetch {url}: {_reason(error)}; check the address, the credentials and"
                " data.storage_options"
            ) from error
        if not fetched.is_file():
            raise UserError(f"cannot fetch {url}: the object store does not have it")
        if check is not None:
            check(fetched)
        # After the check and in one move: other processes see the whole file or none.
        os.replace(fetched, target)


def _reason(error: Exception) -> str:
    """Return the first line of what a store's client says, and the operating system's reason.

    LitData's client prints all of its inner state.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    inner = re.findall(r'message: "([^"\n]+)"', str(error))
    first = lines[0].strip()
    return f"{first} ({inner[-1]})" if inner and inner[-1] not in first else first


def fetch(
    location: str, name: str, *, cache_dir: str | None, storage_options: Mapping[str, Any] | None
) -> Path:
    """Return a local copy of one small file.

    It is fetched afresh each time, because the original may have been replaced.

    Raises:
        UserError: The object store does not have it or cannot be reached.
    """
    if not is_remote(location):
        return Path(location) / name
    target = cache_folder(location, cache_dir) / name
    download(f"{location.rstrip('/')}/{name}", target, storage_options=storage_options)
    return target


def load_manifest(
    location: str, *, cache_dir: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Manifest:
    """Load the manifest of a dataset in a directory or at a URL."""
    if not is_remote(location):
        return Manifest.load(location)
    path = fetch(location, MANIFEST_FILENAME, cache_dir=cache_dir, storage_options=storage_options)
    return Manifest.parse(
        path.read_text(encoding="utf-8"), f"{location.rstrip('/')}/{MANIFEST_FILENAME}"
    )


_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def size_in_bytes(text: str) -> int:
    """Read a size such as "20GB" (10⁹ bytes each) or "20GiB" (2³⁰ bytes each).

    Raises:
        UserError: It cannot be read.
    """
    match = _SIZE.fullmatch(str(text))
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UserError(f"data.max_cache_size={text!r} is not a size; write 20GB, 500MB or 20GiB")
    return int(float(match[1]) * unit)


ABANDONED_SECONDS = 3600.0
"""A partly fetched file that has not grown for so long belongs to a process that was killed."""


class ChunkCache:
    """Keep local copies of a remote dataset's chunks, shared by all processes on the machine.

    All chunk files under `root` together stay within `limit` bytes, plus one chunk for every
    further process that fetches at the same time. A chunk that is dropped while a process still has
    it mapped leaves the folder at once and the disk when it is unmapped.

    Args:
        location: URL of the dataset.
        root: Folder of the copies.
        limit: Most bytes of chunk files under `root`; None for no limit.
        storage_options: Passed to the object store's client.
    """

    def __init__(
        self,
        location: str,
        root: Path,
        *,
        limit: int | None,
        storage_options: Mapping[str, Any] | None,
    ) -> None:
        self.location = location.rstrip("/")
        self.root = root
        self.limit = limit
        self.storage_options = storage_options
        self._in_use: dict[str, set[Path]] = {}

    def fetch(self, folder: str, chunk: Chunk, *, in_use: Collection[str] = ()) -> Path:
        """Return the local copy of a chunk, with the content that the manifest records.

        Args:
            folder: Where the chunk lies in the dataset: `<split>/<source>`.
            chunk: Its entry in the manifest.
            in_use: Names of the other chunks of this folder that the caller reads; they are
                dropped last.

        Raises:
            UserError: The store does not have it, or has something else.
        """
        path = self.root / folder / chunk.filename
        self._in_use[folder] = {self.root / folder / name for name in in_use} | {path}
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ranks of a machine need the same chunk at the same time: one of them fetches it.
        with FileLock(f"{path}.lock"):
            if self._is_whole(path, chunk):
                return path
            self._make_room(chunk.bytes)
            url = f"{self.location}/{folder}/{chunk.filename}"
            download(
                url,
                path,
                storage_options=self.storage_options,
                check=lambda file: _check(file, chunk, url),
            )
        return path

    @staticmethod
    def _is_whole(path: Path, chunk: Chunk) -> bool:
        """Check that there is a copy, and not of an earlier state of the store."""
        try:
            verify_chunk(path, chunk)
            os.utime(path)  # opened now: dropped last
        except (UserError, FileNotFoundError):
            return False
        return True

    def _make_room(self, wanted: int) -> None:
        if self.limit is None:
            return
        in_use = set().union(*self._in_use.values())
        total, files = wanted, []
        for path in self.root.rglob("chunk-*.bin"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made room, or has just finished fetching
                continue
            total += status.st_size
            # Another process's fetch counts but must stay; what a killed process left may go.
            if (
                not path.parent.name.startswith(SCRATCH)
                or time.time() - status.st_mtime > ABANDONED_SECONDS
            ):
                files.append((path in in_use, status.st_mtime_ns, status.st_size, path))
        # What nobody reads goes first, and of that what was opened longest ago.
        for _, _, size, path in sorted(files):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def _check(file: Path, chunk: Chunk, url: str) -> None:
    try:
        verify_chunk(file, chunk)
    except UserError as error:
        raise UserError(f"{url} is not the chunk that the manifest names: {error}") from None
