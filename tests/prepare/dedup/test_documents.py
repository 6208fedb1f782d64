"""Whole documents: planted copies are found, different texts stay, whatever the parts and the order of the work."""

import random
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.prepare import embedded
from lit_pretrain.prepare.dedup.config import ContainmentConfig, DedupConfig, LinesConfig, NearConfig
from lit_pretrain.prepare.dedup.decide import REASONS, Removed
from lit_pretrain.prepare.dedup.run import deduplicate
from lit_pretrain.prepare.dedup.sketch import min_hashes, shingles
from lit_pretrain.prepare.document import Document

NEAR = DedupConfig()
WITH_CONTAINMENT = DedupConfig(containment=ContainmentConfig())


def run(parts: list[list[Document]], config: DedupConfig = NEAR) -> Removed:
    with tempfile.TemporaryDirectory() as work:
        return deduplicate(parts, config, Path(work))


def jaccard(one: str, other: str, words: int = 5) -> float:
    """Over tuples of words, with nothing of the implementation under test."""
    sets = []
    for text in (one, other):
        found = re.findall(r"[a-z0-9à-ÿß]+", text.lower())
        sets.append({tuple(found[at : at + words]) for at in range(len(found) - words + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def passages(count: int, words: int = 400) -> list[str]:
    """Real text, ASCII: consecutive passages of the docstrings of the standard library, no two alike."""
    found = re.findall(
        r"[\w.,;:'()-]+", " ".join(text for _, text in embedded.documents("prose", embedded.files("prose")) if text.isascii())
    )
    texts = [" ".join(found[at : at + words]) for at in range(0, len(found), words)]
    seen: set[tuple[str, ...]] = set()
    chosen = []
    for text in texts:
        parts = text.lower().split()
        mine = {tuple(parts[at : at + 5]) for at in range(len(parts) - 4)}
        if len(mine & seen) < 0.2 * len(mine):
            chosen.append(text)
        seen |= mine
    assert len(chosen) >= count
    return chosen[:count]


@pytest.fixture(scope="module")
def real() -> list[str]:
    return passages(300)


def drop(text: str, share: float, rng: random.Random) -> str:
    """A copy that lost a share of its words."""
    words = text.split(" ")
    for at in sorted(rng.sample(range(len(words)), round(share * len(words))), reverse=True):
        del words[at]
    return " ".join(words)


@pytest.mark.parametrize(("share", "least"), [(0.01, 0.99), (0.03, 0.90)])
def test_planted_copies_are_found_and_nothing_else(real: list[str], share: float, least: float) -> None:
    rng = random.Random(7)
    copies = [drop(text, share, rng) for text in real]
    documents = [Document(text, str(n)) for n, text in enumerate([*real, *copies])]
    removed = run([documents])
    assert not (removed.document < len(real)).any()  # the first stays
    found = dict(zip(removed.document.tolist(), removed.kept.tolist(), strict=True))
    assert sum(found.get(len(real) + n) == n for n in range(len(real))) >= least * len(real)
    for document, kept, similarity in zip(removed.document, removed.kept, removed.similarity, strict=True):
        true = jaccard(documents[document].text, documents[kept].text)
        assert true == pytest.approx(similarity, abs=1e-9)
        assert true >= 0.7


def test_nobody_is_removed_over_a_chain() -> None:
    """b is like a, c is like b, and c is not like a: c stays, for b is gone."""
    rng = random.Random(0)
    words = [f"word{n}" for n in rng.sample(range(10_000), 600)]
    a, b, c = words[:400], words[50:450], words[100:500]
    config = DedupConfig(near=NearConfig(threshold=0.75, bands=60, rows=3))
    documents = [Document(" ".join(found), "") for found in (a, b, c)]
    texts = [document.text for document in documents]
    assert jaccard(texts[0], texts[1]) > 0.75
    assert jaccard(texts[1], texts[2]) > 0.75
    assert jaccard(texts[0], texts[2]) < 0.75
    assert run([documents], config).document.tolist() == [1]


def test_form_letters_are_not_merged() -> None:
    """A template makes half of each text: what LSH alone would merge stays."""
    rng = random.Random(3)
    form = " ".join(f"form{n}" for n in range(100))
    letters = [Document(f"{form} " + " ".join(f"own{rng.randrange(10**6)}" for _ in range(60)), str(n)) for n in range(200)]
    assert not len(run([letters]).document)


@settings(max_examples=25)
@given(data=st.data())
def test_parts_do_not_matter_and_what_is_left_has_no_duplicates(data: st.DataObject) -> None:
    words = st.sampled_from(["the", "fox", "sees", "a", "hen", "by", "its", "old", "barn", "and", "then", "runs"])
    base = data.draw(st.lists(st.lists(words, min_size=1, max_size=14).map(" ".join), min_size=1, max_size=12))
    texts = data.draw(st.lists(st.sampled_from(base), min_size=1, max_size=20))
    documents = [Document(text, str(n)) for n, text in enumerate(texts)]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(texts) - 1)), max_size=4)))
    parts = [documents[a:b] for a, b in zip([0, *cuts], [*cuts, len(documents)], strict=True)]
    whole, cut = run([documents], WITH_CONTAINMENT), run(parts, WITH_CONTAINMENT)
    for name, column in vars(whole).items():
        np.testing.assert_array_equal(column, getattr(cut, name))
    gone = set(whole.document.tolist())
    left = [document for number, document in enumerate(documents) if number not in gone]
    assert {document.text for document in left} <= {document.text for document in documents}
    assert len({document.text for document in left}) == len(left)
    assert not len(run([left], WITH_CONTAINMENT).document)
    assert not gone & set(whole.kept.tolist())  # everything went for something that stays


def test_a_chapter_goes_and_its_book_stays(real: list[str]) -> None:
    book = Document("\n\n".join(real[:40]), "book")
    chapter = Document("\n\n".join(real[10:14]), "chapter")
    other = Document("\n\n".join(real[50:54]), "other")
    mixed = Document("\n\n".join([*real[20:22], *real[60:64]]), "a third of it is in the book")
    for documents in ([chapter, other, book, mixed], [book, mixed, chapter, other]):
        removed = run([documents], WITH_CONTAINMENT)
        assert [documents[n].origin for n in removed.document] == ["chapter"]
        assert [documents[n].origin for n in removed.kept] == ["book"]
        assert REASONS[removed.reason[0]] == "contained"
        assert removed.similarity[0] > 0.95
    assert not len(run([[chapter, book]]).document)  # which Jaccard similarity alone does not see


def test_short_and_wordless_texts_are_compared_exactly() -> None:
    texts = ["hi", "hi", "Hi", "...", "---", "...", "one two three four", "one two three four!"]
    removed = run([[Document(text, "") for text in texts]])
    assert removed.document.tolist() == [1, 5]
    assert removed.kept.tolist() == [0, 3]


def test_each_switch_works_alone(real: list[str]) -> None:
    rng = random.Random(1)
    documents = [Document(text, "") for text in (real[0], real[0], drop(real[0], 0.01, rng))]
    assert run([documents], DedupConfig(near=None)).document.tolist() == [1]
    assert run([documents], DedupConfig(exact=False)).document.tolist() == [1, 2]
    assert not len(run([documents], DedupConfig(exact=False, near=None)).document)
    assert not len(run([[]]).document)


def test_min_hash_is_unbiased() -> None:
    """The mean over many seeds meets the true similarity within four standard errors."""
    rng = np.random.default_rng(0)
    for common in (100, 500, 900):
        pool = rng.integers(0, 2**63, 2000 - common, dtype=np.uint64)
        one, other = np.unique(pool[:1000]), np.unique(np.concatenate([pool[:common], pool[1000:]]))
        true = common / (2000 - common)
        agree = [float(np.mean(a == b)) for a, b in (min_hashes([one, other], 120, seed) for seed in range(100))]
        assert abs(np.mean(agree) - true) < 4 * (true * (1 - true) / (120 * 100)) ** 0.5


def test_shingles_are_blind_to_case_and_punctuation_only() -> None:
    one = shingles("The fox, it seems, HAS seen a hen.", 5)
    np.testing.assert_array_equal(one, shingles("the fox it seems has\nseen a hen", 5))
    assert len(one) == 4
    assert not np.array_equal(one, shingles("the fox it seems has seen one hen", 5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DedupConfig(near=NearConfig(threshold=1.5)), "near.threshold=1.5 must lie between"),
        (DedupConfig(near=NearConfig(bands=0)), "near.bands=0"),
        (DedupConfig(containment=ContainmentConfig(min_words=2)), "containment.min_words=2 must lie between 5"),
        (DedupConfig(lines=LinesConfig(min_count=1)), "lines.min_count=1"),
    ],
)
def test_mistakes(config: DedupConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.validate()
