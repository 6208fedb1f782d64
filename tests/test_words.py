"""Words: white space where it stands between words, and a segmenter where it does not."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain import words as module
from lit_pretrain.words import count_scripts, language_without_spaces, words

SENTENCES = {
    "zh": ("研究自然语言。", ["研究", "自然", "语言", "。"]),
    "ja": ("新しい工場で、話す。", ["新しい", "工場", "で", "、", "話す", "。"]),
    "th": ("ภาษาของมนุษย์", ["ภาษา", "ของ", "มนุษย์"]),
    "km": ("ប្រទេសកម្ពុជា", ["ប្រទេស", "កម្ពុជា"]),
    "lo": ("ປະເທດລາວເປັນ", ["ປະເທດ", "ລາວ", "ເປັນ"]),
    "my": ("မြန်မာနိုင်ငံသည်", ["မြန်မာနိုင်ငံ", "သည်"]),
}


@pytest.fixture
def segmenter() -> None:
    pytest.importorskip("icu4py", reason="needs the words extra")


@pytest.fixture
def without_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_segmenter", lambda: False)


@pytest.mark.usefixtures("segmenter")
@pytest.mark.parametrize("language", SENTENCES)
def test_each_script_is_segmented_and_its_language_known(language: str) -> None:
    text, expected = SENTENCES[language]
    assert words(text) == expected
    assert language_without_spaces(text) == language
    # Words of other scripts stay as white space cuts them, and the order stays.
    assert words(f"The (first) {text}\n{text} end.") == [
        "The", "(first)", *expected, *expected, "end.",
    ]  # fmt: skip


@pytest.mark.usefixtures("without_segmenter")
@pytest.mark.parametrize("language", SENTENCES)
def test_without_a_segmenter_white_space_alone_counts(language: str) -> None:
    text = SENTENCES[language][0]
    assert words(f"{text} {text}\n") == [text, text]
    assert language_without_spaces(text) == language  # so that the warning knows it


@pytest.mark.usefixtures("segmenter")
@given(st.text(max_size=60))
def test_no_character_is_lost_and_only_scripts_without_spaces_are_cut(text: str) -> None:
    found = words(text)
    assert "".join(found) == "".join(text.split())
    if count_scripts(text) is None:
        assert found == text.split()


def test_words_stand_between_white_space() -> None:
    assert words(" It's a\ttest,\n\nreally. ") == ["It's", "a", "test,", "really."]


def test_text_with_spaces_has_no_such_language() -> None:
    english = "The Chinese word 自然 means nature, and Japanese has かな beside it; we go on. "
    for text in (
        "Plain text.",
        "Größe und Maß, “quoted” — naïve…",
        "Съешь ещё этих мягких французских булок",
        "한국어는 띄어쓰기를 합니다",
        "हिन्दी में शब्दों के बीच जगह होती है",
        english,
        "",
    ):
        assert language_without_spaces(text) == ""
    assert language_without_spaces("这里说明 nature 一词在自然科学里的用法") == "zh"
    # Far planes: rare Han characters are two units of UTF-16.
    assert language_without_spaces("\U00020000\U00020001\U00030000") == "zh"
    assert count_scripts("😀 emoji ☺ ½") is None


def test_the_table_agrees_with_a_regular_expression() -> None:
    import unicodedata

    names = re.compile("CJK UNIFIED|CJK COMPAT|HIRAGANA|KATAKANA|THAI|LAO|KHMER|MYANMAR")
    missed = [
        chr(code)
        for code in range(0x250, 0x30000)
        if unicodedata.category(chr(code)) == "Lo"
        and names.match(unicodedata.name(chr(code), ""))
        and count_scripts(chr(code)) is None
    ]
    assert not missed


def test_nothing_is_imported_for_text_with_spaces() -> None:
    code = (
        "import sys; from lit_pretrain.words import words; words('plain “text” über alles');"
        " assert 'icu4py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
