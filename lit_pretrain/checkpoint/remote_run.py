"""Remote run: a run whose home is an object store, with a copy of it on the local disk.

    <address>/config.yaml, metrics.jsonl, ...            the files of the run's folder
    <address>/checkpoints/step=00000100.ckpt             an object, or those of a sharded checkpoint
    <address>/checkpoints/step=00000100.ckpt.complete    written last: its files and digest

The local copy is what a run works with. A checkpoint without its mark is one whose upload was
interrupted, and is passed over. Any address that fsspec knows will do; s3:// goes through obstore,
with the credentials and the endpoint that boto3 would take (AWS_ENDPOINT_URL, ~/.aws).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from lit_pretrain.checkpoint.digests import DIGESTS, damage, end_digest
from lit_pretrain.checkpoint.layout import (
    BEST,
    CHECKPOINTS_FOLDER,
    best_record,
    checkpoint_name,
    checkpoints,
    newest_complete,
    scratch_of,
    step_of,
)
from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import (
    cache_folder,
    canonical_hash,
    check_plain_names,
    file_sha256,
    parse_sealed_json,
    remove_path,
    rename_durably,
    seal_json,
    sync,
    write_file,
)
from lit_pretrain.redaction import without_credentials
from lit_pretrain.report.rewinds import read_rewinds
from lit_pretrain.report.run_folder import (
    CONFIG,
    METRICS,
    METRICS_DIGESTS,
    complete_metrics,
)

COMPLETE = ".complete"
"""Ends the name of the mark beside a checkpoint that is whole."""
FETCHED = ".fetched"
"""File of a run's folder that tells the state of its home when it was fetched."""
PART = ".part"
"""Ends the name of a file that is being written where others could read half of it."""
RENAMING = frozenset({"file", "local", "sftp", "ssh"})
"""File systems of fsspec on which a file grows as it is written, and a rename replaces another.
Object stores show an object when it is whole.
"""
HOME = ".home"
"""File of a run's folder that names the address of which it is the copy."""


class RemoteCheckpoint(NamedTuple):
    """A checkpoint that is whole, as its mark describes it."""

    name: str
    files: dict[str, int]
    """Name -> bytes, below the folder of checkpoints."""
    identity: str
    """What tells it from others of the same name."""

    @property
    def step(self) -> int:
        """Return its optimizer step."""
        return step_of(Path(self.name)) or 0


class RemoteRun:
    """The files of a run at an address.

    Args:
        address: Such as s3://bucket/runs/name.

    Raises:
        UserError: Nothing can be stored at such an address.
    """

    def __init__(self, address: str) -> None:
        self.address = without_credentials(address.rstrip("/"))
        """As messages and files name it."""
        self._uploaded: dict[str, tuple[int, int]] = {}
        with self._reaching("opened"):
            self._store, root = _store(address.rstrip("/"))
        self._root = root.rstrip("/")

    @contextlib.contextmanager
    def _reaching(self, done: str) -> Iterator[None]:
        """Say in a message what the store's client says; each client has exceptions of its own."""
        try:
            yield
        except UserError:
            raise
        # The clients of stores have exceptions of their own, which have no class in common.
        except Exception as error:
            said = without_credentials(" ".join(str(error).split()))
            text = said[:300] or type(error).__name__
            raise UserError(
                f"{self.address} cannot be {done}: {text}; check the address, the network and the"
                " credentials (for s3:// AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws)"
            ) from error

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    # ------------------------------------------------------------------ looking

    def _listing(self) -> dict[str, int]:
        """List all files, by their names below the address, with their sizes."""
        with self._reaching("listed"):
            # fsspec remembers listings, and other processes write there as well.
            self._store.invalidate_cache()
            found = self._store.find(self._root, detail=True)
        inner = self._root.strip("/")
        names = {
            place.strip("/").removeprefix(inner).lstrip("/"): entry
            for place, entry in found.items()
        }
        check_plain_names(names, self.address, folders=True)
        return {name: int(entry["size"]) for name, entry in names.items()}

    def exists(self) -> bool:
        """Tell whether something of a run is there."""
        return CONFIG in self._listing()

    def holds_run(self) -> bool:
        """Tell whether a run has made steps there."""
        there = self._listing()
        made_steps = there.get(METRICS, 0) > 0 or any("/" in name for name in there)
        return CONFIG in there and made_steps

    def checkpoints(self, say: Callable[[str], None] = warn) -> list[RemoteCheckpoint]:
        """List the checkpoints that are whole, the newest first; warn of the others."""
        there = {
            name.removeprefix(f"{CHECKPOINTS_FOLDER}/"): size
            for name, size in self._listing().items()
            if name.startswith(f"{CHECKPOINTS_FOLDER}/")
        }
        found: dict[str, RemoteCheckpoint] = {}
        for mark in [name for name in there if name.endswith(COMPLETE)]:
            try:
                entry = self._read_mark(mark)
            except UserError as error:
                say(str(error))
                continue
            # The mark does not prove that the files are still what it names.
            if all(there.get(name) == size for name, size in entry.files.items()):
                found[entry.name] = entry
        names = {_checkpoint_of(name) for name in there}
        for name in sorted(names - found.keys()):
            if step_of(Path(name)) is not None:
                where = f"{self.address}/{CHECKPOINTS_FOLDER}/{name}"
                say(f"checkpoint {where} is not whole (interrupted upload); it is passed over")
        return sorted(found.values(), key=lambda each: each.step, reverse=True)

    def _read_mark(self, mark: str) -> RemoteCheckpoint:
        place = f"{CHECKPOINTS_FOLDER}/{mark}"
        with self._reaching("read"):
            content = self._store.cat_file(self._place(place))
        where = f"{self.address}/{place}"
        loaded = parse_sealed_json(bytes(content).decode("utf-8", "replace"), where)
        name = mark.removesuffix(COMPLETE)
        try:
            files = {str(key): int(value) for key, value in loaded["files"].items()}
            found = str(loaded["identity"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} is damaged ({error}); its checkpoint is passed over"
            ) from None
        # Whoever can write to the store chooses these names; none may lead out of the run's folder.
        check_plain_names(files, where, folders=True)
        if step_of(Path(name)) is None or any(key.partition("/")[0] != name for key in files):
            raise UserError(f"{where} is damaged: it names files of another checkpoint")
        return RemoteCheckpoint(name, files, found)

    # ------------------------------------------------------------------ fetching

    def fetch_files(self, folder: Path) -> None:
        """Fetch what there is beside the checkpoints, and what names the best of them."""
        for name in self._listing():
            beside = "/" not in name and not name.endswith(PART)
            if beside or name == f"{CHECKPOINTS_FOLDER}/{BEST}":
                self._fetch(name, folder / name)

    def _fetch(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f"{target.name}.tmp")
        with self._reaching(f"fetched to {target}"):
            self._store.get_file(self._place(name), str(scratch))
        # Under its name only when it is whole.
        os.replace(scratch, target)

    def fetch_checkpoint(
        self, entry: RemoteCheckpoint, folder: Path, say: Callable[[str], None] = warn
    ) -> Path | None:
        """Fetch a checkpoint, if the folder of a run does not hold it.

        Args:
            entry: The checkpoint.
            folder: Of the run.
            say: Receives the warning.

        Returns:
            Where it lies; None if it is damaged, of which is warned.
        """
        target = folder / CHECKPOINTS_FOLDER / entry.name
        if identity(target) == entry.identity and damage(target) is None:
            return target
        scratch = scratch_of(target)
        remove_path(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in entry.files:
            place = Path(f"{scratch}{name.removeprefix(entry.name)}")
            place.parent.mkdir(parents=True, exist_ok=True)
            with self._reaching(f"fetched to {target}"):
                self._store.get_file(self._place(f"{CHECKPOINTS_FOLDER}/{name}"), str(place))
            sync(place)
        found = damage(scratch)
        # It may have been replaced while it was fetched.
        if found is None and identity(scratch) != entry.identity:
            found = "it is another one than its mark says"
        if found is not None:
            remove_path(scratch)
            where = f"{self.address}/{CHECKPOINTS_FOLDER}/{entry.name}"
            say(f"checkpoint {where} is damaged: {found}; it is passed over")
            return None
        # A rename replaces a file, but no folder that holds something.
        remove_path(target)
        rename_durably(scratch, target)
        return target

    def pull(self, folder: Path, say: Callable[[str], None] = warn) -> None:
        """Let a local copy that is behind catch up.

        All checkpoints are fetched, because a rewind may go back to any, and the next upload
        deletes those that the copy lacks. A copy that is about to go back is not behind.

        Args:
            folder: The copy.
            say: Receives the warnings.
        """
        there = self.checkpoints(say)
        own = newest_complete(folder, say)
        if not there or (own is not None and (step_of(own) or 0) >= there[0].step):
            return
        seen, state = folder / FETCHED, canonical_hash([entry.identity for entry in there])
        if own is not None and seen.is_file() and seen.read_text(encoding="utf-8") == state:
            return  # by another rank; what is newer is damaged
        rewinds = read_rewinds(folder)
        if rewinds and not rewinds[-1].done:
            return
        write_home(folder, self)  # before there is a run, which would count as another
        self.fetch_files(folder)
        names = [each.name for each in there if self.fetch_checkpoint(each, folder, say)]
        write_file(seen, state)
        if names:
            print(f"fetched {', '.join(names)} of {self.address} to {folder}", flush=True)

    # ------------------------------------------------------------------ uploading

    def push_files(self, folder: Path) -> None:
        """Upload what has changed beside the checkpoints."""
        with self._reaching("written"):
            if (folder / METRICS).is_file():
                for name, content in complete_metrics(folder).items():
                    self._put(content, name)
            for path in [*sorted(folder.iterdir()), folder / CHECKPOINTS_FOLDER / BEST]:
                name = str(path.relative_to(folder))
                if name in (METRICS, METRICS_DIGESTS) or not path.is_file():
                    continue
                status = path.stat()
                # Size and time tell enough, because this process alone writes the folder.
                version = status.st_size, status.st_mtime_ns
                private = path.name.startswith(".") or path.name.endswith(".tmp")
                if not private and self._uploaded.get(name) != version:
                    self._put(path, name)
                    self._uploaded[name] = version

    def _put(self, content: Path | bytes, name: str) -> None:
        """Write a file, which appears whole or stays as it was."""
        place = self._place(name)
        grows = not RENAMING.isdisjoint(_protocols(self._store))
        written = f"{place}{PART}" if grows else place
        self._store.makedirs(place.rpartition("/")[0], exist_ok=True)
        if isinstance(content, bytes):
            self._store.pipe_file(written, content)
        else:
            self._store.put_file(str(content), written)
        if grows:
            self._store.mv(written, place)

    def push(self, folder: Path) -> None:
        """Upload what the address lacks, and delete the checkpoints that the folder has deleted.

        Raises:
            UserError: The store cannot be reached, or refuses.
        """
        self.push_files(folder)
        there = {entry.name: entry.identity for entry in self.checkpoints(lambda text: None)}
        whole = 0
        for path in reversed(checkpoints(folder)):
            try:
                own = identity(path)
                if own is None:
                    continue
                if there.get(path.name) != own:
                    self._push_checkpoint(path, own)
            except (OSError, UserError):
                if path.exists():
                    raise
                continue  # deleted meanwhile, as an old one is
            whole += 1
        # A folder without one whole checkpoint is no reason to delete those of the store.
        if whole:
            kept = {path.name for path in checkpoints(folder)}
            self._delete(lambda name: name not in kept)

    def _push_checkpoint(self, path: Path, own: str) -> None:
        # What is left under this name from an earlier upload goes first.
        self._delete(lambda name: name == path.name)
        with self._reaching("written"):
            files = [path] if path.is_file() else sorted(path.iterdir())
            sizes = {str(file.relative_to(path.parent)): file.stat().st_size for file in files}
            for file, name in zip(files, sizes, strict=True):
                self._put(file, f"{CHECKPOINTS_FOLDER}/{name}")
            # Last: until then every reader passes the checkpoint over.
            mark = seal_json({"files": sizes, "identity": own}).encode()
            self._put(mark, f"{CHECKPOINTS_FOLDER}/{path.name}{COMPLETE}")

    def drop_newer(self, step: int) -> None:
        """Delete the checkpoints of more than so many steps, from which the run has gone back."""
        self._delete(lambda name: (step_of(Path(name)) or 0) > step)

    def _delete(self, which: Callable[[str], bool]) -> None:
        """Delete checkpoints by their names, whole or not; first their marks."""
        gone = []
        for place in self._listing():
            folder, _, name = place.partition("/")
            checkpoint = _checkpoint_of(name)
            found = folder == CHECKPOINTS_FOLDER and step_of(Path(checkpoint)) is not None
            if found and which(checkpoint):
                gone.append(place)
        with self._reaching("written"):
            # Marks first: what an interrupted deletion leaves must not look whole.
            for place in sorted(gone, key=lambda place: not place.endswith(COMPLETE)):
                self._store.rm_file(self._place(place))
            for folder in {place.rpartition("/")[0] for place in gone} - {CHECKPOINTS_FOLDER}:
                if self._store.isdir(self._place(folder)):  # in stores that have folders
                    self._store.rmdir(self._place(folder))


def _store(address: str) -> tuple[Any, str]:
    """Open a file system of fsspec; return the place within it as well."""
    protocol, _, place = address.partition("://")
    if protocol != "s3":
        import fsspec

        found: tuple[Any, str] = fsspec.url_to_fs(address)
        return found
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.fsspec import FsspecStore

    # The client refuses http unless it is allowed, and stores within a cluster often speak nothing
    # else.
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    store = FsspecStore(
        "s3", client_options={"allow_http": plain}, credential_provider=Boto3CredentialProvider()
    )
    return store, place


def _checkpoint_of(name: str) -> str:
    """Name the checkpoint to which a file below the folder of checkpoints belongs."""
    return name.partition("/")[0].removesuffix(PART).removesuffix(COMPLETE)


def _protocols(store: Any) -> tuple[str, ...]:
    """Return the names of a file system of fsspec, which has one or several."""
    return (store.protocol,) if isinstance(store.protocol, str) else tuple(store.protocol)


def identity(path: Path) -> str | None:
    """Return what tells a checkpoint from others of the same name; None if it is not whole."""
    if path.is_dir():
        return file_sha256(path / DIGESTS) if (path / DIGESTS).is_file() else None
    return end_digest(path) if path.is_file() else None


# ------------------------------------------------------------------ reading somebody's run


def fetched(where: str, *, which: str | None) -> Path:
    """Fetch a remote run to a cache on this machine, for verbs that read runs.

    Args:
        where: Address of a run, or of one of its checkpoints.
        which: Of a run: the checkpoint, last or best; all of them; None fetches none.

    Returns:
        The checkpoint; with all or None the run's folder.

    Raises:
        UserError: There is no such run or checkpoint, or one of all is damaged.
    """
    address, named = where.rstrip("/"), step_of(Path(where))
    if named is not None:
        address = address.rpartition("/")[0].removesuffix(f"/{CHECKPOINTS_FOLDER}")
    remote = RemoteRun(address)
    if not remote.exists():
        raise UserError(f"{remote.address} holds no run: there is no {CONFIG}")
    folder = cache_folder(address) / address.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # several ranks of a machine may begin together
        return _fetched_to(folder, remote, which=which, named=named)


def _fetched_to(folder: Path, remote: RemoteRun, *, which: str | None, named: int | None) -> Path:
    remote.fetch_files(folder)
    if which is None:
        return folder
    there, address = remote.checkpoints(), remote.address
    if which == "all":
        damaged = [each.name for each in there if remote.fetch_checkpoint(each, folder) is None]
        if damaged:
            raise UserError(f"{address}: {', '.join(damaged)} cannot be used; see the warnings")
        kept = {each.name for each in there}
        for path in checkpoints(folder):
            if path.name not in kept:  # its home has deleted it since it was fetched
                remove_path(path)
        return folder
    best = best_record(folder) if which == "best" else None
    wanted = checkpoint_name(named) if named is not None else best.checkpoint if best else None
    # The newest first; where none is named, a damaged one gives way to the one before it.
    for entry in there:
        if wanted in (None, entry.name) and (whole := remote.fetch_checkpoint(entry, folder)):
            return whole
    raise UserError(
        f"{address} holds no whole checkpoint{f' {wanted}' if wanted else ''}; it has"
        f" {', '.join(entry.name for entry in there) or 'none'}"
    )


def check_home(folder: Path, remote: RemoteRun) -> None:
    """Refuse a local folder that is the copy of another run.

    Raises:
        UserError: It is.
    """
    file = folder / HOME
    known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    if known == remote.address or not (folder / CONFIG).is_file():
        return
    if known is not None or remote.holds_run():
        what = f"the copy of {known}" if known else "a run of its own"
        raise UserError(
            f"{folder} is {what}, and not the copy of {remote.address}; choose another --local_runs"
            " or --name"
        )


def write_home(folder: Path, remote: RemoteRun) -> None:
    """Record of which address a folder is the copy."""
    write_file(folder / HOME, f"{remote.address}\n")
