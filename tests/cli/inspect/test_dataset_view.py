"""`inspect data`: funnel, documents, search, verification, the picture and TensorBoard."""

import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.cli.inspect.dataset_view import quality, shape_of
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def inspect(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["inspect", "data", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_funnel_and_documents(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect(capsys, dataset, "--documents=2")
    manifest = Manifest.load(dataset)
    assert manifest.hash in text
    for name, source in manifest.sources.items():
        assert re.search(
            rf"^{name} +read +{source.funnel[0].documents:,} +{source.funnel[0].bytes:,} ",
            text,
            re.M,
        )
        assert (
            text.split(f"\n{name}, at random:\n")[1].split("\n\n")[0].count(f"train/{name}/chunk-")
            == 2
        )
    assert text == inspect(capsys, dataset, "--documents=2")
    assert text != inspect(capsys, dataset, "--documents=2", "--seed=1")
    assert "at random" not in inspect(capsys, dataset, "--documents=0")


def test_find_names_shard_document_file_and_row(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = inspect(capsys, dataset, "--find", "The hen finds the owl")
    count = int(re.match(r"'The hen finds the owl': (\d+) times in \d+ documents", text).group(1))
    assert count > 5
    place = (
        r"^(?:train|validation|test)/story/chunk-0-\d\.bin row \d+ token \d+: .*story\.jsonl:\d+$"
    )
    assert len(re.findall(place, text, re.M)) == min(count, 20)
    assert text.count("[The hen finds the owl]") == min(count, 20)
    assert inspect(capsys, dataset, "--find", "no such words").startswith(
        "'no such words': 0 times in 0 documents"
    )


def test_verify_finds_a_flipped_bit(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "has the sha256" in inspect(capsys, dataset, "--documents=0", "--verify")
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    damaged = [
        sorted((copy / "train" / "sums").glob("*.bin"))[-1],
        copy / "train" / "code" / "documents.jsonl",
        copy / "tokenizer.json",
    ]
    for file in damaged:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    assert main(["inspect", "data", str(copy), "--verify"]) == 2
    error = capsys.readouterr().err
    assert all(str(file.relative_to(copy)) in error for file in damaged)
    assert error.startswith("error: 3 files of ")


def test_quality_of_texts_by_hand() -> None:
    assert quality("") == (0.0, 0.0, 0.0)
    assert quality("ab cdef 12 3!") == (2.5, 0.5, 0.0)
    length, lettered, repeated = quality("one line\none line\n\nother\none line")
    assert (lettered, repeated) == (1.0, pytest.approx(16 / 33))
    assert length == pytest.approx((3 * 7 + 5) / 7)


def test_lengths_are_those_of_the_documents(dataset: Path) -> None:
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    for name, source in manifest.sources.items():
        shape = shape_of(dataset, manifest, tokenizer, name, sample_bytes=10_000)
        part = source.splits["train"]
        assert (len(shape.tokens), shape.tokens.sum(), shape.bytes.sum()) == (
            part.documents,
            part.tokens,
            part.bytes,
        )
        assert len(shape.quality) > 3
        assert (shape.quality[:, 1] <= 1).all()


def test_picture_and_event_files(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = inspect(
        capsys,
        dataset,
        "--documents=0",
        f"--figure={tmp_path / 'a.png'}",
        f"--tensorboard={tmp_path / 'events'}",
    )
    assert f"drawn: {tmp_path / 'a.png'}" in text
    png = (tmp_path / "a.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1000 < 10 * height
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"histograms": 0}).Reload()
    tags = events.Tags()
    assert tags["images"] == ["dataset/overview"]
    assert "dataset/funnel/text_summary" in tags["tensors"]
    for name, source in Manifest.load(dataset).sources.items():
        histogram = events.Histograms(f"document_tokens_log10/{name}")[0].histogram_value
        assert histogram.num == source.splits["train"].documents
        assert np.isclose(10**histogram.max, max(shape_tokens(dataset, name)), rtol=1e-5)


def shape_tokens(dataset: Path, name: str) -> list[int]:
    return shape_of(
        dataset, Manifest.load(dataset), Tokenizer.load(dataset), name, sample_bytes=0
    ).tokens.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--find="], "--find is empty"),
        (["--documents=-1"], "must not be negative"),
        (["--figure=/dev/null/a.png"], "--figure=/dev/null/a.png cannot be written"),
        (["--tensorboard=/dev/null/a"], "--tensorboard=/dev/null/a cannot be written"),
    ],
)
def test_mistakes(
    dataset: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["inspect", "data", str(dataset), *options]) == 2
    assert message in capsys.readouterr().err
