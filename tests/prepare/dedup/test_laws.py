"""Laws of deduplication, on corpora of copies, near copies, chapters and books, against a plain
reading of the definition.
"""

import itertools
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.prepare.dedup import dedup_files, edges, sketch
from lit_pretrain.prepare.dedup.decide import REASONS, Removed
from lit_pretrain.prepare.dedup.dedup_config import (
    ContainmentConfig,
    DedupConfig,
    LinesConfig,
    NearConfig,
)
from lit_pretrain.prepare.dedup.repeated_lines import (
    RepeatedLines,
    find_repeated_lines,
    store_lines,
)
from lit_pretrain.prepare.document_store import Document

# One row a band: whoever shares a shingle or two meets in some of them, so that candidates leave
# nothing to chance.
CONFIG = DedupConfig(
    near=NearConfig(threshold=0.6, shingle_words=2, bands=12, rows=1),
    containment=ContainmentConfig(threshold=0.9, sample=1, min_words=5),
)
LINES = LinesConfig(min_words=3)
Small = tuple[int, int, int, int]
BOUNDS = st.tuples(st.integers(6, 9), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9))


Run = Callable[..., Removed]


@pytest.fixture(scope="module")
def run(deduplicate: Callable[..., Removed]) -> Run:
    """With `bounds`, cut as a large corpus would be: keys of a range, documents of a group,
    edges of a batch, shingles of a slab.
    """

    def removed(
        parts: list[list[str]], config: DedupConfig = CONFIG, bounds: Small | None = None
    ) -> Removed:
        with pytest.MonkeyPatch.context() as patch:
            if bounds is not None:
                patch.setattr(dedup_files, "RANGE_KEYS", bounds[0])
                patch.setattr(edges, "GROUP", bounds[1])
                patch.setattr(edges, "BATCH_EDGES", bounds[2])
                patch.setattr(edges, "_SLAB", bounds[3])
                patch.setattr(sketch, "_OPEN_FILES", 1)
            return deduplicate([[Document(text, "") for text in part] for part in parts], config)

    return removed


def shingle_set(text: str) -> set[tuple[str, ...]]:
    """Over tuples of words, with nothing of the implementation under test."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[at : at + 2]) for at in range(len(words) - 1)}


def expected(texts: list[str], config: DedupConfig) -> list[tuple[int, int, str, float]]:
    """(document, kept, reason, similarity) by the definition: all pairs, no sketch."""
    assert config.near is not None
    assert config.containment is not None
    sets = [shingle_set(text) for text in texts]
    firsts = [n for n, text in enumerate(texts) if text not in texts[:n]]
    long = [n for n in firsts if len(sets[n]) + 2 > config.containment.min_words]

    def longer(n: int) -> tuple[int, int]:
        return -len(sets[n]), n

    def lies_in(n: int, m: int) -> bool:
        return longer(m) < longer(n) and len(sets[n] & sets[m]) >= 0.9 * len(sets[n])

    def alike(n: int, m: int) -> bool:
        return len(sets[n] & sets[m]) >= threshold * len(sets[n] | sets[m])

    threshold = config.near.threshold
    inside = {
        n: [m for m in sorted(long, key=longer) if lies_in(n, m) and not alike(n, m)] for n in long
    }
    rank = {n: n for n in firsts}
    for n in sorted(long, key=longer, reverse=True):
        for m in inside[n]:
            rank[m] = min(rank[m], rank[n])
    kept: list[int] = []
    gone: dict[int, tuple[int, str, float]] = {}
    for n in sorted(firsts, key=lambda n: (rank[n], -len(sets[n]) if n in inside else 0, n)):
        holders = [m for m in inside.get(n, []) if m in kept]
        instead = [gone[m][0] for m in inside.get(n, []) if m in gone]
        holders = holders or [m for m in instead if lies_in(n, m)]
        likeness = {
            m: len(sets[n] & sets[m]) / len(sets[n] | sets[m]) for m in kept if sets[n] & sets[m]
        }
        like = [m for m in likeness if likeness[m] >= threshold]
        if like:
            best = min(like, key=lambda m: (-likeness[m], m))
            gone[n] = (best, "near", likeness[best])
        elif holders:
            gone[n] = (holders[0], "contained", len(sets[n] & sets[holders[0]]) / len(sets[n]))
        else:
            kept.append(n)
    for n, text in enumerate(texts):
        if n not in firsts:
            first = texts.index(text)
            gone[n] = gone.get(first, (first, "exact", 1.0))
    return [(n, *gone[n]) for n in sorted(gone)]


def rows(removed: Removed) -> list[tuple[int, int, str, float]]:
    columns = (removed.document, removed.kept, removed.reason, removed.similarity)
    return [
        (int(n), int(k), REASONS[code], float(s)) for n, k, code, s in zip(*columns, strict=True)
    ]


@st.composite
def corpora(draw: Callable[..., Any]) -> list[str]:
    """Texts that are pieces, joins, copies and near copies of each other."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    passages = [
        [f"w{rng.randrange(60)}" for _ in range(rng.randrange(3, 20))]
        for _ in range(draw(st.integers(1, 5)))
    ]
    texts: list[list[str]] = []
    for kind in draw(
        st.lists(
            st.sampled_from(["passage", "book", "copy", "near", "longer", "piece", "words"]),
            min_size=1,
            max_size=14,
        )
    ):
        base = rng.choice(texts) if texts else rng.choice(passages)
        if kind == "passage":
            text = rng.choice(passages)
        elif kind == "book":
            text = [
                word
                for passage in rng.sample(passages, rng.randrange(1, len(passages) + 1))
                for word in passage
            ]
        elif kind == "copy":
            text = base
        elif kind == "near":
            text = [word for word in base if rng.random() > 0.06] or base
        elif kind == "longer":
            text = [*base, *(f"own{rng.randrange(99)}" for _ in range(rng.randrange(1, 5)))]
        elif kind == "piece":
            begin = rng.randrange(len(base))
            text = base[begin : begin + rng.randrange(1, 12)]
        else:
            text = [rng.choice(["...", "Hi", "hi"])]
        texts.append(list(text))
    return [" ".join(text) for text in texts]


def cut(texts: list[str], cuts: list[int]) -> list[list[str]]:
    places = [0, *sorted(min(place, len(texts)) for place in cuts), len(texts)]
    return [texts[a:b] for a, b in itertools.pairwise(places)]


@settings(max_examples=25)
@given(texts=corpora(), cuts=st.lists(st.integers(0, 14), max_size=4), bounds=BOUNDS)
def test_equal_to_the_definition_however_it_is_cut(
    run: Run, texts: list[str], cuts: list[int], bounds: Small
) -> None:
    found = rows(run(cut(texts, cuts), bounds=bounds))
    wanted = expected(texts, CONFIG)
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    np.testing.assert_allclose([row[3] for row in found], [row[3] for row in wanted])


@settings(max_examples=15)
@given(texts=corpora(), holders=st.integers(1, 4), seed=st.integers(0, 9))
def test_what_went_went_for_something_that_stays(
    run: Run, texts: list[str], holders: int, seed: int
) -> None:
    """Whatever chance and bounds leave out of the candidates: everybody's partner is there, and
    is what the report says.
    """
    config = DedupConfig(
        near=NearConfig(threshold=0.6, shingle_words=2, bands=3, rows=2, seed=seed),
        containment=CONFIG.containment,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges, "HOLDERS", holders)
        found = rows(run([texts], config))
    gone = {row[0] for row in found}
    sets = [shingle_set(text) for text in texts]
    for document, kept, reason, similarity in found:
        assert kept not in gone
        common = len(sets[document] & sets[kept])
        if reason == "exact":
            assert (texts[document], similarity) == (texts[kept], 1.0)
            assert kept < document
        elif reason == "near":
            assert similarity == pytest.approx(common / len(sets[document] | sets[kept]))
            assert similarity >= 0.6
        else:
            assert similarity == pytest.approx(common / len(sets[document]))
            assert similarity >= 0.9
            assert len(sets[kept]) >= len(sets[document])


@settings(max_examples=15)
@given(texts=corpora(), seed=st.integers(0, 9))
def test_a_second_run_finds_nothing(run: Run, texts: list[str], seed: int) -> None:
    config = DedupConfig(
        near=NearConfig(threshold=0.6, shingle_words=2, bands=3, rows=2, seed=seed),
        containment=CONFIG.containment,
    )
    gone = {row[0] for row in rows(run([texts], config))}
    assert not rows(run([[text for n, text in enumerate(texts) if n not in gone]], config))


def without_lines(parts: list[list[str]], ranges: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        work, number, lefts = Path(folder), 0, []
        files = [work / f"lines-{place}" for place in range(len(parts))]
        for part, path in zip(parts, files, strict=True):
            store_lines(
                [(number + place, Document(text, "")) for place, text in enumerate(part)],
                path,
                LINES,
            )
            number += len(part)
        found = [work / f"repeated-{place}" for place in range(ranges)]
        for place, path in enumerate(found):
            find_repeated_lines(files, place, ranges, path, LINES)
        number = 0
        for part, path in zip(parts, files, strict=True):
            repeated = RepeatedLines(found, path)
            lefts += [
                repeated.drop_from(text, number + place, LINES)[0]
                for place, text in enumerate(part)
            ]
            number += len(part)
        return lefts


@settings(max_examples=12)
@given(
    texts=corpora(),
    cuts=st.lists(st.integers(0, 14), max_size=4),
    ranges=st.integers(1, 4),
    bounds=BOUNDS,
)
def test_documents_then_lines(
    run: Run, texts: list[str], cuts: list[int], ranges: int, bounds: Small
) -> None:
    """All kinds at once: what is left does not depend on the cuts, and no long line is in it
    twice.
    """
    pages = [re.sub(r"((?:\S+ ){4})", r"\1\n", text) for text in texts]
    lefts = []
    for parts, pieces, limit in (([pages], 1, None), (cut(pages, cuts), ranges, bounds)):
        gone = {row[0] for row in rows(run(parts, bounds=limit))}
        kept, number = [], 0
        for part in parts:
            kept.append(
                [text for place, text in enumerate(part, start=number) if place not in gone]
            )
            number += len(part)
        lefts.append(without_lines(kept, pieces))
    assert lefts[0] == lefts[1]
    lines = [
        {line.strip() for line in text.split("\n") if len(line.split()) >= 3} for text in lefts[0]
    ]
    assert sum(map(len, lines)) == len(set().union(*lines))
    assert without_lines([lefts[0]], 1) == lefts[0]


@settings(max_examples=12)
@given(texts=corpora(), seed=st.integers(0, 2**32))
def test_of_copies_the_order_decides_which_stays_and_not_what(
    run: Run, texts: list[str], seed: int
) -> None:
    shuffled = random.Random(seed).sample(texts, len(texts))
    left = []
    for order in (texts, shuffled):
        gone = {row[0] for row in rows(run([order], DedupConfig(near=None)))}
        left.append(sorted(text for n, text in enumerate(order) if n not in gone))
    assert left[0] == left[1] == sorted(set(texts))
