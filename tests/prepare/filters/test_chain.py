"""Chain: filters in their order, up to the first objection; and what a source's funnel says of
it.
"""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters import chain as loading
from lit_pretrain.prepare.filters.chain import Chain, Outcome
from lit_pretrain.prepare.filters.filter import Verdict, View
from lit_pretrain.prepare.filters.filter_spec import FilterSpec
from lit_pretrain.prepare.funnel import MOST, Funnel

HERE = "made_for_the_tests"


def no_x(document: Document, view: View) -> tuple[bool, str]:
    return "x" not in view.text, "has_x"


def without_z(document: Document, view: View) -> Verdict:
    return (
        Verdict(True, "z_cut", document.text.replace("z", ""))
        if "z" in document.text
        else Verdict(True)
    )


def count(document: Document, view: View) -> Verdict:
    return Verdict(len(view.words) < 4, "many_words", fields={"words": str(len(view.words))})


def forgetful(document: Document, view: View) -> None:
    return None


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of this file under a dotted path, however pytest imported it."""
    found, functions = (
        loading._find,
        {each.__name__: each for each in (no_x, without_z, count, forgetful)},
    )
    monkeypatch.setattr(
        loading, "_find", lambda path: functions.get(path.removeprefix(f"{HERE}.")) or found(path)
    )


def chain(*names: str) -> Chain:
    return Chain([FilterSpec(class_path=f"{HERE}.{name}") for name in names])


def document(text: str, **fields: str) -> Document:
    return Document(text=text, origin="file:1", fields=fields)


def test_kept() -> None:
    filters = chain("no_x", "without_z", "count")
    assert filters.names == ["no_x", "without_z", "count"]
    outcome = filters(document("a zebra is é", url="u"))
    edits = (("without_z", "z_cut"),)
    assert outcome == Outcome(
        document("a ebra is é", url="u", words="4"),
        "count",
        "many_words",
        (13, 12),
        ("a zebra is é", "a ebra is é"),
        edits,
    )
    outcome = filters(document("zé", url="u"))
    assert outcome == Outcome(
        document("é", url="u", words="1"), "", "", (3, 2, 2), ("zé", "é", "é"), edits
    )
    assert outcome.kept


def test_the_first_objection_ends_it_and_the_text_is_there() -> None:
    outcome = chain("without_z", "no_x", "forgetful")(document("xz"))
    assert not outcome.kept
    assert (outcome.removed_by, outcome.reason, outcome.document.text) == ("no_x", "has_x", "x")
    assert outcome.passed == (1,)


def test_an_edit_is_seen_by_the_filters_after_it() -> None:
    def x_of_z(text: str) -> str:
        return chain("count", "without_z", "count")(document(text)).document.fields["words"]

    assert x_of_z("a z b") == "2"


def test_nothing_left_removes() -> None:
    outcome = chain("without_z")(document("zzz"))
    assert (outcome.removed_by, outcome.reason, outcome.document.text) == (
        "without_z",
        "nothing_left",
        "zzz",
    )
    assert outcome.changed == ()


def test_wrong_return_names_the_filter() -> None:
    with pytest.raises(UserError, match="filter forgetful returned None"):
        chain("forgetful")(document("text"))


def test_no_filters() -> None:
    assert Chain([])(document("text")) == Outcome(document("text"), "", "", (), (), ())


def test_a_name_that_occurs_again_gets_a_number() -> None:
    assert chain("count", "no_x", "count", "count").names == ["count", "no_x", "count_2", "count_3"]
    assert Chain(["gopher", "c4", "fineweb"]).names == [
        "GopherRepetition",
        "GopherQuality",
        "C4",
        "FineWeb",
    ]


def test_chains_are_the_same_wherever_they_are_built() -> None:
    """Two chains, documents in another order: the same outcomes."""
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["the", "of", "some.", "thing", "\n"], k=rng.randint(1, 300)))
        for _ in range(40)
    ]
    first = {text: Chain(["c4", "gopher"])(document(text)) for text in texts}
    filters = Chain(["c4", "gopher"])
    assert {text: filters(document(text)) for text in reversed(texts)} == first


TEXTS = st.lists(st.text(alphabet="xz a", min_size=1, max_size=9), max_size=30)


@given(texts=TEXTS, cut=st.integers(0, 30))
def test_funnel(texts: list[str], cut: int) -> None:
    filters = chain("without_z", "no_x", "count")
    outcomes = [filters(document(text)) for text in texts]
    whole, parts = (
        Funnel(filters.names, 2**64),
        [Funnel(filters.names, 2**64), Funnel(filters.names, 2**64)],
    )
    for place, outcome in enumerate(outcomes):
        whole.judged(filters.names, outcome)
        parts[place < cut].judged(filters.names, outcome)
    parts[1].add(parts[0].dump())
    stored = sum(len(outcome.document.text) + 1 for outcome in outcomes if outcome.kept)
    assert parts[1].record(len, 1, stored) == whole.record(len, 1, stored), "parts add up"
    steps: dict[str, Any] = {step.name: step for step in whole.record(len, 1, stored)}
    assert list(steps) == filters.names
    documents = len(texts)
    for step in whole.record(len, 1, stored):
        assert step.documents == documents - sum(step.removed.values()), (
            "what came in left or was removed"
        )
        documents = step.documents
    # A letter is a token here, and a document one more: an estimate from all of the text is exact.
    if len(texts) <= MOST:
        for place, name in enumerate(filters.names):
            passed = [outcome.texts[place] for outcome in outcomes if len(outcome.texts) > place]
            assert steps[name].tokens == sum(map(len, passed)) + len(passed)
    kept = [outcome for outcome in outcomes if outcome.kept]
    assert steps["count"].documents == len(kept)
    assert steps["count"].bytes == sum(len(outcome.document.utf8) for outcome in kept)
    only_z = sum(not text.replace("z", "") for text in texts)
    assert steps["without_z"].removed == ({"nothing_left": only_z} if only_z else {})
    changed = sum("z" in text for text in texts) - only_z
    assert steps["without_z"].changed == ({"z_cut": changed} if changed else {})
