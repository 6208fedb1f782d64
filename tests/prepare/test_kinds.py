"""Every kind of input becomes shards through the command line, and what cannot be read is
counted, and kept to read as far as asked.
"""

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lit_pretrain.__main__ import main
from lit_pretrain.corpus import chunk_reader as search
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.tokenizer.tokenizer import Tokenizer

pytest.importorskip("trafilatura", reason="needs the web extra")
pytest.importorskip("warcio", reason="needs the web extra")


def story(kind: str, n: int) -> str:
    return (
        f"Story {n} of kind {kind}: the {n * 31 % 97}th boat left the harbour at noon, and nobody"
        " saw where it went that day. " * 2
    )


def page(text: str) -> str:
    return (
        "<html><head><title>A page</title></head><body><article><h1>A"
        f" page</h1><p>{text}</p><p>{text}</p></article></body></html>"
    )


def lay(folder: Path) -> dict[str, dict[str, object]]:
    """Ten documents of every kind below a folder; returns the sources."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    texts = {
        kind: [story(kind, n) for n in range(10)]
        for kind in ("text", "markdown", "html", "jsonl", "parquet", "dataset", "warc", "wet")
    }
    for name, suffix in (("text", "txt"), ("markdown", "md"), ("html", "html")):
        (folder / name).mkdir()
        for n, text in enumerate(texts[name]):
            (folder / name / f"{n}.{suffix}").write_text(page(text) if name == "html" else text)
    lines = "".join(json.dumps({"body": {"text": text}}) + "\n" for text in texts["jsonl"]).encode()
    (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines)[:-20])  # half-written
    table = pyarrow.table({"text": texts["parquet"]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    (folder / "saved").mkdir()
    table = pyarrow.table({"text": texts["dataset"]})
    with (
        pyarrow.OSFile(str(folder / "saved" / "data.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    (folder / "saved" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data.arrow"}]})
    )
    for name, kind in (("warc", "response"), ("wet", "conversion")):
        with (folder / f"a.{name}.gz").open("wb") as file:
            writer = WARCWriter(file, gzip=True)
            for n, text in enumerate(texts[name]):
                headers = StatusAndHeaders(
                    "200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1"
                )
                content = page(text) if name == "warc" else text
                writer.write_record(
                    writer.create_warc_record(
                        f"http://example.org/{n}",
                        kind,
                        payload=io.BytesIO(content.encode()),
                        http_headers=headers if name == "warc" else None,
                        warc_content_type="text/plain",
                    )
                )
    for n in range(5):
        (folder / "text" / f"bad{n}.txt").write_bytes(f"half a letter: {n} ".encode() + b"\xc3")
    return {
        "text": {"kind": "text", "path": str(folder / "text")},
        "markdown": {"kind": "text", "path": str(folder / "markdown")},
        "html": {"kind": "html", "path": str(folder / "html")},
        "jsonl": {
            "kind": "jsonl",
            "path": str(folder),
            "glob": "*.jsonl.*",
            "fields": {"text": "body.text"},
        },
        "parquet": {"kind": "parquet", "path": str(folder / "a.parquet")},
        "dataset": {"kind": "dataset", "path": str(folder / "saved")},
        "warc": {"kind": "warc", "path": str(folder / "a.warc.gz")},
        "wet": {"kind": "warc", "path": str(folder / "a.wet.gz")},
    }


def test_every_kind_of_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    options = [
        "--tokenizer.vocab_size=290",
        "--splits.validation=0",
        "--workers=1",
        "--errors=skip",
        "--max_bad_fraction=0.5",
    ]
    assert (
        main(
            [
                "prepare",
                f"--out={out}",
                f"--sources={json.dumps(lay(tmp_path))}",
                "--keep-rejects=2",
                *options,
            ]
        )
        == 0
    )
    manifest, tokenizer = Manifest.load(out), Tokenizer.load(out)
    for name, source in manifest.sources.items():
        mark = f"Story 7 of kind {name}:"
        origins = {hit.record.origin for hit in search.find_text(out, manifest, tokenizer, mark)}
        wanted = {
            "text": "7.txt", "markdown": "7.md", "html": "7.html", "jsonl": "a.jsonl.zst:8",
            "parquet": "a.parquet:7",
            "dataset": "data.arrow:7", "warc": "a.warc.gz:7", "wet": "a.wet.gz:7",
        }  # fmt: skip
        assert wanted[name] in origins, (name, origins)
        if name != "jsonl":
            assert (source.splits["train"].documents, origins) == (10, {wanted[name]})
    steps = {name: source.funnel[0] for name, source in manifest.sources.items()}
    assert steps["text"].removed == {"undecodable": 5}
    assert steps["jsonl"].removed == {"damaged_file": 1}
    assert 10 < steps["jsonl"].documents < 20  # what came before the damage, and the other file
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert Counter((entry["source"], entry["step"], entry["reason"]) for entry in rejects) == {
        ("text", "read", "undecodable"): 2,
        ("jsonl", "read", "damaged_file"): 1,
    }
    assert all(
        "byte 0xc3 at offset 17 is not UTF-8" in entry["text"]
        for entry in rejects
        if entry["source"] == "text"
    )
    assert "5 not UTF-8" in capsys.readouterr().out


def test_every_way_to_remove_a_duplicate_shows_some(tmp_path: Path) -> None:
    """Copies, near and contained ones over sources and parts, ids, and pages of repeated lines."""
    rows = {
        name: [{"text": " ".join(story(name, n + more) for more in (0, 40, 80)), "id": str(n)}
               for n in range(30)]
        for name in ("first", "second")
    }  # fmt: skip
    first, second = rows["first"], rows["second"]
    second += [{"text": row["text"], "id": f"copy {row['id']}"} for row in first[:12]]
    second += [{"text": row["text"] + " Then it was over.", "id": f"near {row['id']}"}
               for row in first[12:20]]  # fmt: skip
    second += [{"text": "another text altogether, with an id that was there before", "id": "3"}]
    lines = [row["text"] for row in first[20:22]]
    second += [{"text": "\n".join(lines), "id": "all of its lines were there before"}]
    for name, found in rows.items():
        (tmp_path / name).mkdir()
        for part in range(3):
            (tmp_path / name / f"{part}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in found[part::3])
            )
    sources = {
        name: {"kind": "jsonl", "path": str(tmp_path / name), "fields": {"id": "id"}}
        for name in rows
    }
    shown = {}
    for part_bytes in (2_000, 1_000_000):
        out = tmp_path / f"data{part_bytes}"
        command = [
            "prepare", f"--out={out}", f"--sources={json.dumps(sources)}", "--keep-rejects=5",
            "--dedup={exact: true, near: {threshold: 0.8}, lines: {min_words: 5}}",
            "--tokenizer.vocab_size=290", "--splits.validation=0", "--splits.test=0",
            "--workers=1", f"--part_bytes={part_bytes}",
        ]  # fmt: skip
        assert main(command) == 0
        shown[part_bytes] = [json.loads(line) for line in (out / "rejects.jsonl").open()]
    assert shown[2_000] == shown[1_000_000]
    found = shown[2_000]
    assert {(row["source"], row["step"], row["reason"]) for row in found} == {
        ("second", "dedup", "exact"), ("second", "dedup", "near"),
        ("second", "ids", "duplicate_id"), ("second", "lines", "nothing_left"),
    }  # fmt: skip
    texts = [row["text"] for row in first]
    for row in found:
        if row["step"] == "dedup":
            other = row["duplicate_of"]
            assert other["source"] == "first"
            assert other["text"] in texts
            assert row["text"].startswith(other["text"])
    counts = Counter((row["step"], row["reason"]) for row in found)
    assert (counts["dedup", "exact"], counts["dedup", "near"]) == (5, 5)


def test_names_that_are_not_utf8_are_read_and_written_with_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind, below a folder of such a name, beside hidden files and others."""
    plain = tmp_path / "plain"
    plain.mkdir()
    sources = lay(plain)
    for name, source in sources.items():
        path = Path(str(source["path"]))
        files = sorted(path.glob(str(source.get("glob", "*")))) if path.is_dir() else [path]
        folder = tmp_path / name / "\udcff"
        try:
            folder.mkdir(parents=True)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        for file in files:
            if file.suffix != ".json":
                stem, dot, rest = file.name.partition(".")
                file.rename(folder / f"{stem}\udce9{dot}{rest.upper()}")
        (folder / ".git").mkdir()
        (folder / ".git" / "x.txt").write_text("hidden")
        (folder / "x.PDF").write_text("%PDF")
        source["path"] = str(tmp_path / name)
        source.pop("glob", None)
        if name == "dataset":
            source["glob"] = "**/*.arrow"
    out = tmp_path / "data"
    command = [
        "prepare", f"--out={out}", f"--sources={json.dumps(sources)}", "--keep-rejects=9",
        "--tokenizer.vocab_size=290", "--splits.validation=0", "--workers=1", "--errors=skip",
        "--max_bad_fraction=0.5",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    manifest = Manifest.load(out)
    for name, source in manifest.sources.items():
        assert source.funnel[0].documents >= 10, name
        assert source.passed_over == {".pdf": 1, "hidden": 1}, name
        count = f"{source.files} file{'s' if source.files > 1 else ''}"
        assert f"{name}: {count} read; passed over: 1 .pdf, 1 hidden" in shown
    origins = {json.loads(line)["origin"] for line in (out / "rejects.jsonl").open()}
    assert "\\xff/bad0\\xe9.TXT" in origins
    assert main(command) == 0  # the finished dataset is compared with the same files
    assert "nothing to do" in capsys.readouterr().err
