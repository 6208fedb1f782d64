"""Remote input: read as if it lay here, fetched whole or not at all, and named where it cannot
be had.
"""

import gzip
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.prepare import remote_input as remote
from lit_pretrain.prepare.inputs import InputFile, find_inputs
from lit_pretrain.prepare.pipeline import prepare
from lit_pretrain.prepare.prepare_config import PrepareConfig, SourceConfig, TokenizerConfig
from lit_pretrain.prepare.read.read_source import SourceReader
from lit_pretrain.prepare.read.reader import ReadPolicy

ROWS = [f"row {n} {n * 7919 % 10007}" for n in range(2000)]
BODY = "".join(json.dumps({"text": row}) + "\n" for row in ROWS).encode()
BUCKET = "raw"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# ---------------------------------------------------------------------- a web server


class Server(http.server.ThreadingHTTPServer):
    """What it does is the first part of the path, and how often it did not work yet is counted."""

    daemon_threads = True
    asked: dict[str, int]
    body: bytes
    headers: dict[str, str]

    def handle_error(self, *_: Any) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        count = self.server.asked[self.path] = self.server.asked.get(self.path, 0) + 1
        body = gzip.compress(self.server.body) if self.path.endswith(".gz") else self.server.body
        status = {
            "missing": 404,
            "busy": 503 if count in (1, 2, 4) else 200,
            "forbidden": 403,
            "down": 500,
        }.get(kind, 200)
        self.send_response(status)
        if kind != "endless":
            self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        # The first request asks for the size.
        if kind == "broken" or (kind == "flaky" and count in (2, 3)):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif status == 200:
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked, running.body, running.headers = {}, BODY, {}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


def test_files_of_a_web_server(server: Server, read: Any) -> None:
    assert read("jsonl", address(server, "files/a.jsonl?download=true")).texts == ROWS
    found = read(
        "jsonl", [address(server, "files/y/b.jsonl.gz"), address(server, "files/x/b.jsonl")]
    )
    assert found.texts == ROWS * 2
    assert (found.origins[0], found.origins[-1]) == ("x/b.jsonl:1", "y/b.jsonl.gz:2000")


@pytest.mark.parametrize("kind", ["flaky", "busy"])
def test_what_passes_is_tried_again(server: Server, read: Any, kind: str) -> None:
    assert read("jsonl", address(server, f"{kind}/a.jsonl")).texts == ROWS
    assert server.asked[f"/{kind}/a.jsonl"] == {"flaky": 4, "busy": 5}[kind]


def test_a_connection_that_always_breaks_is_an_error_and_no_half_file(
    server: Server, tmp_path: Path
) -> None:
    source = SourceConfig(kind="jsonl", path=address(server, "broken/a.jsonl"))
    reader = SourceReader(
        source, find_inputs("mine", source).files, ReadPolicy(), tmp_path / "scratch"
    )
    with pytest.raises(
        UserError,
        match=(
            rf"cannot fetch http://.*/broken/a\.jsonl: {len(BODY) // 2:,} bytes came where"
            rf" {len(BODY):,} were"
        ),
    ):
        list(reader)
    assert reader.counts.records == 0
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("kind", "times", "cause"), [("missing", 1, "404"), ("forbidden", 1, "403"), ("down", 4, "500")]
)
def test_a_file_that_is_not_there_is_said(
    server: Server, kind: str, times: int, cause: str
) -> None:
    url = address(server, f"{kind}/a.jsonl")
    with pytest.raises(UserError, match=rf"cannot fetch {url}: HTTP Error {cause}") as caught:
        find_inputs("mine", SourceConfig(kind="jsonl", path=url))
    assert server.asked[f"/{kind}/a.jsonl"] == times
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_say_the_size_is_refused(server: Server) -> None:
    with pytest.raises(UserError, match="does not say how large the file is"):
        find_inputs("mine", SourceConfig(kind="jsonl", path=address(server, "endless/a.jsonl")))


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(
        UserError, match=r"cannot fetch http://127\.0\.0\.1:\d+/a\.jsonl: .*refused"
    ):
        find_inputs("mine", SourceConfig(kind="jsonl", path=f"http://127.0.0.1:{port}/a.jsonl"))


def test_a_file_that_changed_since_it_was_listed_is_not_read(
    server: Server, tmp_path: Path
) -> None:
    url = address(server, "files/a.jsonl")
    for size in (len(BODY) - 1, len(BODY) + 1):
        reader = SourceReader(
            SourceConfig(kind="jsonl", path=url),
            [InputFile("a.jsonl", url, size)],
            ReadPolicy(),
            tmp_path,
        )
        with pytest.raises(UserError, match="were listed"):
            list(reader)


def test_a_full_disk_is_not_taken_for_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = address(server, "files/a.jsonl")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"a\.jsonl.*No space left on device"):
        list(
            SourceReader(
                SourceConfig(kind="jsonl", path=url),
                [InputFile("a.jsonl", url, len(BODY))],
                ReadPolicy(),
                tmp_path,
            )
        )
    assert server.asked == {"/files/a.jsonl": 1}


def prepare_from(path: str | list[str], out: Path, **fields: Any) -> Manifest:
    sources = {"mine": SourceConfig(kind="jsonl", path=path, **fields)}
    return prepare(
        PrepareConfig(
            out=str(out), sources=sources, tokenizer=TokenizerConfig(vocab_size=270), workers=1
        )
    )


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_finished_dataset_is_not_given_for_other_files_of_a_web_server(
    server: Server, tmp_path: Path, header: str
) -> None:
    url = address(server, "files/a.jsonl")
    server.headers = {header: "one"}
    first = prepare_from(url, tmp_path / "data")
    server.asked.clear()
    assert prepare_from(url, tmp_path / "data") == first
    assert server.asked == {"/files/a.jsonl": 1}  # asked about, not fetched
    server.headers = {header: "two"}
    server.body = BODY.replace(b"row", b"ROW")
    with pytest.raises(
        UserError,
        match=(
            r"files of sources\.mine, as their server tells them apart .*: sha256 \w{64} there,"
            r" \w{64} here"
        ),
    ):
        prepare_from(url, tmp_path / "data")
    second = prepare_from(url, tmp_path / "other")
    assert (
        second.hash != first.hash,
        second.sources["mine"].remote_sha256 != first.sources["mine"].remote_sha256,
    ) == (True, True)


def test_a_server_that_names_no_version_is_compared_by_size(server: Server, tmp_path: Path) -> None:
    url = address(server, "files/a.jsonl")
    first = prepare_from(url, tmp_path / "data")
    server.body = BODY.replace(b"row", b"ROW")
    assert prepare_from(url, tmp_path / "data") == first
    server.body += server.body[:500]
    with pytest.raises(
        UserError,
        match=r"input of sources\.mine: 1 files of .* bytes there, 1 files of .* bytes here",
    ):
        prepare_from(url, tmp_path / "data")


def test_local_files_beside_remote_ones_are_compared_too(server: Server, tmp_path: Path) -> None:
    server.headers = {"ETag": "one"}
    (tmp_path / "b.jsonl").write_bytes(BODY)
    paths = [address(server, "files/a.jsonl"), str(tmp_path / "b.jsonl")]
    first = prepare_from(paths, tmp_path / "data")
    assert prepare_from(paths, tmp_path / "data") == first
    (tmp_path / "b.jsonl").write_bytes(BODY.replace(b"row", b"ROW"))
    with pytest.raises(UserError, match=r"files of sources\.mine"):
        prepare_from(paths, tmp_path / "data")


def test_remote_text_may_be_gone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = address(server, "files/a.jsonl")
    first = prepare_from(url, tmp_path / "data")
    server.shutdown()
    server.server_close()
    assert prepare_from(url, tmp_path / "data") == first
    assert (
        "sources.mine is not compared with what was read, because it cannot be reached any more:"
        " cannot fetch" in capsys.readouterr().err
    )


def test_work_on_other_remote_files_is_not_gone_on_with(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file changed between a fault and the next run, and kept its size."""
    url = address(server, "files/a.jsonl")
    server.headers = {"ETag": "one"}
    with monkeypatch.context() as patch:
        patch.setattr(
            "lit_pretrain.prepare.stages.train_tokenizer.train_bpe",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            prepare_from(url, tmp_path / "data")
    server.headers = {"ETag": "two"}
    server.body = BODY.replace(b"row", b"ROW")
    found = prepare_from(url, tmp_path / "data")
    assert "going on" not in capsys.readouterr().err
    assert found.hash == prepare_from(url, tmp_path / "other").hash


# ---------------------------------------------------------------------- an object store


@pytest.fixture(scope="module")
def store(s3_server: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield a client of the S3 server, and the options that reach it."""
    import boto3

    options = {
        "endpoint_url": s3_server,
        "aws_access_key_id": "a",
        "aws_secret_access_key": "b",
        "region_name": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        client = boto3.client("s3", **options)
        client.create_bucket(Bucket=BUCKET)
        yield client, options


def test_objects_below_a_prefix(
    store: tuple[Any, dict[str, str]], tmp_path: Path, read: Any
) -> None:
    client, options = store
    for key in ("web/b.jsonl", "web/a/x.jsonl.gz", "web/notes.txt", "website/c.jsonl", "web/"):
        body = b"" if key.endswith("/") else gzip.compress(BODY) if key.endswith(".gz") else BODY
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), tmp_path / "t.parquet")
    client.upload_file(str(tmp_path / "t.parquet"), BUCKET, "web/t.parquet")

    def names(**fields: Any) -> list[str]:
        return [
            file.name
            for file in find_inputs(
                "mine", SourceConfig(kind="jsonl", storage_options=options, **fields)
            ).files
        ]

    assert names(path="s3://raw/web") == names(path="s3://raw/web/") == ["a/x.jsonl.gz", "b.jsonl"]
    assert names(path="s3://raw/web", glob="*.txt") == ["notes.txt"]
    assert names(path="s3://raw") == ["web/a/x.jsonl.gz", "web/b.jsonl", "website/c.jsonl"]
    assert names(path=["s3://raw/website", "s3://raw/web/b.jsonl"]) == [
        "web/b.jsonl",
        "website/c.jsonl",
    ]
    assert names(path="s3://raw/web/b.jsonl") == ["b.jsonl"]
    assert read("jsonl", "s3://raw/web", storage_options=options).texts == ROWS * 2
    assert read("parquet", "s3://raw/web", storage_options=options).texts == ROWS
    with pytest.raises(UserError, match=r"no file below s3://raw/nothing ends in \.jsonl"):
        names(path="s3://raw/nothing")
    with pytest.raises(UserError, match=r"cannot list s3://elsewhere/x: .*NoSuchBucket"):
        names(path="s3://elsewhere/x")


def test_many_objects_are_listed_page_by_page(store: tuple[Any, dict[str, str]]) -> None:
    client, options = store
    for n in range(1003):
        client.put_object(Bucket=BUCKET, Key=f"many/{n:04d}.txt", Body=b"x")
    assert (
        len(
            find_inputs(
                "mine", SourceConfig(kind="text", path="s3://raw/many", storage_options=options)
            ).files
        )
        == 1003
    )


def test_a_finished_dataset_is_not_given_for_other_objects(
    store: tuple[Any, dict[str, str]], tmp_path: Path
) -> None:
    client, options = store
    for key in ("again/a.jsonl", "again/b.jsonl"):
        client.put_object(Bucket=BUCKET, Key=key, Body=BODY)
    first = prepare_from("s3://raw/again", tmp_path / "data", storage_options=options)
    assert prepare_from("s3://raw/again", tmp_path / "data", storage_options=options) == first
    client.put_object(
        Bucket=BUCKET, Key="again/b.jsonl", Body=BODY
    )  # the same bytes have the same ETag
    assert prepare_from("s3://raw/again", tmp_path / "data", storage_options=options) == first
    client.put_object(Bucket=BUCKET, Key="again/b.jsonl", Body=BODY.replace(b"row", b"ROW"))
    with pytest.raises(
        UserError, match=r"files of sources\.mine, as their server tells them apart"
    ):
        prepare_from("s3://raw/again", tmp_path / "data", storage_options=options)


def test_an_object_that_vanished_is_said(store: tuple[Any, dict[str, str]], tmp_path: Path) -> None:
    client, options = store
    client.put_object(Bucket=BUCKET, Key="gone/a.txt", Body=b"text")
    source = SourceConfig(kind="text", path="s3://raw/gone", storage_options=options)
    files = find_inputs("mine", source).files
    client.delete_object(Bucket=BUCKET, Key="gone/a.txt")
    with pytest.raises(
        UserError, match=r"cannot fetch s3://raw/gone/a\.txt: .*NoSuchKey"
    ) as caught:
        list(SourceReader(source, files, ReadPolicy(), tmp_path))
    assert "aws_secret" not in str(caught.value)


def test_a_saved_dataset_in_a_store(
    store: tuple[Any, dict[str, str]], tmp_path: Path, read: Any
) -> None:
    client, options = store
    table = pyarrow.table({"text": ROWS})
    with (
        pyarrow.OSFile(str(tmp_path / "d.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    for key in ("ds/train/data-00000-of-00001.arrow", "ds/test/data-00000-of-00001.arrow"):
        client.upload_file(str(tmp_path / "d.arrow"), BUCKET, key)
    assert read("dataset", "s3://raw/ds", split="train", storage_options=options).texts == ROWS
