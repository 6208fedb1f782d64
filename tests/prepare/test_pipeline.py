"""`prepare`, from text to a dataset: complete, deterministic, done once, and refused with a
reason where it must be.
"""

import dataclasses
import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litdata import StreamingDataset
from litdata.streaming.item_loader import TokensLoader
from tokenizers import Tokenizer as Reference

from lit_pretrain.corpus.chunk_reader import read_chunk_header
from lit_pretrain.corpus.manifest import SPLITS, Manifest, verify_chunk
from lit_pretrain.data.text.mixture import order_of
from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256
from lit_pretrain.prepare.dedup.dedup_config import ContainmentConfig, DedupConfig, LinesConfig
from lit_pretrain.prepare.filters.filter_spec import FilterSpec
from lit_pretrain.prepare.pipeline import prepare
from lit_pretrain.prepare.prepare_config import (
    PrepareConfig,
    SourceConfig,
    SplitsConfig,
    TokenizerConfig,
)
from lit_pretrain.prepare.progress_table import dataset_table, funnel_table
from lit_pretrain.prepare.read import text_readers as embedded
from lit_pretrain.prepare.read.text_readers import JsonlReader
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe
from lit_pretrain.tokenizer.tokenizer import Tokenizer

STORY = [
    f"Chapter {n}. The {n * 31 % 97}th day: Größe, naïve, 中文; they'll see.\n" * (1 + n % 7)
    for n in range(150)
]
CODE = [f"def function_{n}(x):\n    return x + {n * 37}\n" * (1 + n % 5) for n in range(100)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Text files and a packed table of rows."""
    for n, text in enumerate(STORY):
        path = tmp_path / "story" / f"part{n % 3}" / f"{n:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "code.jsonl").write_text(
        "".join(json.dumps({"content": text}) + "\n" for text in CODE), encoding="utf-8"
    )
    return tmp_path


def config(corpus: Path, out: str = "data", **changes: Any) -> PrepareConfig:
    sources = {
        "story": SourceConfig(
            kind="text", path=str(corpus / "story"), licence="CC0-1.0", origin="made for a test"
        ),
        "code": SourceConfig(
            kind="jsonl", path=str(corpus / "code.jsonl"), fields={"text": "content"}
        ),
    }
    fields: dict[str, Any] = {
        "out": str(corpus / out),
        "sources": sources,
        "tokenizer": TokenizerConfig(vocab_size=330, sample_bytes=20_000),
        "splits": SplitsConfig(validation=0.2, test=0.1),
        "chunk_tokens": 2_000,
        "workers": 1,
    }
    return PrepareConfig(**{**fields, **changes})


def tree(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): file_sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def stored_documents(out: Path, manifest: Manifest, split: str, source: str) -> list[np.ndarray]:
    documents = []
    for chunk in manifest.sources[source].splits[split].chunks:
        data = (out / split / source / chunk.filename).read_bytes()
        offsets = read_chunk_header(io.BytesIO(data))
        documents += [
            np.frombuffer(data[a:b], dtype=manifest.dtype) for a, b in itertools.pairwise(offsets)
        ]
    return documents


def test_every_document_is_stored_once_and_whole(corpus: Path) -> None:
    manifest = prepare(config(corpus))
    out = corpus / "data"
    reference = Reference.from_file(str(out / "tokenizer.json"))
    for source, texts in (("story", STORY), ("code", CODE)):
        found: list[tuple[str, str]] = []
        for split in SPLITS:
            rows = [
                json.loads(line)
                for line in (out / split / source / "documents.jsonl").read_text().splitlines()
            ]
            documents = stored_documents(out, manifest, split, source)
            record = manifest.sources[source].splits[split]
            assert record.documents == len(rows) == len(documents)
            assert record.tokens == sum(map(len, documents)) == sum(row["tokens"] for row in rows)
            assert record.bytes == sum(row["bytes"] for row in rows)
            for row, ids in zip(rows, documents, strict=True):
                assert ids[0] == manifest.tokenizer.bos_id == manifest.tokenizer.eos_id == 0
                assert 0 not in ids[1:]
                text = reference.decode(ids[1:].tolist())
                assert reference.encode(text).ids == ids[1:].tolist()
                assert len(text.encode()) == row["bytes"]
                found.append((text, row["origin"]))
        assert sorted(text for text, _ in found) == sorted(texts)
        for text, origin in found:
            match = re.fullmatch(r"part\d/(\d{3})\.txt|code\.jsonl:(\d+)", origin)
            assert match is not None
            number = int(match[1] or match[2])
            assert texts[number - (source == "code")] == text
    assert sum(manifest.sources["story"].splits[split].documents for split in SPLITS) == 150
    assert {split: manifest.sources["story"].splits[split].documents for split in SPLITS}[
        "train"
    ] in range(90, 120)


def test_manifest_is_true(corpus: Path) -> None:
    manifest = prepare(config(corpus))
    out = corpus / "data"
    assert Manifest.load(out) == manifest
    for name, source in manifest.sources.items():
        for split, record in source.splits.items():
            assert len(record.chunks) > 1 or split != "train"
            for chunk in record.chunks:
                verify_chunk(out / split / name / chunk.filename, chunk)
    story = manifest.sources["story"]
    assert (story.kind, story.licence, story.origin, story.files) == (
        "text",
        "CC0-1.0",
        "made for a test",
        150,
    )
    assert (
        story.input_bytes
        == sum(len(text.encode()) for text in STORY)
        == sum(split.bytes for split in story.splits.values())
    )
    tokenizer = Tokenizer.load(out)
    assert (manifest.tokenizer.hash, manifest.tokenizer.vocab_size, manifest.tokenizer.pattern) == (
        tokenizer.hash,
        330,
        "cl100k",
    )
    assert manifest.dtype == "uint16"
    assert set(manifest.versions) == {
        "lit_pretrain",
        "python",
        "unicode",
        "numpy",
        "pyarrow",
        "regex",
        "tiktoken",
        "tokenizers",
        "xxhash",
    }
    files = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".bin"
    } - {"manifest.json"}
    assert (
        set(manifest.files)
        == files
        >= {"tokenizer.json", "train/story/documents.jsonl", "train/story/index.json"}
    )
    assert all(file_sha256(out / name) == sha256 for name, sha256 in manifest.files.items())
    assert manifest.config["tokenizer"]["vocab_size"] == 330
    assert "out" not in manifest.config
    lines = dataset_table(manifest).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert f"{manifest.tokens('train'):,}" in lines[-3]


def test_litdata_reads_the_whole_of_a_split(corpus: Path) -> None:
    manifest = prepare(config(corpus, chunk_tokens=1_000_000))
    directory = corpus / "data" / "train" / "story"
    dataset = StreamingDataset(
        str(directory), item_loader=TokensLoader(block_size=16), shuffle=False
    )
    read = np.concatenate([dataset[n] for n in range(len(dataset))])
    stored = np.concatenate(stored_documents(corpus / "data", manifest, "train", "story"))
    np.testing.assert_array_equal(read, stored[: len(stored) // 16 * 16])


def test_same_bytes_for_any_number_of_workers(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_pretrain.prepare.stages.encode._BATCH_DOCUMENTS", 7)
    assert (
        prepare(config(corpus, "one", workers=1)).hash
        == prepare(config(corpus, "three", workers=3)).hash
    )
    assert tree(corpus / "one") == tree(corpus / "three")


def test_second_run_does_nothing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare(config(corpus))
    before = {path: path.stat().st_mtime_ns for path in (corpus / "data").rglob("*")}
    assert prepare(config(corpus, workers=2)) == first
    assert "already prepared" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (corpus / "data").rglob("*")} == before


def test_another_config_is_refused_by_field(corpus: Path) -> None:
    prepare(config(corpus))
    with pytest.raises(UserError) as caught:
        prepare(
            config(corpus, seed=1, tokenizer=TokenizerConfig(vocab_size=340, sample_bytes=20_000))
        )
    assert "seed: 0 there, 1 here" in str(caught.value)
    assert "tokenizer.vocab_size: 330 there, 340 here" in str(caught.value)
    assert "chunk_tokens" not in str(caught.value)
    assert "Choose another `out`" in str(caught.value)
    with pytest.raises(UserError, match=r"sources\.code\.kind: 'jsonl' there, None here"):
        prepare(config(corpus, sources={"story": config(corpus).sources["story"]}))


def test_changed_input_is_refused(corpus: Path) -> None:
    prepare(config(corpus))
    (corpus / "story" / "new.txt").write_text("One more.")
    with pytest.raises(
        UserError, match=r"input of sources\.story: 150 files of .* there, 151 files of"
    ):
        prepare(config(corpus))


def test_an_edit_of_the_same_size_is_seen(corpus: Path) -> None:
    first = prepare(config(corpus))
    path = corpus / "story" / "part1" / "001.txt"
    before, facts = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(before.replace("Chapter", "Kapitel"), encoding="utf-8")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # not even the time tells
    with pytest.raises(
        UserError,
        match=(
            r"content of the files of sources\.story: sha256"
            rf" {first.sources['story'].content_sha256} there"
        ),
    ):
        prepare(config(corpus))
    path.write_text(before, encoding="utf-8")
    assert prepare(config(corpus)) == first


def test_another_list_of_a_filter_is_seen(corpus: Path) -> None:
    (corpus / "words.txt").write_text("casino\n")
    url = FilterSpec(
        class_path="Url",
        init_args={"word_files": [str(corpus / "words.txt")], "without_url": "keep"},
    )
    first = prepare(config(corpus, filters=[url]))
    assert prepare(config(corpus, filters=[url])) == first
    (corpus / "words.txt").write_text("poker\n")
    with pytest.raises(UserError, match=r"content of file .*words\.txt: sha256:"):
        prepare(config(corpus, filters=[url]))


def test_a_file_that_changes_while_it_is_read(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus / "code.jsonl"
    read = JsonlReader.records

    def with_a_writer(*arguments: Any) -> Iterator[Any]:
        for number, found in enumerate(read(*arguments)):
            if number == 50:
                path.write_text(path.read_text().replace("return", "RETURN"))
            yield found

    monkeypatch.setattr(JsonlReader, "records", with_a_writer)
    with pytest.raises(UserError, match=r"code\.jsonl changed while it was read"):
        prepare(config(corpus))


def test_work_of_other_versions_is_not_gone_on_with(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An upgrade between a fault and the next run: nothing of the old one is kept."""

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lit_pretrain.prepare.stages.train_tokenizer.train_bpe", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(corpus))
    (before,) = (corpus / ".data.partial").iterdir()
    monkeypatch.setattr("unicodedata.unidata_version", "99.0.0")
    with monkeypatch.context() as patch:
        patch.setattr("lit_pretrain.prepare.stages.train_tokenizer.train_bpe", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(corpus))
    (after,) = (corpus / ".data.partial").iterdir()
    assert before.name != after.name
    assert "going on" not in capsys.readouterr().err
    assert prepare(config(corpus)).versions["unicode"] == "99.0.0"
    assert "going on" in capsys.readouterr().err
    assert not (corpus / ".data.partial").exists()


def test_encoded_parts_outlive_a_fault_after_the_tokenizer(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    def encode_again(*arguments: object) -> None:
        raise AssertionError("the part was encoded before")

    with monkeypatch.context() as patch:
        patch.setattr("lit_pretrain.prepare.pipeline.record", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(corpus))
    monkeypatch.setattr("lit_pretrain.prepare.stages.encode.EncodeTask.__call__", encode_again)
    assert prepare(config(corpus)).tokens("train")


def test_the_table_shows_no_absurd_tokens(corpus: Path) -> None:
    """A step that leaves little of another kind of text: what came before is not measured by it."""
    notice = "the same words on every page of it, again and again and again\n" * 3
    for n in range(30):
        (corpus / "story" / f"notice{n:02d}.txt").write_text(f"{notice}é{n:02d}")
    sources = {"story": dataclasses.replace(config(corpus).sources["story"], glob="notice*.txt")}
    lines = DedupConfig(exact=False, near=None, lines=LinesConfig(min_words=5))
    given = TokenizerConfig(kind="file", path=str(corpus / "tokenizer"))
    (corpus / "tokenizer").mkdir()
    train_bpe([notice, "é0123456789"] * 2, TokenizerConfig(vocab_size=290)).save(
        corpus / "tokenizer"
    )
    manifest = prepare(config(corpus, sources=sources, dedup=lines, tokenizer=given))
    steps = {step.name: step for step in manifest.sources["story"].funnel}
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    texts = [path.read_text() for path in (corpus / "story").glob("notice*.txt")]
    assert steps["read"].tokens_estimated
    assert steps["read"].tokens == sum(
        len(tokenizer.encode(text)) + 1 for text in texts
    )  # few enough to be in the sample as a whole
    assert (steps["store"].tokens, steps["store"].tokens_estimated) == (
        manifest.sources["story"].tokens,
        False,
    )
    assert (
        steps["read"].bytes * steps["store"].tokens / steps["store"].bytes
        > 1.5 * steps["read"].tokens
    ), "one ratio for all is absurd here"
    assert f"≈ {steps['read'].tokens:,}" in funnel_table(manifest)


def test_raw_text_may_be_gone(corpus: Path) -> None:
    first = prepare(config(corpus))
    (corpus / "code.jsonl").unlink()
    assert prepare(config(corpus)) == first
    with pytest.raises(UserError, match="does not exist"):
        prepare(config(corpus, "other"))


def test_tokenizer_of_another_dataset(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare(config(corpus))
    again = config(
        corpus, "again", tokenizer=TokenizerConfig(kind="file", path=str(corpus / "data"))
    )
    second = prepare(again)
    assert second.hash == first.hash
    assert second.tokenizer == dataclasses.replace(first.tokenizer, kind="file")
    text = (corpus / "data" / "tokenizer.json").read_text()
    moved = json.loads(text)
    moved["added_tokens"][1]["content"] = "<|other|>"
    moved["model"]["vocab"]["<|other|>"] = moved["model"]["vocab"].pop("<|im_start|>")
    (corpus / "data" / "tokenizer.json").write_text(json.dumps(moved))
    with pytest.raises(UserError, match=r"content of tokenizer\.path: sha256"):
        prepare(again)
    slow = json.loads(text)
    slow["normalizer"] = {"type": "Lowercase"}
    (corpus / "slow.json").write_text(json.dumps(slow))
    capsys.readouterr()
    manifest = prepare(
        config(
            corpus, "slow", tokenizer=TokenizerConfig(kind="file", path=str(corpus / "slow.json"))
        )
    )
    assert "slower than tiktoken, because its normalizer is Lowercase" in capsys.readouterr().err
    reference = Reference.from_file(str(corpus / "slow.json"))
    assert manifest.tokens("train") == sum(
        len(reference.encode(text).ids) + 1
        for text in [*STORY, *CODE]
        if any(
            text.lower() == reference.decode(ids[1:].tolist())
            for ids in _training(corpus / "slow", manifest)
        )
    )


def _training(out: Path, manifest: Manifest) -> list[np.ndarray]:
    return [
        ids
        for source in manifest.sources
        for ids in stored_documents(out, manifest, "train", source)
    ]


def test_wide_vocabulary_is_stored_wide(corpus: Path) -> None:
    prepare(config(corpus))
    spec = json.loads((corpus / "data" / "tokenizer.json").read_text())
    spec["model"]["vocab"] |= {f"ĠĠ{n}": 330 + n for n in range(2**16)}
    (corpus / "wide.json").write_text(json.dumps(spec))
    manifest = prepare(
        config(
            corpus, "wide", tokenizer=TokenizerConfig(kind="file", path=str(corpus / "wide.json"))
        )
    )
    assert (manifest.dtype, manifest.tokenizer.vocab_size) == ("int32", 330 + 2**16)
    assert [ids.tolist() for ids in _training(corpus / "wide", manifest)] == [
        ids.tolist() for ids in _training(corpus / "data", Manifest.load(corpus / "data"))
    ]


def test_long_documents_are_cut_and_counted(corpus: Path) -> None:
    (corpus / "story" / "long.txt").write_text("A long story, told again and again. " * 2000)
    manifest = prepare(config(corpus, splits=SplitsConfig(validation=0.0, test=0.0)))
    assert manifest.sources["story"].funnel[-1].changed == {"cut": 1}
    assert "1 cut at the chunk limit (kept)" in funnel_table(manifest)
    record = manifest.sources["story"].splits["train"]
    assert record.documents == 151
    assert sum(chunk.documents for chunk in record.chunks) > 151
    text = "".join(
        Tokenizer.load(corpus / "data").decode(ids)
        for ids in stored_documents(corpus / "data", manifest, "train", "story")
    )
    assert "A long story, told again and again. " * 2000 in text


def test_counts_of_what_was_left_out(corpus: Path) -> None:
    (corpus / "story" / "bad.txt").write_bytes(b"\xff")
    (corpus / "story" / "empty.txt").write_bytes(b"")
    manifest = prepare(config(corpus, errors="skip"))
    assert manifest.sources["story"].funnel[0].removed == {"empty": 1, "undecodable": 1}
    (line,) = [line for line in funnel_table(manifest).splitlines() if line.startswith("story")]
    assert line.endswith("100.0%  1 empty, 1 not UTF-8")


def test_copies_fall_to_one_split(corpus: Path) -> None:
    for n in range(20):
        (corpus / "story" / f"copy{n}.txt").write_text(STORY[3], encoding="utf-8")
    manifest = prepare(config(corpus))
    tokenizer = Tokenizer.load(corpus / "data")
    texts = {
        split: {
            tokenizer.decode(ids)
            for source in manifest.sources
            for ids in stored_documents(corpus / "data", manifest, split, source)
        }
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not texts[one] & texts[other]


def test_missing_standard_library_tests_are_said(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "module_files", lambda part: [])
    sources = {**config(corpus).sources, "tests": SourceConfig(kind="embedded", part="tests")}
    assert list(prepare(config(corpus, sources=sources)).sources) == ["story", "code"]
    assert "sources.tests is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="no source has any file"):
        prepare(
            config(corpus, "other", sources={"tests": SourceConfig(kind="embedded", part="tests")})
        )


def test_embedded_source_names_its_python(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [path for path in embedded.module_files("code") if path.parent.name in ("json", "email")]
    monkeypatch.setattr(embedded, "module_files", lambda part: few)
    manifest = prepare(
        config(
            corpus, sources={"code": SourceConfig(kind="embedded", part="code", licence="PSF-2.0")}
        )
    )
    assert re.fullmatch(
        r"Python standard library \(CPython 3\.\d+\.\d+\S*\)", manifest.sources["code"].origin or ""
    )


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no sources": ({"sources": {}}, "sources is empty"),
    "name": (
        {"sources": {"a/b": SourceConfig(kind="embedded", part="code")}},
        "the name 'a/b' must consist of",
    ),
    "hidden name": (
        {"sources": {".a": SourceConfig(kind="embedded", part="code")}},
        "the name '.a'",
    ),
    "no part": (
        {"sources": {"a": SourceConfig(kind="embedded")}},
        r"sources\.a is of kind embedded and needs `part`",
    ),
    "no path": (
        {"sources": {"a": SourceConfig(kind="text")}},
        r"sources\.a is of kind text and needs `path`",
    ),
    "field of another kind": (
        {"sources": {"a": SourceConfig(kind="text", path="x", fields={"text": "body"})}},
        (
            r"sources\.a\.fields=\{'text': 'body'\} has no meaning for kind text, which takes path,"
            r" glob"
        ),
    ),
    "empty separator": (
        {"sources": {"a": SourceConfig(kind="text", path="x", separator="")}},
        "separator is empty",
    ),
    "tokenizer without path": (
        {"tokenizer": TokenizerConfig(kind="file")},
        "tokenizer is of kind file and needs `path`",
    ),
    "tokenizer with both": (
        {"tokenizer": TokenizerConfig(path="x")},
        r"tokenizer\.path='x' has no meaning for kind train",
    ),
    "missing tokenizer": (
        {"tokenizer": TokenizerConfig(kind="file", path="nowhere")},
        "tokenizer nowhere does not exist",
    ),
    "negative fraction": (
        {"splits": SplitsConfig(validation=-0.1)},
        r"splits\.validation=-0\.1 must be a share",
    ),
    "fraction that is not a number": (
        {"splits": SplitsConfig(test=float("nan"))},
        r"splits\.test=nan must be a share",
    ),
    "fractions too large": (
        {"splits": SplitsConfig(validation=0.5, test=0.5)},
        "leaves nothing to train on",
    ),
    "chunk": ({"chunk_tokens": 2**30}, "chunk_tokens=1073741824 must lie between 2 and 536870911"),
    "workers": ({"workers": 0}, "workers=0 must lie between"),
    "vocabulary too small": (
        {"tokenizer": TokenizerConfig(vocab_size=256)},
        "256 bytes, 4 special tokens",
    ),
    "vocabulary too large": (
        {"tokenizer": TokenizerConfig(vocab_size=60_000)},
        "vocab_size=60000 is too large for this text",
    ),
    "document too large": (
        {"max_document_bytes": 100},
        r"too_large, the first in part0/003\.txt: larger than max_document_bytes=100",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_config(corpus: Path, mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    before = sorted(corpus.iterdir())
    with pytest.raises(UserError, match=message):
        prepare(config(corpus, **changes))
    assert sorted(path for path in corpus.iterdir() if path.name != ".data.partial") == before


def test_mistakes_in_the_input(corpus: Path) -> None:
    only = SourceConfig(kind="text", path=str(corpus / "only.txt"))
    changes: dict[str, Any] = {"sources": {**config(corpus).sources, "only": only}}
    (corpus / "only.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"sources\.only holds no document \(1 empty\)"):
        prepare(config(corpus, **changes))
    (corpus / "only.txt").write_text("A single document.")
    splits = SplitsConfig(validation=0.95, test=0.0)
    with pytest.raises(
        UserError, match=r"sources\.only is left without training text: its 18 bytes are too few"
    ):
        prepare(config(corpus, splits=splits, tokenizer=TokenizerConfig(vocab_size=261), **changes))
    (corpus / "only.txt").write_text("")
    with pytest.raises(UserError, match=r"sources\.only holds no document \(1 empty\)"):
        prepare(config(corpus, sources={"only": only}))
    (corpus / "code.jsonl").write_text('{"content": "fine"}\n{"text": "not"}\n')
    with pytest.raises(
        UserError,
        match=(
            r"1 of 2 records .* more than max_bad_fraction=0\.01 allows:\n  1 missing_field, the"
            r" first in code\.jsonl:2: .*content"
        ),
    ):
        prepare(config(corpus))
    (corpus / "data").mkdir()
    (corpus / "data" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds precious\.txt"):
        prepare(config(corpus))
    assert (corpus / "data" / "precious.txt").read_text() == "mine"


def test_an_empty_held_out_split_is_said(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = prepare(config(corpus, splits=SplitsConfig(validation=0.2, test=0.00001)))
    assert manifest.sources["story"].splits["test"].chunks == ()
    assert not (corpus / "data" / "test").exists()
    assert (
        "story: no text is held out for test; add text, or raise splits.test (now 1e-05 of"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("dedup", "counts"),
    [
        (DedupConfig(), "2 exact, 1 near"),
        (
            DedupConfig(near=None, containment=ContainmentConfig(min_words=20)),
            "1 contained, 2 exact",
        ),
        (DedupConfig(exact=False, near=None, lines=LinesConfig()), "3 nothing_left"),
    ],
)
def test_a_source_that_deduplication_empties_is_named_with_what_took_it(
    tmp_path: Path, dedup: DedupConfig, counts: str
) -> None:
    texts = [" ".join(f"word{n}x{m}" for m in range(60)) for n in range(30)]
    first = [*texts[:29], f"{texts[29]}\nand five words more here"]
    second = [texts[0], texts[1], texts[29]]
    if dedup.near is None and dedup.containment is not None:
        first[29] += " and " + " ".join(f"other{m}" for m in range(60))
    for name, found in (("first", first), ("second", second)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in found)
        )
    sources = {
        name: SourceConfig(kind="jsonl", path=str(tmp_path / f"{name}.jsonl"))
        for name in ("first", "second")
    }
    tokenizer = TokenizerConfig(vocab_size=270)
    with pytest.raises(UserError) as caught:
        prepare(
            PrepareConfig(
                out=str(tmp_path / "data"),
                sources=sources,
                tokenizer=tokenizer,
                dedup=dedup,
                workers=1,
            )
        )
    message = str(caught.value)
    assert message.startswith("sources.second is left without a document")
    assert f"({counts})" in message
    assert "Remove it from `sources`" in message
    assert "splits" not in message


def test_all_sources_that_are_empty_are_named_and_may_stay_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.txt").write_text(
        "The cat of the house sat with the dog and had to be fed.\n" * 100
    )
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("x")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    config = PrepareConfig(
        out=str(tmp_path / "out"),
        sources={
            name: SourceConfig(kind="text", path=str(tmp_path / f"{name}.txt"))
            for name in ("blank", "good", "bytes", "short")
        },
        filters=[FilterSpec(class_path="GopherQuality", init_args={"min_words": 3})],
        tokenizer=TokenizerConfig(vocab_size=270),
        workers=1,
    )
    with pytest.raises(UserError) as refused:
        prepare(config)
    message = str(refused.value)
    assert "sources.bytes: 1 of 1 records" in message
    assert "sources.blank holds no document (1 empty); sources.short holds no document" in message
    rejects = Path(message.rpartition(": ")[2]).read_text()
    assert {json.loads(line)["source"] for line in rejects.splitlines()} == {"bytes", "short"}

    capsys.readouterr()
    manifest = prepare(dataclasses.replace(config, allow_empty=True, max_bad_fraction=1.0))
    assert "going on with what an earlier run left" in capsys.readouterr().err
    assert manifest.tokens("train") > 0
    assert manifest.sources["short"].splits["train"].tokens == 0
    assert prepare(dataclasses.replace(config, allow_empty=True)) == manifest  # nothing is to do
    read = {"seq_len": 8, "global_batch_tokens": 8}
    order = order_of(manifest, read)
    assert {order.sources[order(n).source].name for n in range(20)} == {"good"}


def test_a_corpus_without_any_document_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" ")
    source = SourceConfig(kind="text", path=str(tmp_path / "blank.txt"))
    config = PrepareConfig(
        out=str(tmp_path / "out"), sources={"one": source, "two": source}, allow_empty=True
    )
    with pytest.raises(UserError, match=r"sources\.one holds .*; sources\.two holds no document"):
        prepare(config)
