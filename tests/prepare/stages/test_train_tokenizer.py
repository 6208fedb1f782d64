"""Training is deterministic, honest about its size, and its sample uniform and bounded."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.prepare.document_store import (
    Document,
    DocumentWriter,
    clean_file,
    read_documents,
)
from lit_pretrain.prepare.prepare_config import PrepareConfig, SplitsConfig, TokenizerConfig
from lit_pretrain.prepare.stages.hold_out import Splitter
from lit_pretrain.prepare.stages.train_tokenizer import SampleTask, TokenizerSample, train_bpe
from lit_pretrain.tokenizer.byte_level import ALIASES, PATTERNS
from lit_pretrain.tokenizer.tokenizer import Tokenizer

TEXTS = [
    f"def function_{n % 17}(argument):\n    return argument * {n * 37}  # Größe №{n % 5} of the"
    " thing\n"
    for n in range(200)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, TokenizerConfig(vocab_size=300))


@pytest.mark.parametrize("pattern", sorted([*PATTERNS, *ALIASES]))
def test_trained_tokenizer(pattern: str) -> None:
    trained = train_bpe(TEXTS, TokenizerConfig(vocab_size=300, pattern=pattern))
    assert (trained.vocab_size, trained.pattern_name, trained.backend) == (
        300,
        ALIASES.get(pattern, pattern),
        "tiktoken",
    )
    assert trained.special_tokens == {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
        "<|pad|>": 3,
    }
    assert (trained.bos_id, trained.eos_id, trained.one_separator) == (0, 0, True)
    assert sorted(trained.token_bytes()[:260].tolist()) == [0] * 4 + [1] * 256
    for text in TEXTS:
        assert trained.decode(trained.encode(text)) == text
        assert len(trained.encode(text)) < len(text.encode())


def test_same_tokenizer_on_any_number_of_threads() -> None:
    code = f"""
import hashlib
from lit_pretrain.prepare.prepare_config import TokenizerConfig
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe
tokenizer = train_bpe({TEXTS!r} * 20, TokenizerConfig(vocab_size=400))
print(hashlib.sha256(tokenizer._text.encode()).hexdigest())
"""
    hashes = set()
    for threads, parallel in (("1", "true"), ("2", "true"), ("7", "true"), ("2", "false")):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        hashes.add(
            subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(hashes) == 1


def test_llama3_is_cl100k() -> None:
    # Its own regex, as meta-llama/llama3's llama/tokenizer.py gives it.
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    named = train_bpe(TEXTS, TokenizerConfig(vocab_size=300, pattern="llama3"))
    assert named.hash == train_bpe(TEXTS, TokenizerConfig(vocab_size=300, regex=regex)).hash
    assert named.hash == train_bpe(TEXTS, TokenizerConfig(vocab_size=300)).hash
    assert named.hash != train_bpe(TEXTS, TokenizerConfig(vocab_size=300, pattern="qwen2")).hash


def test_further_special_tokens() -> None:
    config = TokenizerConfig(vocab_size=300, special_tokens=["<|tool|>", "<think>"])
    config.validate()
    trained = train_bpe(TEXTS, config)
    assert list(trained.special_tokens.items())[:6] == [
        ("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2), ("<|pad|>", 3),
        ("<|tool|>", 4), ("<think>", 5),
    ]  # fmt: skip
    assert (trained.vocab_size, trained.backend, trained.bos_id) == (300, "tiktoken", 0)
    assert {4, 5}.isdisjoint(trained.encode("<think><|tool|>"))
    assert trained.decode(trained.encode("<think>")) == "<think>"


def test_own_regex(capsys: pytest.CaptureFixture[str]) -> None:
    config = TokenizerConfig(vocab_size=300, regex=r"\p{L}+|[0-9]")
    config.validate()
    trained = train_bpe(TEXTS, config)
    assert "converters to GGUF refuse the tokenizer" in capsys.readouterr().err
    assert (trained.pattern_name, trained.backend, trained.vocab_size) == (None, "tokenizers", 300)
    assert len(trained.encode("1234567")) == 7
    for text in (*TEXTS, "中 \n\t..x1", ""):
        assert trained.decode(trained.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"regex": r"\p{L}+|(abc"}, r"is not a regex: .*parenthesis at position \d+: .*>>>"),
        ({"regex": r"\p{Foo}+"}, r"is not a regex: .*invalid character property"),
        ({"regex": "[a-"}, r"is not a regex: .*char-class.*position"),
        ({"regex": "zzz"}, "does not cut .* into words"),
        ({"regex": "(?m).+"}, "does not cut .* into words"),
        ({"regex": r"\w+", "pattern": "gpt2"}, "exclude each other"),
        ({"special_tokens": ["<a>", ""]}, r"special_tokens\[1\]='' is empty"),
        ({"special_tokens": ["<a>", "<b>", "<a>"]}, r"special_tokens\[2\]='<a>' is named twice"),
        ({"special_tokens": ["<|pad|>"]}, "is there already"),
        ({"special_tokens": ["<a>"], "vocab_size": 261}, r"between 262 and .*5 special tokens"),
        ({"vocab_size": 260}, r"between 261 and .*4 special tokens and at least one merge"),
        ({"sample_bytes": 0}, "tokenizer.sample_bytes=0"),
        (
            {"kind": "file", "path": "x", "special_tokens": ["<a>"]},
            "special_tokens=.* has no meaning for kind file",
        ),
        ({"kind": "file", "path": "x", "regex": "a"}, "regex='a' has no meaning for kind file"),
        ({"kind": "file"}, "needs `path`"),
        ({"bos": "<a>"}, "bos='<a>' has no meaning for kind train"),
    ],
)
def test_mistakes_in_the_config(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        TokenizerConfig(**changes).validate()


def test_vocabulary_too_large() -> None:
    with pytest.raises(
        UserError, match=r"vocab_size=5000 is too large for this text: it yields (\d+) tokens"
    ) as caught:
        train_bpe(TEXTS[:5], TokenizerConfig(vocab_size=5000))
    most = int(str(caught.value).split("it yields ")[1].split()[0])
    assert train_bpe(TEXTS[:5], TokenizerConfig(vocab_size=most)).vocab_size == most


def test_little_text_gets_half_of_what_it_yields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        train_bpe(TEXTS[:5], TokenizerConfig(vocab_size=8192))
    most = int(str(caught.value).split("it yields ")[1].split()[0])
    told: list[int] = []
    trained = train_bpe(TEXTS[:5], TokenizerConfig(), told.append)
    assert trained.vocab_size == max(260, most // 2)
    assert f"vocab_size is {trained.vocab_size}: half of the tokens" in capsys.readouterr().err
    assert sum(told) == sum(len(text.encode()) for text in TEXTS[:5])
    assert train_bpe(["ab"], TokenizerConfig()).vocab_size == 260, "bytes and special tokens alone"


def test_saved_json_is_readable(tokenizer: Tokenizer) -> None:
    assert json.loads(tokenizer._text)["model"]["type"] == "BPE"


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    limit=st.integers(1, 400),
    shuffle=st.randoms(),
)
def test_sample_is_bounded_and_does_not_depend_on_the_order(
    sizes: list[int], limit: int, shuffle: random.Random
) -> None:
    splitter = Splitter(SplitsConfig(), 0)
    documents = [f"{n:03d}" + "é" * size for n, size in enumerate(sizes)]
    orders = [documents, shuffle.sample(documents, len(documents))]
    samples = []
    for order in orders:
        sample = TokenizerSample(limit)
        for text in order:
            sample.offer(splitter.key(text.encode()), text, len(text.encode()))
        samples.append(sample.texts())
    assert samples[0] == samples[1]
    size = sum(len(text.encode()) for text in samples[0])
    total = sum(len(text.encode()) for text in documents)
    assert min(limit, total) - 1 <= size <= limit  # the last document is cut at a whole character
    ranked = sorted(documents, key=lambda text: splitter.key(text.encode()))
    assert samples[0][:-1] == ranked[: len(samples[0]) - 1]


def test_a_small_sample_of_much_text_is_training_text(tmp_path: Path) -> None:
    """The lowest keys are held out; a sample of fewer keys than these must lie above them."""
    with DocumentWriter(clean_file(tmp_path, 0)) as writer:
        for n in range(2000):
            writer.add(Document(f"document {n:011,}", f"{n}"))
    write_file(tmp_path / "chosen.json", "{}")
    splits = SplitsConfig(validation=0.4, test=0.2)
    tokenizer = TokenizerConfig(sample_bytes=1000)
    config = PrepareConfig(out=str(tmp_path), splits=splits, tokenizer=tokenizer)
    SampleTask(config, tmp_path, 40_000, 2000, (0,))(0, lambda done: None)
    found = list(read_documents(tmp_path / "sample" / "00000.parquet"))
    assert sum(len(document.utf8) for document in found) >= 1000
    assert min(int(document.origin) for document in found) >= 0.6 * 2**64
