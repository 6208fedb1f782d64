"""The pipeline: find → clean → compare → hold out → train a tokenizer → encode → record.

A finished dataset is not made again: it is compared with what the config and its input describe.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.evaluation_set import content_sha256
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash, content_hash, file_sha256, is_remote
from lit_pretrain.prepare.funnel import REJECTS_FILENAME
from lit_pretrain.prepare.inputs import InputFile, Inputs, find_inputs
from lit_pretrain.prepare.missing_segmenter import warn_after, warn_before
from lit_pretrain.prepare.preparation import (
    Preparation,
    check_free,
    clear_partial_directory,
    workspace,
)
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import say, show_progress
from lit_pretrain.prepare.record import record, write_rejects
from lit_pretrain.prepare.stages.clean import CleanTask, check_read, decontamination_index_file
from lit_pretrain.prepare.stages.compare import compare_corpus
from lit_pretrain.prepare.stages.encode import EncodeTask
from lit_pretrain.prepare.stages.hold_out import hold_out
from lit_pretrain.prepare.stages.ids import drop_ids
from lit_pretrain.prepare.stages.keep_best import keep_best
from lit_pretrain.prepare.stages.train_tokenizer import (
    check_encoder,
    load_tokenizer,
    train_tokenizer,
)
from lit_pretrain.prepare.versions import CONTENTS, versions
from lit_pretrain.record_files import read_records
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def prepare(config: PrepareConfig) -> Manifest:
    """Turn raw text into a finished dataset directory, or find that it is there already.

    The result is a function of the config and the input: the same bytes for any engine and number
    of workers, on any day. `config.out` appears whole, at the end. Tasks that finished before a
    fault are kept beside it, and the same call goes on from there.

    Args:
        config: What to prepare.

    Returns:
        The manifest of `config.out`.

    Raises:
        UserError: The config, the input or the disk is at fault; the message says what to do.
    """
    config.validate()
    out = Path(config.out).expanduser()
    if (out / manifests.MANIFEST_FILENAME).exists():
        existing = Manifest.load(out)
        refuse_difference(out, existing, config)
        clear_partial_directory(out)
        say(
            f"{out} is already prepared with this config ({existing.tokens('train'):,} training"
            " tokens); nothing to do"
        )
        return existing
    inputs = _find(config)
    warned = warn_before(config, inputs)
    index = (
        None if config.decontaminate is None else DecontaminationIndex.build(config.decontaminate)
    )
    given = load_tokenizer(config.tokenizer)
    check_free(out)
    library_versions = versions(config)
    state = _state(config, inputs, given, index, library_versions)
    with workspace(out, state) as work:
        run = Preparation(config, inputs, work.absolute(), state, library_versions)
        return _run(run, index, given, warned)


def _run(
    run: Preparation,
    index: DecontaminationIndex | None,
    tokenizer: Tokenizer | None,
    warned: set[str],
) -> Manifest:
    """Run all stages; return the manifest that the last one has written.

    Args:
        run: The run.
        index: Index of the evaluation sets; None if no set is checked.
        tokenizer: The tokenizer of the config; None if one is trained.
        warned: Sources that are known to need a segmenter.
    """
    config, parts, work = run.config, run.parts, run.work
    run.dataset.mkdir(exist_ok=True)
    if index is not None:
        index.save(decontamination_index_file(work))
    run.clean = run.do(
        "clean", "read and clean", CleanTask(config, parts, work), [part.bytes for part in parts]
    )
    for name in run.inputs:
        languages = sum(
            (Counter(run.clean[n]["unsegmented"]) for n in run.parts_of(name)), Counter()
        )
        if languages and name not in warned:
            warn_after(name, languages)
    _check_documents(run)
    keep_best(run)
    drop_ids(run)
    run.number_documents()
    compare_corpus(run)
    hold_out(run)
    if tokenizer is None:
        tokenizer = train_tokenizer(run)
    check_encoder(run, tokenizer)
    # 65,536 ids fit uint16. Larger vocabularies get int32, for torch has few operations on uint32.
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
    encoded = run.do(
        "encode",
        "encode",
        EncodeTask(config, parts, work, tokenizer, dtype, run.begins),
        run.bytes_left(),
    )
    return record(run, index, tokenizer, dtype, encoded)


def _check_documents(run: Preparation) -> None:
    """Refuse sources of which too much could not be read, or of which no document is left.

    What reading found stays, with a sample of what was rejected: a person can look at it, and
    `max_bad_fraction` or `allow_empty` go on from there.

    Raises:
        UserError: Names all such sources.
    """
    mistakes, empty = [], []
    for name in run.inputs:
        try:
            check_read(
                name, [run.clean[n] for n in run.parts_of(name)], run.config.max_bad_fraction
            )
        except UserError as error:
            mistakes.append(str(error))
            continue
        steps = list(run.funnel(name).steps.values())
        if not steps[-1].documents:
            left = (
                ", ".join(
                    f"{count:,} {reason}"
                    for step in steps
                    for reason, count in sorted(step.removed.items())
                )
                or "it has no rows"
            )
            empty.append(f"sources.{name} holds no document ({left})")
    if run.config.allow_empty and len(empty) + len(mistakes) < len(run.inputs):
        for line in empty:
            say(f"{line}; it stays empty")
    elif empty:
        mistakes.append(
            "; ".join(empty) + ". Correct the path or the filters, remove the source from"
            " `sources`, or set `allow_empty: true` (which goes on from here) if another has text."
        )
    if mistakes:
        report = run.work / "refused"
        write_rejects(run, report)
        if (report / REJECTS_FILENAME).exists():
            mistakes.append(f"Samples of what was left out: {report / REJECTS_FILENAME}")
        raise UserError("\n".join(mistakes))


def _find(config: PrepareConfig) -> dict[str, Inputs]:
    """Find the files of every source.

    Some distributions ship Python without its tests: that source is left out with a warning.
    """
    inputs: dict[str, Inputs] = {}
    for name, source in config.sources.items():
        found = find_inputs(name, source)
        if found.files:
            inputs[name] = found
        else:
            say(
                f"sources.{name} is left out: this Python's standard library ({found.base}) ships"
                f" no {source.part}"
            )
    if not inputs:
        raise UserError("no source has any file; give at least one that has (see the lines above)")
    return inputs


def _state(
    config: PrepareConfig,
    inputs: dict[str, Inputs],
    given: Tokenizer | None,
    index: DecontaminationIndex | None,
    library_versions: dict[str, str],
) -> str:
    """Hash what two runs must share for one to go on with the other's files."""
    files = {
        name: [
            (file.name, file.location, file.bytes, file.version, _last_change(file.location))
            for file in found.files
        ]
        for name, found in inputs.items()
    }
    facts = {
        "config": config.identity(),
        "keep_rejects": config.keep_rejects,
        "files": files,
        "tokenizer": None if given is None else given.hash,
        "evaluation_sets": None if index is None else index.hash,
        "versions": library_versions,
    }
    return canonical_hash(facts)


def _last_change(location: str) -> tuple[int, int] | None:
    """Read when a local file last changed, in ns; None for a remote one.

    Anybody can set the time of its content, but only the system that of its entry.
    """
    try:
        status = os.stat(location)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns


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
