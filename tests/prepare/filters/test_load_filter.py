"""load_filter: names to filters; a misspelt name is answered with what was probably meant."""

import sys
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.chain import load_filter, verdict_of
from lit_pretrain.prepare.filters.filter import Verdict, View
from lit_pretrain.prepare.filters.filter_spec import (
    FILTER_PRESETS,
    FILTERS,
    FilterSpec,
    expand_filters,
)

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


def test_every_name_of_ours_is_a_class() -> None:
    pytest.importorskip("py3langid")
    for name in FILTERS:
        made = load_filter(
            FilterSpec(class_path=name, init_args={"words": ["x"]} if name == "Url" else {})
        )
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


def test_an_error_inside_the_users_module_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library_anywhere"):
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
