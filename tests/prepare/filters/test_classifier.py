"""Classifier: scores are those of a plain recomputation, and its file proves itself."""

import itertools
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lit_pretrain.errors import UserError
from lit_pretrain.files import seal_json
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters import classifier as module
from lit_pretrain.prepare.filters.classifier import (
    BUCKETS,
    SCORES,
    Classifier,
    TextClassifier,
    ngram_buckets,
    text_blocks,
    threshold_for,
)
from lit_pretrain.prepare.filters.filter import Chain, View
from lit_pretrain.prepare.filters.filter_spec import FilterSpec

TEXTS = [
    "The fox sees the hen by the lake. The owl HEARS the cat.",
    "x",
    "",
    "abc",
    "  \n\n",
    "Grüße, naïve café — “quoted”… 中文字符 🦊",
    "def f(x):\n    return x + 1\n" * 3,
    "word " * 9000,  # more than a block
]
M64 = 2**64 - 1


def plain_buckets(block: bytes) -> list[list[int]]:
    """The n-grams of a block, one after the other in Python's integers."""
    words = []
    for word in re.findall(rb"[0-9a-zA-Z\x80-\xff]+", block):
        lowered = bytes(c + 32 if 65 <= c <= 90 else c for c in word)
        words.append(sum(c * pow(module._M, i, 1 << 64) for i, c in enumerate(lowered)) & M64)
    k = int(module._K64)
    pairs = [(a * k + b) & M64 for a, b in itertools.pairwise(words)]
    runs = [int.from_bytes(block[i : i + 4], "little") for i in range(len(block) - 3)]
    return [
        [((word * k) & M64) >> 46 for word in words],
        [((pair * k) & M64) >> 46 for pair in pairs],
        [((run * int(module._K32)) & 0xFFFFFFFF) >> 14 for run in runs],
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_scores_are_those_of_a_plain_recomputation(text: str) -> None:
    weights = np.random.default_rng(0).integers(-30_000, 30_000, BUCKETS).astype(np.int16)
    classifier = TextClassifier(weights, {"bias": 0.25, "scale": 1e-4})
    total: list[list[int]] = [[], [], []]
    for block in text_blocks(text):
        found = ngram_buckets(block)
        for kind, plain in enumerate(plain_buckets(block)):
            assert sorted(found[kind].tolist()) == sorted(plain)
            total[kind] += plain
    log_odds = 0.25 + sum(
        1e-4 * sum(int(weights[bucket]) for bucket in kind) / len(kind) for kind in total if kind
    )
    assert classifier.log_odds(text) == pytest.approx(log_odds, abs=1e-12)
    assert classifier.score(text) == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1 / SCORES)
    # Within a block no order counts, and the length does not decide.
    if text and len(text) < 1000:
        twice = classifier.log_odds(f"{text}\n\n{text}")
        assert abs(twice - log_odds) < 3.5  # only what stands where they meet is new


def test_only_the_beginning_of_a_huge_text_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 100)
    assert b"".join(text_blocks("a" * 1000)) == b"a" * 100


def test_a_file_comes_back_and_has_one_spelling(classifier_file: Path, tmp_path: Path) -> None:
    classifier = TextClassifier.load(classifier_file)
    classifier.save(tmp_path / "again.safetensors")
    again = TextClassifier.load(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == classifier_file.read_bytes()
    assert [again.score(text) for text in TEXTS] == [classifier.score(text) for text in TEXTS]


def test_no_byte_of_a_file_may_change(classifier_file: Path, tmp_path: Path) -> None:
    content = classifier_file.read_bytes()
    header = int.from_bytes(content[:8], "little")
    bad = tmp_path / "bad.safetensors"
    rng = np.random.default_rng(0)
    places = [0, 7, *rng.integers(8, 8 + header, 40), *rng.integers(8 + header, len(content), 10)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        bad.write_bytes(changed)
        try:
            loaded = TextClassifier.load(bad)
        except UserError:
            continue
        # White space and the like in the JSON around the sealed content.
        assert loaded.about == TextClassifier.load(classifier_file).about
        assert (loaded.weights == TextClassifier.load(classifier_file).weights).all()


def _sealed(about: dict[str, object]) -> dict[str, str]:
    return {module._METADATA: seal_json(about)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps({"weights": [1]})), "cannot be read"),
        (lambda path: save_file({"weights": np.zeros(3)}, path), "holds tensors but no classifier"),
        (
            lambda path: save_file(
                {"weights": np.zeros(3)}, path, metadata=_sealed({"format": 9})
            ),
            "of format 9",
        ),
        (
            lambda path: save_file(
                {"weights": np.zeros(BUCKETS, np.int16)},
                path,
                metadata=_sealed({"format": 1, "weights_sha256": "0"}),
            ),
            "is damaged: its weights",
        ),
        (
            lambda path: TextClassifier(
                np.zeros(BUCKETS, np.int16), {"bias": 0.0, "scale": 0.0}
            ).save(path)
            or save_file(
                {"weights": np.zeros(BUCKETS, np.int16)},
                path,
                metadata=_sealed({
                    "format": 1, "bias": "x", "scale": 1.0,
                    "weights_sha256": module._sha256(np.zeros(BUCKETS, np.int16)),
                }),
            ),
            "is damaged: bias='x'",
        ),
    ],
)  # fmt: skip
def test_what_is_no_classifier_is_refused(make, message, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    make(path)
    with pytest.raises(UserError, match=re.escape(message)):
        TextClassifier.load(path)


def test_the_filter_keeps_what_reaches_the_threshold(classifier_file: Path) -> None:
    story, code = "The fox sees the hen by the hill. " * 5, "def a_1(x):\n    return x * 3\n" * 5
    judge = Classifier(path=str(classifier_file), threshold=0.5)
    good, bad = (judge(Document(text, "o"), View(text)) for text in (story, code))
    assert good.keep
    assert not bad.keep
    assert bad.reason == "low_score"
    assert good.score is not None
    assert bad.score is not None
    assert good.score > 0.9 > 0.1 > bad.score
    assert good.fields == {"quality": f"{good.score:.6f}"}
    exact = Classifier(path=str(classifier_file), threshold=bad.score)
    assert exact(Document(code, "o"), View(code)).keep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes one of threshold"),
        ({"threshold": 0.5, "keep": 0.1}, "takes one of threshold"),
        ({"threshold": 1.5}, "threshold=1.5 must be a score"),
        ({"threshold": math.nan}, "threshold=nan must be a score"),
        ({"keep": 0.0}, "keep=0.0 must be a share"),
        ({"keep": 1.0}, "keep=1.0 must be a share"),
        ({"keep": math.nan}, "keep=nan must be a share"),
        ({"keep": "much"}, "keep"),
        ({"kep": 0.1}, "Did you mean 'keep'"),
    ],
)
def test_what_the_filter_cannot_do_is_said(arguments, message, classifier_file: Path) -> None:
    spec = FilterSpec(
        class_path="Classifier", init_args={"path": str(classifier_file), **arguments}
    )
    with pytest.raises(UserError, match=re.escape(message)):
        Chain([spec])


def test_a_source_keeps_one_share(classifier_file: Path) -> None:
    spec = FilterSpec(
        class_path="Classifier", init_args={"path": str(classifier_file), "keep": 0.5}
    )
    with pytest.raises(UserError, match="Classifier and Classifier_2 each keep a share"):
        Chain([spec, spec])


def test_the_threshold_of_a_share_is_the_highest_that_keeps_it() -> None:
    scores, sizes = np.array([3, 9, 5, 5, 1]), np.array([10, 10, 10, 10, 60])
    for share in (0.01, 0.1, 0.11, 0.3, 0.31, 0.4, 0.41, 1.0):
        found = threshold_for(scores, sizes, share)
        assert sizes[scores >= found].sum() >= share * 100
        assert sizes[scores > found].sum() < share * 100


def test_the_metadata_is_json_that_others_can_read(classifier_file: Path) -> None:
    content = classifier_file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"][module._METADATA])
    assert about["examples"]["positive"]["texts"] > 30
    assert about["held_out"]["auc"] > 0.9
