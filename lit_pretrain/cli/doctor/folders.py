"""Folders: where data and runs lie, whether they can be written, how much room there is, and
whether the datasets are whole.
"""

import shutil
import tempfile
from pathlib import Path

from lit_pretrain.cli.doctor import Finding
from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.chunk_cache import cache_folder
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest, verify_chunk
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash, is_remote
from lit_pretrain.plain_data import load_json

GB = 1000**3
SCARCE = 1 * GB
"""Below it a run of the quick start (three checkpoints of 0.3 GB) no longer fits."""
TIGHT = 10 * GB
NAMED = 5
"""Damaged chunks that are named one by one."""


def folder(label: str, path: Path) -> Finding:
    """Whether a folder can be written, or made, and how much room its disk has.

    Args:
        label: What it is for.
        path: It need not exist; nothing is left in it.
    """
    there = path.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    state = (
        f"{path}" if there == path.expanduser().absolute() else f"{path} (made when it is needed)"
    )
    if not there.is_dir():
        return Finding(
            label,
            f"{path}: {there} is a file, not a folder",
            "trouble",
            "move it away, or choose another place",
        )
    try:
        with tempfile.TemporaryFile(dir=there) as scratch:
            scratch.write(b"x")
            scratch.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(
            label,
            f"{state}: {there} cannot be written ({error.strerror or error})",
            "trouble",
            "mend its rights, free some space, or choose another place",
        )
    return space(label, state, free)


def space(label: str, state: str, free: int) -> Finding:
    """What so much free space (bytes) is good for."""
    found = f"{state}, {free / GB:,.1f} GB free"
    if free < SCARCE:
        return Finding(
            label,
            found,
            "trouble",
            f"less than {SCARCE / GB:.0f} GB: free some space, or choose another disk",
        )
    if free < TIGHT:
        return Finding(
            label,
            found,
            "note",
            f"less than {TIGHT / GB:.0f} GB: checkpoints take 12 bytes a parameter, and up to three"
            " are kept",
        )
    return Finding(label, found)


def data_findings(location: str, *, verify: bool) -> list[Finding]:
    """The folder of the data and the datasets in it; of data behind a URL, the folder that
    caches it.
    """
    if is_remote(location):
        return [folder(f"cache of {location}", cache_folder(location, None))]
    return [
        folder("data folder", Path(location)),
        *datasets(Path(location).expanduser(), verify=verify),
    ]


def datasets(path: Path, *, verify: bool) -> list[Finding]:
    """The dataset at a path, or those in it.

    Args:
        path: A dataset, a folder of datasets, or a place where none is yet.
        verify: Compute the sha256 of every file, instead of comparing sizes.
    """
    found = (
        [path]
        if (path / MANIFEST_FILENAME).exists()
        else sorted(file.parent for file in path.glob(f"*/{MANIFEST_FILENAME}"))
    )
    if not found:
        return [
            Finding(
                "dataset",
                f"none in {path} yet; `lit_pretrain prepare --config configs/prepare/embedded.yaml`"
                " makes one without a download",
            )
        ]
    return [finding for one in found for finding in _dataset(one, verify=verify)]


def _dataset(path: Path, *, verify: bool) -> list[Finding]:
    label = f"dataset {path.name}"
    try:
        manifest = Manifest.load(path)
    except UserError as error:
        return [_trouble(label, str(error))]
    damaged = manifests.verify(path, manifest) if verify else []
    chunks = size = 0
    for name, source in manifest.sources.items():
        for split, part in source.splits.items():
            for chunk in part.chunks:
                chunks, size = chunks + 1, size + chunk.bytes
                file = path / split / name / chunk.filename
                if not verify and not (file.is_file() and file.stat().st_size == chunk.bytes):
                    try:
                        verify_chunk(file, chunk)  # names what is wrong
                    except UserError as error:
                        damaged.append(str(error))
    if reason := _tokenizer_trouble(path / "tokenizer.json", manifest.tokenizer.hash):
        damaged.append(reason)
    if damaged:
        more = (
            [Finding(label, f"and {len(damaged) - NAMED} more like these", "trouble")]
            if len(damaged) > NAMED
            else []
        )
        return [*(_trouble(label, message) for message in damaged[:NAMED]), *more]
    counts = (
        f"{manifest.tokens('train'):,} training tokens in {chunks} chunks of {size / 1e6:,.1f} MB"
    )
    checked = (
        "every sha256 is right" if verify else "every size is right (--verify compares contents)"
    )
    return [Finding(label, f"{path}: {', '.join(manifest.sources)}; {counts}; {checked}")]


def _tokenizer_trouble(file: Path, expected: str) -> str | None:
    mend = (
        "Copy it again from where the dataset came from, or delete the dataset's directory and run"
        " `lit_pretrain prepare` again."
    )
    try:
        found = canonical_hash(load_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return f"{file} cannot be read: {error}. {mend}"
    return (
        None
        if found == expected
        else (
            f"{file} is not the tokenizer that encoded the data: its hash is {found}, the manifest"
            f" says {expected}. {mend}"
        )
    )


def _trouble(label: str, message: str) -> Finding:
    """A message that says first what is wrong and last what to do, taken apart."""
    what, _, advice = message.rstrip(".").rpartition(". ")
    return Finding(label, what or message, "trouble", advice if what else "")
