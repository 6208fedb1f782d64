"""No file name in an artefact leads out of its folder, whichever field holds it."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from lit_pretrain.checkpoint.digests import damage
from lit_pretrain.checkpoint.hf_import import HF_INDEX, weight_files
from lit_pretrain.checkpoint.layout import RECORD_KEY, SHARDED_ENTRIES, STANDALONE_KEY, best
from lit_pretrain.checkpoint.shards import SHARDS_INDEX, read_index
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.files import check_plain_names, follow_umask, seal_json
from lit_pretrain.interface import LoadedModel

BAD = ("../x", "/etc/passwd", "..", ".", "", "a/../../x", "a//x", "a\\..\\x", "x\0", "a\nb")
LIES_BELOW = "folder/x"


@pytest.mark.parametrize("name", [*BAD, 7, None])
def test_bad_names(name: Any) -> None:
    for folders in (False, True):
        with pytest.raises(UserError, match="not the plain name of a file"):
            check_plain_names(["fine", name], "here", folders=folders)
    check_plain_names(["fine", LIES_BELOW, ".hidden", "..."], "here", folders=True)
    with pytest.raises(UserError, match="here names 'folder/x'"):
        check_plain_names([LIES_BELOW], "here")


def _manifest_fields(manifest: Manifest, name: str) -> list[Manifest]:
    """Copies of a manifest with the name in every field that names a file or folder."""
    source = manifest.sources["code"]
    part = source.splits["train"]
    chunks = (dataclasses.replace(part.chunks[0], filename=name), *part.chunks[1:])
    splits = {**source.splits, "train": dataclasses.replace(part, chunks=chunks)}
    new = dataclasses.replace
    return [
        new(manifest, sources={"code": new(source, splits=splits)}),
        new(manifest, sources={name: source}),
        new(manifest, sources={"code": new(source, splits={**source.splits, name: part})}),
        new(manifest, files={name: "0" * 64}),
    ]


@pytest.mark.parametrize("name", BAD)
def test_manifest(dataset: Path, tmp_path: Path, name: str) -> None:
    for changed in _manifest_fields(Manifest.load(dataset), name):
        (tmp_path / MANIFEST_FILENAME).write_text(changed.dump(), encoding="utf-8")
        with pytest.raises(UserError, match="not the plain name of a file"):
            Manifest.load(tmp_path)


def _weight_map(folder: Path, name: str) -> object:
    (folder / HF_INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    return weight_files(folder)


def _digests(folder: Path, name: str) -> object:
    file = folder / "digests.json"
    file.write_text(
        seal_json({"format_version": 1, "files": {name: {"bytes": 1, "xxh3_128": "0"}}})
    )
    raise UserError(str(damage(folder)))


def _index(folder: Path, name: str) -> object:
    index = read_index(folder)
    for part in index.storage_data.values():
        part.relative_path = name
    (folder / SHARDS_INDEX).write_bytes(pickle.dumps(index))
    return read_index(folder)


def _best(folder: Path, name: str) -> object:
    run = folder.parent.parent
    (run / "checkpoints" / "best.json").write_text(
        json.dumps({"checkpoint": name, "loss": 1.0, "step": 1})
    )
    assert best(run) is None
    raise UserError("not the plain name of a file")  # it was passed over


def _standalone(folder: Path, name: str) -> object:
    file = folder / "model.ckpt"
    entries = {"net": {"vocab_size": 4}, "files": {name: ""}}
    torch.save({"state_dict": {}, RECORD_KEY: {}, STANDALONE_KEY: entries}, file)
    return LoadedModel.from_place(str(file), device="cpu")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("write", [_weight_map, _digests, _index, _best, _standalone])
def test_artefacts(
    sharded: Path, tmp_path: Path, write: Callable[[Path, str], object], name: str
) -> None:
    folder = tmp_path / "run" / "checkpoints" / sharded.name
    shutil.copytree(sharded, folder)
    with pytest.raises(UserError, match="not the plain name of a file"):
        write(folder, name)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint of one rank."""
    folder = tmp_path_factory.mktemp("sharded") / "step=00000001.ckpt"
    save(
        {"state_dict": {"a": torch.ones(3)}}, storage_writer=FileSystemWriter(folder), no_dist=True
    )
    torch.save({RECORD_KEY: {"step": 1, "contract": {}}}, folder / SHARDED_ENTRIES)
    return folder


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_rights_follow_the_umask(tmp_path: Path, mask: int) -> None:
    file = tmp_path / "private"
    file.touch(mode=0o600)
    before = os.umask(mask)
    try:
        follow_umask(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [file]
