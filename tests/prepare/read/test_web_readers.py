"""HTML pages, WARC and WET files: main text, and whatever a crawl holds besides."""

import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.prepare.read.reader import ReadPolicy

pytest.importorskip("trafilatura", reason="needs the web extra")
pytest.importorskip("warcio", reason="needs the web extra")

PARAGRAPHS = [
    (
        "The harbour was quiet that morning, and the boats lay still at their moorings while the"
        " gulls waited on the wall."
    ),
    (
        "Nobody had expected the ferry before noon, so the café beside the pier stayed shut and its"
        " chairs stood stacked inside."
    ),
    (
        "When the fog lifted at last, the whole bay came into view: Größe, naïve façades, and the"
        " long line of hills behind them."
    ),
]


def page(paragraphs: list[str] = PARAGRAPHS, *, head: str = "", title: str = "The  harbour") -> str:
    body = "".join(f"<p>{text}</p>" for text in paragraphs)
    menu = "".join(f'<li><a href="/{n}">Menu entry {n}</a></li>' for n in range(10))
    return (
        f"<!DOCTYPE html><html><head>{head}<title>{title}</title></head>"
        f"<body><nav><ul>{menu}</ul></nav><article><h1>A morning</h1>{body}</article>"
        "<footer>Copyright, imprint, cookies</footer></body></html>"
    )


def is_the_story(text: str) -> bool:
    return all(paragraph in text for paragraph in PARAGRAPHS) and "Menu entry" not in text


def warc(
    path: Path, records: list[tuple[str, str, str, bytes]], *, packed: bool = True
) -> list[int]:
    """Writes (type, url, content type of the answer with status before it, payload); returns
    where each record ends.
    """
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    ends = []
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=packed)
        writer.write_record(writer.create_warcinfo_record("x.warc", {"software": "test"}))
        ends.append(file.tell())
        for kind, url, status, payload in records:
            code, _, content = status.partition(" ")
            headers: Any = None
            extra = {"WARC-Date": "2024-05-01T00:00:00Z"}
            if kind in ("response", "request"):
                line = f"{code} OK" if kind == "response" else "GET / HTTP/1.1"
                fields = (
                    [tuple(field.split(": ", 1)) for field in content.split("\n")]
                    if content
                    else []
                )
                headers = StatusAndHeaders(
                    line, fields, protocol="HTTP/1.1" if kind == "response" else ""
                )
            else:
                extra["WARC-Identified-Content-Language"] = "eng"
            record = writer.create_warc_record(
                url,
                kind,
                payload=io.BytesIO(payload),
                http_headers=headers,
                warc_headers_dict=extra,
                warc_content_type=content,
            )
            writer.write_record(record)
            ends.append(file.tell())
    return ends


HTML = "200 Content-Type: text/html; charset=utf-8"
STORY = page().encode()


def test_a_page_gives_its_main_text_and_title(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.html").write_text(page(), encoding="utf-8")
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(STORY))
    (tmp_path / "c.html").write_text("<html><body></body></html>")
    (tmp_path / "d.html").write_bytes(b"")
    (tmp_path / "e.html").write_bytes(bytes(range(256)) * 40)
    found = read("html", tmp_path)
    assert found.origins == ["a.html", "b.htm.gz"]
    assert all(is_the_story(text) for text in found.texts)
    assert found.documents[0].fields == {"title": "The harbour"}
    assert (found.bad, found.counts.records) == ([], 5)
    assert found.counts.empty == {"empty": 1, "no_text": 2}
    assert [d.text for d in read("html", tmp_path).documents] == found.texts


@pytest.mark.parametrize(
    ("encoding", "head"),
    [
        ("cp1252", '<meta charset="iso-8859-1">'),  # as the web means it
        ("utf-8", '<meta charset="no-such-charset">'),
        ("utf-8", '<meta charset="ascii">'),  # a lie
        ("utf-8", '<meta charset="iso-8859-1">'),
        ("utf-16", ""),
        ("cp1252", '<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">'),
        ("utf-8", '<?xml version="1.0" encoding="utf-8"?>'),
    ],
)
def test_pages_in_other_encodings(tmp_path: Path, read: Any, encoding: str, head: str) -> None:
    (tmp_path / "a.html").write_bytes(page(head=head).encode(encoding))
    assert is_the_story(read("html", tmp_path).texts[0])


def test_japanese_with_escapes(tmp_path: Path, read: Any) -> None:
    text = "これは日本語の文章であり、港の朝のことを長々と語っている。" * 5
    (tmp_path / "a.html").write_bytes(
        page([text], head='<meta charset="iso-2022-jp">').encode("iso-2022-jp")
    )
    assert text in read("html", tmp_path).texts[0]


def test_a_page_that_the_parser_fails_on_is_rejected(
    tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trafilatura

    def fail(*_: Any, **__: Any) -> str:
        raise RecursionError("too deep")

    monkeypatch.setattr(trafilatura, "extract", fail)
    (tmp_path / "a.html").write_bytes(STORY)
    found = read("html", tmp_path)
    assert found.faults == [("a.html", "unparsable")]
    assert found.bad[0].detail == "RecursionError: too deep"


def test_a_nested_page_does_not_end_the_run(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.html").write_text("<div>" * 100_000 + "text")
    (tmp_path / "b.html").write_bytes(STORY)
    found = read("html", tmp_path)
    assert found.origins[-1] == "b.html"
    assert found.counts.records == 2


def test_a_page_beyond_the_limit_is_not_parsed(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.html").write_bytes(b"<p>" + b"x" * 20_000_000)
    assert read("html", tmp_path).faults == [("a.html", "too_large")]


@pytest.mark.parametrize("name", ["crawl.warc.gz", "crawl.warc"])
def test_a_crawl(tmp_path: Path, read: Any, name: str) -> None:
    latin = page().encode("cp1252")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(STORY), STORY)
    warc(
        tmp_path / name,
        [
            ("request", "http://a", "0", b""),
            ("response", "http://a", HTML, STORY),
            ("response", "http://image", "200 Content-Type: image/png", b"\x89PNG"),
            ("response", "http://gone", "404 Content-Type: text/html", STORY),
            (
                "response",
                "http://latin",
                "200 Content-Type: text/html; Charset='ISO-8859-1'",
                latin,
            ),
            ("response", "http://packed", HTML + "\nContent-Encoding: gzip", gzip.compress(STORY)),
            ("response", "http://chunked", HTML + "\nTransfer-Encoding: chunked", chunked),
            ("response", "http://empty", HTML, b"  "),
            ("response", "http://bare", HTML, b"<html></html>"),
            ("response", "http://untyped", "200 X-Y: z", STORY),
            ("resource", "http://file", "0 text/html", STORY),
        ],
        packed=name.endswith(".gz"),
    )
    found = read("warc", tmp_path)
    assert [d.fields["url"] for d in found.documents] == [
        "http://a",
        "http://latin",
        "http://packed",
        "http://chunked",
        "http://file",
    ]
    assert all(is_the_story(text) for text in found.texts)
    assert found.origins == [f"{name}:{n}" for n in (2, 5, 6, 7, 11)]
    first = found.documents[0].fields
    assert (first["date"], first["title"], first["id"][:10]) == (
        "2024-05-01T00:00:00Z",
        "The harbour",
        "<urn:uuid:",
    )
    assert found.counts.empty == {"not_a_page": 3, "empty": 1, "no_text": 1}
    assert found.bad == []


@pytest.mark.parametrize("name", ["a.warc.wet.gz", "a.wet"])
def test_text_records_are_taken_as_they_are(tmp_path: Path, read: Any, name: str) -> None:
    payloads = ["One\n line, Größe".encode(), b"no \xff text", b"", b"x" * 5000, b"end"]
    warc(
        tmp_path / name,
        [("conversion", f"http://{n}", "0 text/plain", p) for n, p in enumerate(payloads)],
        packed=name.endswith("gz"),
    )
    found = read("warc", tmp_path, policy=ReadPolicy(max_document_bytes=4000))
    assert found.texts == ["One\n line, Größe", "end"]
    assert found.documents[0].fields["language"] == "eng"
    assert found.faults == [(f"{name}:2", "undecodable"), (f"{name}:4", "too_large")]
    assert found.counts.empty == {"empty": 1}
    assert (
        read("warc", tmp_path, policy=ReadPolicy("replace", "truncate", 4000)).texts[2]
        == "x" * 4000
    )


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_crawl_gives_what_came_before(tmp_path: Path, read: Any, packed: bool) -> None:
    path = tmp_path / ("a.wet.gz" if packed else "a.wet")
    texts = [
        f"{n} " + " ".join(str(n * k * 7919 % 100_003) for k in range(3000)) for n in range(20)
    ]
    ends = warc(
        path,
        [
            ("conversion", f"http://{n}", "0 text/plain", text.encode())
            for n, text in enumerate(texts)
        ],
        packed=packed,
    )
    whole = path.read_bytes()
    for end, count, unread in (
        (whole[: ends[10] + 5000], 10, 0),  # cut within a record
        (whole[: ends[10] + 100], 10, 0),  # cut within its header
        (whole[: ends[10]] + b"no record at all\r\n" * 3000, 10, 40_000),
        (whole[: ends[0]], 0, None),  # whole, without any text
        (b"", 0, 0),
        (b"no archive", 0, 0),
    ):
        path.write_bytes(end)
        found = read("warc", tmp_path)
        assert found.texts == texts[: len(found.texts)]
        assert len(found.texts) >= count - (1 if packed else 0)
        assert found.faults == ([] if unread is None else [(path.name, "damaged_file")])
        assert found.counts.unread_bytes >= (unread or 0) * (1 if packed else 0)


@pytest.mark.parametrize(
    "field", ["WARC-Target-URI", "WARC-Type", "WARC-Record-ID", "Content-Length", "WARC/1.0"]
)
def test_damage_in_a_header_is_damage_of_the_file(tmp_path: Path, read: Any, field: str) -> None:
    path = tmp_path / "a.warc"
    records = [("response", f"http://{n}", HTML, STORY) for n in range(3)]
    ends = warc(path, records, packed=False)
    whole = path.read_bytes()
    damaged = whole[ends[1] :].replace(field.encode(), b"X" + field.encode()[1:], 1)
    path.write_bytes(whole[: ends[1]] + damaged)
    found = read("warc", tmp_path)
    assert len(found.texts) >= 1
    assert is_the_story(found.texts[0])
    assert {reason for _, reason in found.faults} <= {"damaged_file"}
    # A record without an id is a page all the same, one without a type is none.
    assert bool(found.faults) == (field in ("WARC-Target-URI", "Content-Length", "WARC/1.0"))


def test_a_single_member_with_many_records_is_read(tmp_path: Path, read: Any) -> None:
    """warcio refuses such files; `gzip a.warc` makes them."""
    warc(
        tmp_path / "a.warc",
        [("response", f"http://{n}", HTML, STORY) for n in range(3)],
        packed=False,
    )
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress((tmp_path / "a.warc").read_bytes()))
    (tmp_path / "a.warc").unlink()
    assert len(read("warc", tmp_path).texts) == 3
