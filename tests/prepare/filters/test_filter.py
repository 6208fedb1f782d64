"""Filters are loaded by name or class path, and judge documents one after the other."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters import filter as loading
from lit_pretrain.prepare.filters.filter import (
    Chain,
    Outcome,
    Verdict,
    View,
    load_filter,
    verdict_of,
)
from lit_pretrain.prepare.filters.filter_spec import (
    FILTER_PRESETS,
    FILTERS,
    FilterSpec,
    expand_filters,
)
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


class OwnShare:
    """A filter of one's own that keeps a share, and scores every document or none."""

    def __init__(self, share: Any = 0.5, score: float | None = 0.5) -> None:
        self.keep_share = share
        self._score = score

    def __call__(self, document: Document, view: View) -> Verdict:
        return Verdict(True, score=self._score)


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of this file under a dotted path, however pytest imported it."""
    found, functions = (
        loading._find,
        {each.__name__: each for each in (no_x, without_z, count, forgetful, OwnShare)},
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


def own_share(**init_args: Any) -> Chain:
    return Chain([FilterSpec(class_path=f"{HERE}.OwnShare", init_args=init_args)])


def test_a_share_of_ones_own_is_a_share_and_has_scores() -> None:
    assert own_share()(document("x")).scores == (("OwnShare", 0.5),)
    for share in (0, 1, 50, -0.1, float("nan"), "much"):
        with pytest.raises(UserError, match=r"OwnShare has keep_share=.*; it must be a share"):
            own_share(share=share)
    with pytest.raises(UserError, match="gave a document no score"):
        own_share(score=None)(document("x"))


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
        whole.count_outcome(filters.names, outcome)
        parts[place < cut].count_outcome(filters.names, outcome)
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


MINE = """
import numpy as np

class Short:
    def __init__(self, limit, *, name="x"):
        self.limit = limit
    def __call__(self, document, view):
        return len(view.words) >= self.limit, "short"

class Deaf:
    pass

def loud(document, view, most=0.5):
    return sum(map(str.isupper, document.text)) / len(document.text) <= most

def nothing(document, view):
    pass

def anything(document, view, **settings):
    return np.bool_(settings["answer"])

number = 3
"""


@pytest.fixture(autouse=True)
def _my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_filters.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "my_broken.py").write_text("import no_such_library_anywhere\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_filters", raising=False)


def run(class_path: str, text: str = "two words", **init_args: Any) -> Verdict:
    return verdict_of(
        load_filter(FilterSpec(class_path=class_path, init_args=init_args))(
            Document(text=text, origin=""), View(text)
        ),
        class_path,
    )


def test_presets_and_names_are_expanded_in_their_order() -> None:
    spec = FilterSpec(class_path="C4", init_args={"min_sentences": 2})
    found = expand_filters(["fineweb", spec, "gopher", "Language", "mine.Filter"])
    assert [each.class_path for each in found] == [
        "FineWeb",
        "C4",
        "GopherRepetition",
        "GopherQuality",
        "Language",
        "mine.Filter",
    ]
    assert found[1] is spec


def test_every_preset_loads() -> None:
    for name in FILTER_PRESETS:
        assert all(callable(load_filter(spec)) for spec in expand_filters([name]))


def test_every_name_of_ours_is_a_class(classifier_file: Path) -> None:
    needed: dict[str, dict[str, Any]] = {
        "Classifier": {"path": str(classifier_file), "threshold": 0.5},
        "Url": {"words": ["x"]},
    }
    for name in FILTERS:
        made = load_filter(FilterSpec(class_path=name, init_args=needed.get(name, {})))
        assert type(made).__name__ == name


def test_a_class_of_ones_own() -> None:
    assert run("my_filters.Short", limit=3) == Verdict(False, "short")
    assert run("my_filters.Short", limit=2).keep


def test_a_function_of_ones_own() -> None:
    assert run("my_filters.loud", "LOUD") == Verdict(False, "removed")
    assert run("my_filters.loud", "LOUD", most=1).keep
    assert run("my_filters.anything", answer=False) == Verdict(False, "removed"), (
        "numpy's bool is one"
    )


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (True, Verdict(True)),
        (False, Verdict(False, "removed")),
        ((False, "why"), Verdict(False, "why")),
        ((False, ""), Verdict(False, "removed")),
        ((True, ""), Verdict(True)),
        (Verdict(True, "edited", "text"), Verdict(True, "edited", "text")),
    ],
)
def test_what_a_filter_may_return(value: Any, verdict: Verdict) -> None:
    assert verdict_of(value, "mine") == verdict


@pytest.mark.parametrize(
    "value", [None, 1, "no", (False, 3), (None, "why"), (False, "a", "b"), [False, "why"], ()]
)
def test_what_it_may_not(value: Any) -> None:
    with pytest.raises(UserError, match=r"filter my\.Filter returned .*must return a Verdict"):
        verdict_of(value, "my.Filter")


@pytest.mark.parametrize(
    ("class_path", "init_args", "message"),
    [
        ("Langauge", {}, "unknown class_path 'Langauge'. Did you mean 'Language'"),
        (
            "GopherQuality",
            {"min_word": 3},
            "GopherQuality has no argument 'min_word'. Did you mean 'min_words'",
        ),
        ("GopherQuality", {"min_words": "many"}, "GopherQuality: .*min_words"),
        ("GopherRepetition", {"top_ngrams": [2, 0.2]}, "GopherRepetition: .*top_ngrams"),
        ("Language", {"keep": "en"}, "Language: .*keep"),
        ("my_filters.Shrot", {}, "module my_filters has no 'Shrot'. Did you mean 'Short'"),
        ("my_filtres.Short", {}, "there is no module 'my_filtres'"),
        ("my_filters.sub.Short", {}, "there is no module 'my_filters.sub'"),
        (".Short", {}, "is no dotted path"),
        ("my_filters..Short", {}, "no dotted path|no module"),
        ("my_filters.Short", {}, "my_filters.Short needs init_args: limit"),
        ("my_filters.Short", {"limit": 1, "nam": "y"}, "no argument 'nam'. Did you mean 'name'"),
        ("my_filters.Deaf", {}, "cannot be called"),
        ("my_filters.Deaf", {"x": 1}, "no argument 'x'. .it takes none"),
        ("my_filters.loud", {"least": 1}, "no argument 'least'"),
        ("my_filters.loud", {"document": 1}, "no argument 'document'"),
        ("my_filters.number", {}, "neither a class nor a function but a int"),
    ],
)
def test_what_cannot_be_loaded(class_path: str, init_args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_filter(FilterSpec(class_path=class_path, init_args=init_args))


def test_an_error_inside_the_users_module_is_said_with_its_line() -> None:
    with pytest.raises(UserError, match=r"'no_such_library_anywhere' \(.*my_broken\.py, line 1\)"):
        load_filter(FilterSpec(class_path="my_broken.Filter"))


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("gohper", "Did you mean 'gopher'"),
        ("fine_web", "Did you mean 'FineWeb|fineweb'"),
        ("", "Presets:"),
    ],
)
def test_unknown_names(entry: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        expand_filters([entry])
