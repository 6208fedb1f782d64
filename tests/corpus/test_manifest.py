"""The manifest: written and read back whole, an identity that follows the data, and chunks that
are checked.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.corpus.manifest import (
    Chunk,
    Manifest,
    Source,
    SourceSplit,
    Step,
    TokenizerRecord,
    verify,
    verify_chunk,
)
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash, content_hash

CHUNK = Chunk(filename="chunk-0-0.bin", tokens=10, documents=2, bytes=36, sha256="ab" * 32)
SPLIT = SourceSplit(documents=2, tokens=10, bytes=31, chunks=(CHUNK,))
EMPTY = SourceSplit(documents=0, tokens=0, bytes=0, chunks=())


def source(**changes: Any) -> Source:
    fields: dict[str, Any] = {
        "kind": "text",
        "origin": "Grüße",
        "licence": "MIT",
        "files": 1,
        "input_bytes": 31,
        "content_sha256": "ef" * 32,
        "path": "texts",
        "funnel": (
            Step(
                name="read",
                documents=3,
                bytes=30,
                tokens=12,
                tokens_estimated=True,
                removed={"empty": 1},
                changed={},
            ),
        ),
        "splits": {"train": SPLIT, "validation": EMPTY, "test": EMPTY},
    }
    return Source(**{**fields, **changes})


def manifest(**changes: Any) -> Manifest:
    record = TokenizerRecord(
        hash="cd" * 32,
        vocab_size=300,
        bos="<s>",
        eos="</s>",
        bos_id=0,
        eos_id=1,
        pattern="cl100k",
        kind="train",
    )
    fields: dict[str, Any] = {
        "tokenizer": record,
        "dtype": "uint16",
        "splits": {"train": 0.9, "validation": 0.1, "test": 0.0},
        "sources": {"one": source(), "two": source()},
        "config": {"seed": 0},
        "config_hash": canonical_hash({"seed": 0}),
        "versions": {"python": "3.11"},
        "files": {"tokenizer.json": "01" * 32},
    }
    return Manifest(**{**fields, **changes})


def test_dump_and_parse_are_inverse() -> None:
    assert Manifest.parse(manifest().dump(), "here") == manifest()
    assert Manifest.parse(manifest().dump(), "here").dump() == manifest().dump()
    assert json.loads(manifest().dump())["hash"] == manifest().hash
    assert list(Manifest.parse(manifest().dump(), "here").sources) == ["one", "two"]


def test_counts() -> None:
    assert manifest().tokens("train") == 20
    assert manifest().tokens("test") == 0
    assert source().tokens == 10


@pytest.mark.parametrize(
    "other",
    [
        manifest(versions={"python": "3.12"}),
        manifest(config={"seed": 1}, config_hash="x"),
        manifest(splits={"train": 1.0, "validation": 0.0, "test": 0.0}),
        manifest(
            sources={
                "one": source(licence="CC0-1.0", origin=None, files=3),
                "two": source(funnel=()),
            }
        ),
    ],
)
def test_hash_ignores_what_does_not_change_the_data(other: Manifest) -> None:
    assert other.hash == manifest().hash


@pytest.mark.parametrize(
    "other",
    [
        manifest(dtype="int32"),
        manifest(sources={"one": source(), "three": source()}),
        manifest(sources={"one": source()}),
        manifest(tokenizer=dataclasses.replace(manifest().tokenizer, hash="ef" * 32)),
        manifest(tokenizer=dataclasses.replace(manifest().tokenizer, eos_id=0)),
        *(
            manifest(
                sources={
                    "one": source(splits={"train": split, "validation": EMPTY, "test": EMPTY}),
                    "two": source(),
                }
            )
            for split in (
                dataclasses.replace(SPLIT, documents=3),
                *(
                    dataclasses.replace(SPLIT, chunks=(dataclasses.replace(CHUNK, **change),))
                    for change in ({"sha256": "00" * 32}, {"tokens": 11})
                ),
            )
        ),
    ],
)
def test_hash_sees_what_changes_the_data(other: Manifest) -> None:
    assert other.hash != manifest().hash


def test_what_is_no_dataset_says_what_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (
        "data/mine/manifest.json", "runs/a/checkpoints/step=00000001.ckpt", "texts/a/b.MD",
        "pages/index.html", "rows/a.jsonl", "tables/part.parquet", "other/a.pdf",
    ):  # fmt: skip
        Path(file).parent.mkdir(parents=True)
        Path(file).touch()
    for place, said in {
        "data/mien": "data/mien/manifest.json does not exist. Did you mean 'data/mine'?",
        "data": "it is a folder of datasets; give one of them: data/mine",
        "runs/a": "it is a run folder",
        "texts": "--sources.mine.kind text --sources.mine.path texts --out data/mine",
        "pages/index.html": "--sources.mine.kind html --sources.mine.path pages/index.html",
        "rows": "(rows to post-train on are given by data.sources instead): lit_pretrain prepare"
        " --sources.mine.kind jsonl",
        "tables": "--sources.mine.kind parquet",
        "other": "it holds no manifest.json; give a folder that `lit_pretrain prepare` has written",
    }.items():
        with pytest.raises(UserError, match=r"^no prepared dataset at ") as error:
            Manifest.load(place)
        assert said in str(error.value)


def test_missing_manifest_says_what_to_run(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no prepared dataset at .*lit_pretrain prepare --config"):
        Manifest.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no prepared dataset"):
        Manifest.load(tmp_path / "file")


def test_load(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text(manifest().dump(), encoding="utf-8")
    assert Manifest.load(tmp_path) == manifest()
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Manifest.load(tmp_path)


def old(text: str) -> str:
    """The manifest as older versions wrote it, without a digest of all of it."""
    content = json.loads(text)
    del content["digest"]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def test_a_manifest_without_digest_is_read() -> None:
    assert Manifest.parse(old(manifest().dump()), "here") == manifest()


def test_every_flipped_bit_is_noticed() -> None:
    """The hash covers the data alone; the digest covers licences, origins and decontamination."""
    data = manifest().dump().encode()
    before = Manifest.parse(data.decode(), "here")
    refused = 0
    for bit in range(0, 8 * len(data), 7):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert Manifest.parse(changed.decode(), "here") == before, bit  # white space
        except (UserError, UnicodeDecodeError):
            refused += 1
    assert refused > 0.8 * len(data) * 8 / 7


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "[]", "expected a JSON object, found list"),
        (lambda text: "{}", "format_version None; this lit_pretrain reads 3"),
        (
            lambda text: text.replace('"format_version": 3', '"format_version": 2'),
            "format_version 2",
        ),
        (lambda text: text.replace('"dtype"', '"dtypes"'), "does not have the digest"),
        (lambda text: text.replace('"digest"', '"dogest"'), "nobody wrote the field 'dogest'"),
        (
            lambda text: text.replace('"licence": "MIT"', '"licence": "MIX"'),
            "does not have the digest",
        ),
        # As older versions wrote it, without a digest.
        (lambda text: old(text).replace('"dtype"', '"dtypes"'), "the field 'dtypes'"),
        (
            lambda text: old(text).replace('"versions": {', '"versions": [], "_": {'),
            "the field '_'",
        ),
        (lambda text: old(text).replace('"tokens": 10', '"token": 10'), "a field is missing"),
        (
            lambda text: old(text).replace('"tokens": 10', '"tokens": 12'),
            "its content has the hash",
        ),
    ],
)
def test_damaged_manifest_is_refused(edit, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Manifest.parse(edit(manifest().dump()), "s3://bucket/manifest.json")
    assert "s3://bucket/manifest.json" in str(caught.value)


def test_verify_chunk(tmp_path) -> None:
    path = tmp_path / "chunk-0-0.bin"
    data = bytes(range(36))
    expected = dataclasses.replace(CHUNK, sha256=hashlib.sha256(data).hexdigest())
    path.write_bytes(data)
    verify_chunk(path, expected)
    for content, message in (
        (data[:-1], "is truncated: 35 bytes on disk, 36 in the manifest"),
        (data + b"x", "is too long: 37 bytes"),
        (data[:-1] + b"\x00", "is corrupted: sha256 is"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            verify_chunk(path, expected)
        assert str(path) in str(caught.value)
        assert expected.sha256 in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=f"is missing .*{expected.sha256}"):
        verify_chunk(path, expected)
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot be read|on disk"):
        verify_chunk(path, expected)


def test_verify_lists_every_bad_file(tmp_path) -> None:
    contents = {
        "train/one/chunk-0-0.bin": bytes(range(36)),
        "tokenizer.json": b"{}",
        "train/one/index.json": b"[]",
        "duplicates.json": b"x",
    }
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    chunk = dataclasses.replace(CHUNK, sha256=hashes.pop("train/one/chunk-0-0.bin"))
    splits = {
        "train": dataclasses.replace(SPLIT, chunks=(chunk,)),
        "validation": EMPTY,
        "test": EMPTY,
    }
    whole = manifest(sources={"one": source(splits=splits)}, files=hashes)
    assert verify(tmp_path, whole) == []
    for name, data in contents.items():  # one flipped bit each
        (tmp_path / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    (tmp_path / "duplicates.json").unlink()
    bad = verify(tmp_path, whole)
    assert [message.partition(" is ")[0].removeprefix("chunk ") for message in bad] == [
        str(tmp_path / name) for name in contents
    ]
    assert "is missing" in bad[-1]
    assert all(
        sha256 in message
        for sha256, message in zip([chunk.sha256, *hashes.values()], bad, strict=True)
    )


def test_content_hash_tells_order_names_and_contents_apart() -> None:
    found = {
        content_hash(files)
        for files in (
            [("a", "1"), ("b", "2")],
            [("b", "2"), ("a", "1")],
            [("a", "1")],
            [("a", "2"), ("b", "1")],
        )
    }
    assert len(found) == 4
    assert content_hash([]) == hashlib.sha256(b"").hexdigest()
