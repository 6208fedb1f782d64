"""Rerun: check that a finished dataset is what the config and its input describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.decontaminate.evaluation_set import content_sha256
from lit_pretrain.errors import UserError
from lit_pretrain.files import content_hash, file_sha256, is_remote
from lit_pretrain.prepare.inputs import InputFile, Inputs, find_inputs
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import say, show_progress
from lit_pretrain.prepare.stages.train_tokenizer import load_tokenizer
from lit_pretrain.prepare.versions import CONTENTS, versions
from lit_pretrain.record_files import read_records


def refuse_difference(out: Path, existing: Manifest, config: PrepareConfig) -> None:
    """Compare a finished dataset with a config, and with its input as far as that still exists.

    Raises:
        UserError: They differ; names each field with both values.
    """
    before, now = _flat(existing.config), _flat(config.identity())
    differences = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if not differences:
        differences = [
            *_changed_inputs(existing, config),
            *_changed_tokenizer(existing, config),
            *_changed_evaluation_sets(existing, config),
            *_changed_filters(existing, config),
        ]
    if differences:
        raise UserError(
            f"{out} was prepared from another config or input:\n  "
            + "\n  ".join(differences)
            + "\nChoose another `out`, or remove that directory to prepare it again."
        )


def _changed_inputs(existing: Manifest, config: PrepareConfig) -> Iterator[str]:
    """Find sources with other files than those that were read, or with other content.

    Raw text may be gone: the dataset is complete.

    Every local file is read. Sizes and times alone would be quicker and sometimes wrong: an edit
    may keep both (`cp -p`, `rsync -t`). Remote files are not fetched: their server's ETag or time
    of change decides, so that an upload of the same bytes may count as a change.
    """
    for name, source in config.sources.items():
        remote = any(is_remote(path) for path in source.paths)
        if source.hub is not None or any(
            not is_remote(path) and not Path(path).expanduser().exists() for path in source.paths
        ):
            continue
        try:
            found = find_inputs(name, source)
        except UserError as error:
            if not remote:
                raise
            say(
                f"sources.{name} is not compared with what was read, because it cannot be reached"
                f" any more: {error}"
            )
            continue
        record = existing.sources.get(name)
        there = (record.files, record.input_bytes) if record else (0, 0)
        if there != (len(found.files), found.bytes):
            here = f"{len(found.files):,} files of {found.bytes:,} bytes here"
            yield f"input of sources.{name}: {there[0]:,} files of {there[1]:,} bytes there, {here}"
        elif record is not None and remote:
            remote_sha256 = found.remote_hash(lambda file: file_sha256(file.location))
            if record.remote_sha256 is not None and remote_sha256 != record.remote_sha256:
                yield (
                    f"files of sources.{name}, as their server tells them apart (ETag, else time of"
                    f" change): sha256 {record.remote_sha256} there, {remote_sha256} here"
                )
        elif record is not None and (content := _content(name, found)) != record.content_sha256:
            yield (
                f"content of the files of sources.{name}: sha256 {record.content_sha256} there,"
                f" {content} here"
            )


def _content(name: str, found: Inputs) -> str:
    """Hash the files of a source, in threads: hashing releases the lock of the interpreter."""

    def read(file: InputFile) -> tuple[str, str]:
        sha256 = file_sha256(file.location)
        advance(file.bytes)
        return file.name, sha256

    with (
        show_progress(f"compare the files of {name} with those that were read", found.bytes) as (
            advance,
            _,
        ),
        ThreadPoolExecutor(8) as pool,
    ):
        return content_hash(pool.map(read, found.files))


def _changed_tokenizer(existing: Manifest, config: PrepareConfig) -> Iterator[str]:
    """Find whether the tokenizer file is another than the one that encoded the data."""
    path = config.tokenizer.path
    if path is not None and Path(path).expanduser().exists():
        given = load_tokenizer(config.tokenizer)
        if given is not None and given.hash != existing.tokenizer.hash:
            yield (
                f"content of tokenizer.path: sha256 {existing.tokenizer.hash} there, {given.hash}"
                " here"
            )


def _changed_evaluation_sets(existing: Manifest, config: PrepareConfig) -> Iterator[str]:
    """Find evaluation sets with other records than those that the data was checked against."""
    if config.decontaminate is None:
        return
    there = {record.name: record.content_sha256 for record in existing.decontamination}
    for name, evaluation_set in config.decontaminate.against.items():
        if Path(evaluation_set.path).expanduser().exists():
            here = content_sha256(read_records(evaluation_set.path, evaluation_set.separator))
            if here != there.get(name):
                yield (
                    f"content of decontaminate.against.{name}: sha256 {there.get(name)} there,"
                    f" {here} here"
                )


def _changed_filters(existing: Manifest, config: PrepareConfig) -> Iterator[str]:
    """Find the user's own filters, and lists that filters read, with another content."""
    for name, here in versions(config).items():
        there = existing.versions.get(name)
        if name.startswith(CONTENTS) and here not in (there, "missing"):
            yield f"content of {name}: {there} there, {here} here"


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings to dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        key: leaf
        for name, child in value.items()
        for key, leaf in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }
