"""A tokenizer and files of rows for the tests of post-training data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.data.tokenizer import Tokenizer

TEXT = [
    "The fox sees the hen by the lake. The owl hears the cat by the barn.",
    "What is the capital of France? The capital of France is Paris.\n\nGrüße, naïve café — “quoted”… 中文字符 🦊",
    "def f(x):\n    return x + 1\n\nuser assistant system tool answer question 12 + 34 = 46\n",
] * 4


def make_tokenizer(*special: str) -> Tokenizer:
    """A small byte-level tokenizer with the usual special tokens and some more."""
    from lit_pretrain.prepare.config import TokenizerConfig
    from lit_pretrain.prepare.tokenize import train

    return train(TEXT, TokenizerConfig(kind="train", vocab_size=300 + len(special), special_tokens=tuple(special) or None))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """With the tokens of ChatML and of Llama 3."""
    return make_tokenizer("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer as a folder that transformers can load."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as jsonl and gives the path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
