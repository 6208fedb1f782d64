"""Search: every place of a text is found, and only within one document."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.corpus.chunk_reader import find_text, full_origin, open_chunk
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def opened(dataset: Path) -> tuple[Manifest, Tokenizer]:
    return Manifest.load(dataset), Tokenizer.load(dataset)


@pytest.fixture(scope="module")
def texts(dataset: Path) -> list[tuple[str, str, str, str, int, str]]:
    """(split, source, origin, chunk, row, text) of all documents, decoded one by one."""
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    found = []
    for split in SPLITS:
        for name, source in manifest.sources.items():
            for chunk in source.splits[split].chunks:
                tokens, begins = open_chunk(
                    dataset / split / name / chunk.filename, manifest.dtype, chunk.bytes
                )
                for row in range(chunk.documents):
                    text = tokenizer.decode(tokens[begins[row] : begins[row + 1]].tolist())
                    found.append((split, name, "", chunk.filename, row, text))
    return found


@settings(max_examples=40)
@given(data=st.data())
def test_hits_are_those_of_a_plain_search(
    data: st.DataObject,
    dataset: Path,
    opened: tuple[Manifest, Tokenizer],
    texts: list[tuple[str, str, str, str, int, str]],
) -> None:
    text = data.draw(st.sampled_from(texts))[5]
    begin = data.draw(st.integers(0, len(text) - 1))
    needle = text[begin : begin + data.draw(st.integers(1, 60))]
    hits = list(find_text(dataset, *opened, needle))
    expected = []
    for split, name, _, chunk, row, whole in texts:
        place = whole.find(needle)
        while place >= 0:
            expected.append(
                (split, name, chunk, row, whole[:place][-20:], whole[place + len(needle) :][:20])
            )
            place = whole.find(needle, place + 1)
    assert [
        (h.split, h.source, h.record.chunk, h.record.row, h.before[-20:], h.after[:20])
        for h in hits
    ] == expected


def test_a_hit_leads_to_the_line_of_the_source(dataset: Path) -> None:
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    hit = next(find_text(dataset, manifest, tokenizer, "The fox"))
    file, _, line = full_origin(manifest.sources[hit.source], hit.record.origin).rpartition(":")
    assert "The fox" in json.loads(Path(file).read_text().splitlines()[int(line) - 1])["text"]
    chunk = dataset / hit.split / hit.source / hit.record.chunk
    tokens, begins = open_chunk(chunk, manifest.dtype, chunk.stat().st_size)
    first = int(begins[hit.record.row]) + hit.token
    assert "The fox" in tokenizer.decode(tokens[first : first + 8].tolist())
    assert "The fox" not in tokenizer.decode(tokens[first + 1 : first + 8].tolist())


def test_text_over_the_edge_of_two_documents_is_not_there(
    dataset: Path, texts: list[tuple[str, str, str, str, int, str]]
) -> None:
    (a, b) = next((x, y) for x, y in itertools.pairwise(texts) if x[:4] == y[:4])
    joined = a[5][-12:] + b[5][:12]
    everywhere = [t for *_, t in texts if joined in t]
    assert (
        len(list(find_text(dataset, Manifest.load(dataset), Tokenizer.load(dataset), joined)))
        == len(everywhere)
        == 0
    )


def test_a_list_that_does_not_fit_its_chunks_is_refused(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    file = copy / "train" / "story" / "documents.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="does not fit chunk"):
        list(find_text(copy, Manifest.load(copy), Tokenizer.load(copy), "The"))
