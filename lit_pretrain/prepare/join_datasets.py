"""Join finished datasets of one tokenizer into one, without encoding anything again."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.manifest import Manifest, Source
from lit_pretrain.decontaminate.evaluation_set import (
    DecontaminationRecord,
    DecontaminationTally,
)
from lit_pretrain.errors import UserError
from lit_pretrain.files import atomic_path, canonical_hash, file_sha256
from lit_pretrain.plain_data import load_json
from lit_pretrain.prepare.dedup.dedup_report import DEDUP_FILENAME
from lit_pretrain.prepare.funnel import REJECTS_FILENAME
from lit_pretrain.prepare.preparation import check_free
from lit_pretrain.prepare.progress_table import say
from lit_pretrain.prepare.record import DECONTAMINATION_FILENAME
from lit_pretrain.tokenizer import tokenizer_files

JOINED = "joined"
"""Folder of the dataset with the manifest and the reports of each of its parts."""
_REPORTS = (
    manifests.MANIFEST_FILENAME,
    REJECTS_FILENAME,
    DEDUP_FILENAME,
    DECONTAMINATION_FILENAME,
)


def join(out: str, datasets: Sequence[str]) -> Manifest:
    """Write a dataset that holds the sources of several.

    Chunks are linked if the file system can do that, so that they take no more room, and otherwise
    copied. Documents are not compared: one that two of the datasets hold is in the result twice.

    Args:
        out: The directory of the new dataset; it appears whole.
        datasets: Prepared datasets with the same tokenizer, splits and seed.

    Returns:
        The manifest of `out`.

    Raises:
        UserError: The datasets do not fit together, or a file is missing or cannot be written.
    """
    target = Path(out).expanduser()
    check_free(target)
    if len(datasets) < 2:
        raise UserError("join needs two datasets at least")
    paths = [Path(path).expanduser() for path in datasets]
    found = [Manifest.load(path) for path in paths]
    _check_fit(paths, found)
    labels = _labels(paths)
    names = _source_names(labels, found)
    for path, manifest in zip(paths, found, strict=True):
        if by_bytes := [
            name
            for name, source in manifest.sources.items()
            if set(source.held_out.values()) - {"hash"}
        ]:
            say(
                f"{path} holds text of {', '.join(by_bytes)} out by bytes and not by its hash:"
                " where another dataset has the same text, the result may hold it out and train on"
                " it, too"
            )
    try:
        with atomic_path(target) as scratch:
            return _write(scratch, paths, found, labels, names)
    except OSError as error:
        raise UserError(
            f"cannot join into {target}: {error.strerror or error} ({error.filename})"
        ) from None


def _check_fit(paths: Sequence[Path], found: Sequence[Manifest]) -> None:
    """Refuse datasets whose tokens, or whose splits, do not mean the same."""
    first = found[0]
    for place, (path, manifest) in enumerate(zip(paths, found, strict=True)):
        for what, theirs, ours in (
            ("tokenizer.hash", manifest.tokenizer.hash, first.tokenizer.hash),
            ("tokenizer.bos", manifest.tokenizer.bos, first.tokenizer.bos),
            ("tokenizer.eos", manifest.tokenizer.eos, first.tokenizer.eos),
            ("dtype", manifest.dtype, first.dtype),
            # With other splits, one may train on a document that the other holds out.
            ("splits", dict(manifest.splits), dict(first.splits)),
            ("seed", manifest.config.get("seed"), first.config.get("seed")),
        ):
            if theirs != ours:
                raise UserError(
                    f"{path} and {paths[0]} cannot be joined: {what} is {theirs!r} there and"
                    f" {ours!r} here. Prepare one of them again with the splits and seed of the"
                    " other and `tokenizer: {kind: file, path: ...}`."
                )
        if manifest.hash in [earlier.hash for earlier in found[:place]]:
            raise UserError(
                f"{path} holds the same tokens as one that is named before it; name it once"
            )


def _labels(paths: Sequence[Path]) -> list[str]:
    """Name the datasets in the result by their folders."""
    labels = [path.resolve().name for path in paths]
    for label, count in Counter(labels).items():
        if count > 1:
            raise UserError(
                f"{count} of the datasets are called {label}; their folders must have different"
                " names"
            )
    return labels


def _source_names(labels: Sequence[str], found: Sequence[Manifest]) -> list[dict[str, str]]:
    """Map, for each dataset, the names of its sources to those in the result.

    A name that occurs in several datasets is prefixed with the name of its dataset.
    """
    counts = Counter(name for manifest in found for name in manifest.sources)
    names = [
        {name: f"{label}_{name}" if counts[name] > 1 else name for name in manifest.sources}
        for label, manifest in zip(labels, found, strict=True)
    ]
    for name, count in Counter(new for mine in names for new in mine.values()).items():
        if count > 1:
            raise UserError(
                f"{count} sources would be called {name}; rename the folder of one of the datasets"
            )
    return names


def _write(
    out: Path,
    paths: Sequence[Path],
    found: Sequence[Manifest],
    labels: Sequence[str],
    names: Sequence[Mapping[str, str]],
) -> Manifest:
    """Write all files, the manifest last."""
    out.mkdir()
    files: dict[str, str] = {}
    sources: dict[str, Source] = {}
    for path, manifest, label, mine in zip(paths, found, labels, names, strict=True):
        for old, new in mine.items():
            source = sources[new] = manifest.sources[old]
            for split, part in source.splits.items():
                for chunk in part.chunks:
                    _link(
                        path / split / old / chunk.filename,
                        out / split / new / chunk.filename,
                        chunk.bytes,
                    )
                for name in manifest.files:
                    if name.startswith(f"{split}/{old}/"):
                        moved = f"{split}/{new}/{name.rpartition('/')[2]}"
                        _link(path / name, out / moved)
                        files[moved] = manifest.files[name]
        for name in _REPORTS:
            if (path / name).exists():
                _link(path / name, out / JOINED / label / name)
                files[f"{JOINED}/{label}/{name}"] = file_sha256(out / JOINED / label / name)
    for name in (tokenizer_files.TOKENIZER_FILENAME, tokenizer_files.CONFIG_FILENAME):
        _link(paths[0] / name, out / name)
        files[name] = found[0].files[name]
    config = {
        JOINED: {
            label: {"hash": one.hash, "config_hash": one.config_hash}
            for label, one in zip(labels, found, strict=True)
        }
    }
    versions = {
        name: {one.versions[name] for one in found if name in one.versions}
        for one in found
        for name in one.versions
    }
    manifest = dataclasses.replace(
        found[0],
        sources=sources,
        config=config,
        config_hash=canonical_hash(config),
        versions={name: " and ".join(sorted(values)) for name, values in versions.items()},
        files=dict(sorted(files.items())),
        decontamination=tuple(_decontamination_records(paths, found)),
    )
    (out / manifests.MANIFEST_FILENAME).write_text(manifest.dump(), encoding="utf-8")
    return manifest


def _link(source: Path, target: Path, size: int | None = None) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise UserError(
            f"{source} is missing; restore it from a good copy, or prepare that dataset again"
        ) from None
    except OSError:
        shutil.copyfile(source, target)
    if size is not None and (here := target.stat().st_size) != size:
        raise UserError(
            f"{source} has {here:,} bytes, its manifest says {size:,}; restore it from a good copy"
        )


def _decontamination_records(
    paths: Sequence[Path], found: Sequence[Manifest]
) -> Iterator[DecontaminationRecord]:
    """Yield the evaluation sets that all datasets were checked against in the same way.

    For any other set, nobody can say that the whole is clean.
    """

    def way(record: DecontaminationRecord) -> tuple[object, ...]:
        return record.content_sha256, record.fields, record.ngram, record.min_words, record.action

    by_way = [{way(record): record for record in manifest.decontamination} for manifest in found]
    for key in dict.fromkeys(key for mine in by_way for key in mine):
        records = [mine[key] for mine in by_way if key in mine]
        if len(records) < len(found):
            without = ", ".join(
                str(path) for path, mine in zip(paths, by_way, strict=True) if key not in mine
            )
            say(
                f"the result counts as not checked against the evaluation set {records[0].name}:"
                f" {without} was not, or not in the same way"
            )
            continue
        items: Counter[int] = Counter()
        for path, record in zip(paths, records, strict=True):
            tally = DecontaminationTally.from_json(
                load_json((path / DECONTAMINATION_FILENAME).read_text(encoding="utf-8"))
            )
            if record.name in tally.sets:
                items.update(tally.sets[record.name].items)
        yield dataclasses.replace(
            records[0],
            documents_hit=sum(record.documents_hit for record in records),
            items_hit=len(items),
        )
