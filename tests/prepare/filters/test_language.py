"""Language: detected, recorded, kept or not; codes that do not exist are refused with the
nearest that does.
"""

from typing import Any

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import Verdict, View
from lit_pretrain.prepare.filters.language import LANGUAGE_GROUPS, Language, _identifier

TEXTS = {
    "en": (
        "All human beings are born free and equal in dignity and rights. They are endowed with"
        " reason and conscience."
    ),
    "de": (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und"
        " Gewissen begabt."
    ),
    "fr": (
        "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de"
        " raison."
    ),
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}


def judge(text: str, **arguments: Any) -> Verdict:
    return Language(**arguments)(Document(text=text, origin=""), View(text))


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_apart(code: str) -> None:
    assert judge(TEXTS[code], keep=[code]) == Verdict(True, fields={"language": code})
    others = sorted(TEXTS.keys() - {code})
    assert judge(TEXTS[code], keep=others) == Verdict(
        False, f"language_{code}", fields={"language": code}
    )
    assert judge(TEXTS[code]) == Verdict(True, fields={"language": code}), (
        "without `keep` it is only recorded"
    )


WU = "伊拉个辰光侬勿晓得阿拉屋里向个事体，伊讲个闲话阿拉侪听勿懂。"
CANTONESE = "佢哋唔知道我哋屋企嘅嘢，佢講嘅嘢我哋都聽唔明，你哋喺邊度呀？"


def test_a_language_stands_for_its_group() -> None:
    assert judge(WU).fields["language"] == "wuu"
    assert judge(CANTONESE).fields["language"] == "yue"
    for text in (WU, CANTONESE):
        assert judge(text, keep=["en", "zh"]).keep
        assert not judge(text, keep=["en", "zh"], groups=False).keep
        assert not judge(text, keep=["ja"]).keep
    assert not judge(TEXTS["ja"], keep=["zh"]).keep
    known = set(_identifier(None).labels)
    for code, others in LANGUAGE_GROUPS.items():
        assert {code, *others} <= known, "every code is one of the model's"


def test_a_toss_up_is_removed() -> None:
    verdict = judge("12 x 7", min_score=0.9)
    assert not verdict.keep
    assert verdict.reason == "low_score"
    assert judge("12 x 7").keep, "no score is asked for by default"
    assert judge(TEXTS["en"], keep=["en"], min_score=0.9).keep


def test_only_the_start_is_looked_at() -> None:
    mixed = TEXTS["de"] + TEXTS["en"] * 50
    assert judge(mixed, characters=100).fields["language"] == "de"
    assert judge(mixed, characters=100_000).fields["language"] == "en"


def test_choosing_among_fewer_languages() -> None:
    assert judge(TEXTS["de"], languages=["en", "fr"], min_score=0).fields["language"] in (
        "en",
        "fr",
    )
    assert judge(TEXTS["de"]).fields["language"] == "de", (
        "the choice of one filter is not that of another"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": ["eng"]}, "keep: unknown language code 'eng'. Did you mean 'en'"),
        ({"keep": ["EN"]}, "'EN'. Did you mean 'en'"),
        ({"keep": ["en", "german"]}, "'german'.*Known: .*de,"),
        ({"languages": ["q"]}, "languages: unknown"),
        ({"keep": []}, "keep is empty"),
        ({"keep": ["en"], "languages": ["de", "fr"]}, "not among"),
        ({"min_score": 1.5}, "min_score"),
        ({"characters": 0}, "characters"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Language(**arguments)
