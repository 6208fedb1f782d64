"""Documents: the records name every row of every chunk, and lead to a line that holds its text."""

import json
import shutil
from pathlib import Path

import pytest

from lit_pretrain.corpus.chunk_reader import open_chunk
from lit_pretrain.corpus.documents import full_origin, read_document_records
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def test_every_row_has_its_record_and_the_record_its_line(dataset: Path) -> None:
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    seen = 0
    for name, source in manifest.sources.items():
        for split in SPLITS:
            records = iter(read_document_records(dataset, split, name))
            for chunk in source.splits[split].chunks:
                tokens, begins = open_chunk(
                    dataset / split / name / chunk.filename, manifest.dtype, chunk.bytes
                )
                for row in range(chunk.documents):
                    record = next(records)
                    assert (record.chunk, record.row, record.tokens) == (
                        chunk.filename,
                        row,
                        begins[row + 1] - begins[row],
                    )
                    file, _, line = full_origin(source, record.origin).rpartition(":")
                    text = json.loads(
                        Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
                    )["text"]
                    assert tokenizer.decode(tokens[begins[row] : begins[row + 1]].tolist()) == text
                    seen += 1
            assert next(records, None) is None
    assert seen > 200


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "is missing"), ("torn", "line 2 is damaged"), ("field", "line 1 is damaged")],
)
def test_damage_is_named(dataset: Path, tmp_path: Path, damage: str, message: str) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    file = copy / "train" / "story" / "documents.jsonl"
    lines = file.read_text().splitlines()
    if damage == "missing":
        file.unlink()
    elif damage == "torn":
        file.write_text(lines[0] + "\n" + lines[1][:20])
    else:
        file.write_text(lines[0].replace('"origin"', '"origen"') + "\n")
    with pytest.raises(UserError, match=message):
        list(read_document_records(copy, "train", "story"))
