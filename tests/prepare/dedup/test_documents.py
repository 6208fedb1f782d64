"""Whole documents: planted copies are found, different texts stay, whatever the parts and the
order of the work.
"""

import itertools
import random
import re
from collections.abc import Callable

import numpy as np
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.dedup.decide import REASONS, Removed
from lit_pretrain.prepare.dedup.dedup_config import (
    ContainmentConfig,
    DedupConfig,
    LinesConfig,
    NearConfig,
)
from lit_pretrain.prepare.dedup.sketch import min_hashes, shingles
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.read import text_readers as embedded

NEAR = DedupConfig()
WITH_CONTAINMENT = DedupConfig(containment=ContainmentConfig())


Run = Callable[..., Removed]


@pytest.fixture(scope="module")
def run(deduplicate: Callable[..., Removed]) -> Run:
    def removed(parts: list[list[Document]], config: DedupConfig = NEAR) -> Removed:
        return deduplicate(parts, config)

    return removed


def jaccard(one: str, other: str, words: int = 5) -> float:
    """Over tuples of words, with nothing of the implementation under test."""
    sets = []
    for text in (one, other):
        found = re.findall(r"[a-z0-9à-ÿß]+", text.lower())
        sets.append({tuple(found[at : at + words]) for at in range(len(found) - words + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def passages(count: int, words: int = 400) -> list[str]:
    """Real text, ASCII: consecutive passages of the docstrings of the standard library, no two
    alike.
    """
    found = re.findall(
        r"[\w.,;:'()-]+",
        " ".join(
            text
            for _, text in embedded.module_documents("prose", embedded.module_files("prose"))
            if text.isascii()
        ),
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
def test_planted_copies_are_found_and_nothing_else(
    run: Run, real: list[str], share: float, least: float
) -> None:
    rng = random.Random(7)
    copies = [drop(text, share, rng) for text in real]
    documents = [Document(text, str(n)) for n, text in enumerate([*real, *copies])]
    removed = run([documents])
    assert not (removed.document < len(real)).any()  # the first stays
    found = dict(zip(removed.document.tolist(), removed.kept.tolist(), strict=True))
    assert sum(found.get(len(real) + n) == n for n in range(len(real))) >= least * len(real)
    for document, kept, similarity in zip(
        removed.document, removed.kept, removed.similarity, strict=True
    ):
        true = jaccard(documents[document].text, documents[kept].text)
        assert true == pytest.approx(similarity, abs=1e-9)
        assert true >= 0.7


def test_nobody_is_removed_over_a_chain(run: Run) -> None:
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


def test_form_letters_are_not_merged(run: Run) -> None:
    """A template makes half of each text: what LSH alone would merge stays."""
    rng = random.Random(3)
    form = " ".join(f"form{n}" for n in range(100))
    letters = [
        Document(f"{form} " + " ".join(f"own{rng.randrange(10**6)}" for _ in range(60)), str(n))
        for n in range(200)
    ]
    assert not len(run([letters]).document)


def test_a_chapter_goes_and_its_book_stays(run: Run, real: list[str]) -> None:
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


def test_what_went_for_a_chapter_is_compared_with_its_book(run: Run, real: list[str]) -> None:
    """A text like the chapter, with 250 words of its own, is not in the book: those words stand
    nowhere else.
    """
    words = " ".join(real[10:15]).split()[:1000]
    chapter, own = " ".join(words), " ".join(real[30].split()[:250])
    texts = {
        "chapter": chapter,
        "longer": f"{chapter} {own}",
        "book": "\n\n".join([*real[:10], chapter, *real[20:24]]),
    }
    assert 0.7 < jaccard(texts["chapter"], texts["longer"]) < 0.85
    for order in itertools.permutations(texts):
        documents = [Document(texts[name], name) for name in order]
        removed = run([documents], WITH_CONTAINMENT)
        kept = "longer" if order.index("longer") < order.index("chapter") else "book"
        assert [
            (order[n], order[k]) for n, k in zip(removed.document, removed.kept, strict=True)
        ] == [("chapter", kept)]


def test_a_container_that_went_is_replaced_by_what_it_went_for(run: Run, real: list[str]) -> None:
    """The chapter lies in two editions of a book; of these the first stays, though the second
    is longer.
    """
    chapter, book = " ".join(real[:3]), " ".join(real[:20])
    first = f"{book} {' '.join(real[20:23])}"
    second = f"{book} {' '.join(real[30:34])}"
    documents = [Document(text, "") for text in (first, second, chapter)]
    assert 0.7 < jaccard(first, second) < 0.9
    removed = run([documents], WITH_CONTAINMENT)
    assert [REASONS[code] for code in removed.reason] == ["near", "contained"]
    assert removed.document.tolist() == [1, 2]
    assert removed.kept.tolist() == [0, 0]


@pytest.mark.parametrize("count", [3, 60])
def test_copies_of_a_chapter_go_for_its_book(run: Run, real: list[str], count: int) -> None:
    """However many there are: in one run, and a second one finds nothing."""
    chapter, book = "\n".join(real[:4]), "\n".join(real[:30])
    removed = run(
        [[*[Document(chapter, "") for _ in range(count)], Document(book, "")]], WITH_CONTAINMENT
    )
    assert removed.document.tolist() == list(range(count))
    assert set(removed.kept.tolist()) == {count}
    assert {REASONS[code] for code in removed.reason} == {"contained"}


def test_a_chapter_of_many_books_is_found(run: Run, real: list[str]) -> None:
    chapter = real[0]
    books = [f"{' '.join(real[1 + n : 4 + n])} {chapter} {real[100 + n]}" for n in range(0, 80)]
    own = DedupConfig(near=None, containment=ContainmentConfig())
    removed = run([[*[Document(book, "") for book in books], Document(chapter, "")]], own)
    assert removed.document.tolist() == [80]
    assert removed.kept.tolist() == [max(range(80), key=lambda n: (len(shingles(books[n], 5)), -n))]


def test_a_copy_of_a_near_duplicate_says_so(run: Run, real: list[str]) -> None:
    """It is the same as what went, and 0.8 like what stays."""
    like = drop(real[0], 0.02, random.Random(3))
    removed = run([[Document(text, "") for text in (real[0], like, like)]])
    assert removed.kept.tolist() == [0, 0]
    assert [REASONS[code] for code in removed.reason] == ["near", "near"]
    assert removed.similarity.tolist() == pytest.approx([jaccard(real[0], like)] * 2)


def test_short_and_wordless_texts_are_compared_exactly(run: Run) -> None:
    texts = ["hi", "hi", "Hi", "...", "---", "...", "one two three four", "one two three four!"]
    removed = run([[Document(text, "") for text in texts]])
    assert removed.document.tolist() == [1, 5]
    assert removed.kept.tolist() == [0, 3]


def test_each_switch_works_alone(run: Run, real: list[str]) -> None:
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
        agree = [
            float(np.mean(a == b))
            for a, b in (min_hashes([one, other], 120, seed) for seed in range(100))
        ]
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
        (
            DedupConfig(containment=ContainmentConfig(min_words=2)),
            "containment.min_words=2 must lie between 5",
        ),
        (DedupConfig(lines=LinesConfig(min_count=1)), "lines.min_count=1"),
    ],
)
def test_mistakes(config: DedupConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.validate()
