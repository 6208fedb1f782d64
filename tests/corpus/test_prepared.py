"""Prepared text: what is damaged or swapped is named before it is read."""

import json
import shutil
from pathlib import Path

import pytest

from lit_pretrain.corpus.prepared import PreparedText
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_chunk_that_is_not_whole_is_named_before_training(copy: Path, size: int | None) -> None:
    data = TextData(path=str(copy), seq_len=64, global_batch_tokens=64 * 16, micro_batch_size=4)
    chunk = data.manifest.sources["code"].splits["train"].chunks[1]
    file = copy / "train" / "code" / chunk.filename
    if size is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="is not whole") as caught:
        data.setup("fit")
    assert str(file) in str(caught.value)
    assert chunk.sha256 in str(caught.value)
    PreparedText(str(copy)).check_whole(("validation", "test"))  # the other splits are


def test_a_swapped_tokenizer_is_refused(copy: Path) -> None:
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    first, second = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])[200:202]
    content["model"]["vocab"] |= {first[0]: second[1], second[0]: first[1]}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not the tokenizer that encoded the data"):
        PreparedText(str(copy)).tokenizer  # noqa: B018  (opened when it is read)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "flip"])
def test_a_damaged_index_is_refused(copy: Path, content: str | None) -> None:
    file = copy / "train" / "code" / "index.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(file.read_text().replace("1", "3", 1) if content == "flip" else content)
    with pytest.raises(UserError, match="is not the index that the manifest names") as caught:
        PreparedText(str(copy)).open("train", seq_len=64, shuffle_chunks=1)
    assert str(file) in str(caught.value)


def test_rows_of_every_source_are_read_by_number(dataset: Path) -> None:
    text = PreparedText(str(dataset))
    for (_, source), rows in zip(
        text.manifest.sources.items(),
        text.open("validation", seq_len=64, shuffle_chunks=1),
        strict=True,
    ):
        assert len(rows) == sum(
            (chunk.tokens - 1) // 64 for chunk in source.splits["validation"].chunks
        )
        assert len(rows[len(rows) - 1].tokens) == 65
