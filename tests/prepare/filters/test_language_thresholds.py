"""Text without spaces between words: rules count its words, and know its language."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("icu4py", reason="needs the words extra")

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.c4 import C4, count_sentences
from lit_pretrain.prepare.filters.filter import Chain, View
from lit_pretrain.prepare.filters.filter_spec import FilterSpec
from lit_pretrain.prepare.filters.fineweb import FineWeb
from lit_pretrain.prepare.filters.gopher import (
    DUPLICATE_NGRAMS,
    TOP_NGRAMS,
    GopherQuality,
    GopherRepetition,
)
from lit_pretrain.prepare.filters.language_thresholds import ENGLISH, LANGUAGE_THRESHOLDS
from lit_pretrain.words import words

LANGUAGES = tuple(LANGUAGE_THRESHOLDS)
Write = Callable[..., str]


def judge(entry: Any, text: str) -> str:
    """Reason why a filter removes a text; empty if it keeps it."""
    outcome = Chain([entry])(Document(text, "x"))
    return outcome.reason


@pytest.mark.parametrize("preset", ["GopherQuality", "fineweb", "c4"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_good_text_of_every_language_passes(
    write_spaceless: Write, language: str, preset: str
) -> None:
    texts = [write_spaceless(language, seed) for seed in range(12)]
    assert {View(text).language for text in texts} == {language}
    reasons = [judge(preset, text) for text in texts]
    assert reasons.count("") >= 11, reasons


@pytest.mark.parametrize("language", LANGUAGES)
def test_bad_text_of_every_language_is_removed(write_spaceless: Write, language: str) -> None:
    good = write_spaceless(language, 1)
    sentence = good.splitlines()[0]
    shuffled = "\n".join(" ".join(words(line)[::7]) for line in good.splitlines())
    assert judge("gopher", "\n".join([sentence] * 20)) == "duplicate_lines"
    repeats = (good[:200] + sentence * 30).replace("\n", "")
    assert judge("gopher", repeats).startswith(("top_", "duplicate_"))
    assert judge("gopher", sentence[:30]) != ""
    off = {"min_sentence_end_lines": None, "max_duplicate_line_characters": None}
    breaks = FilterSpec(class_path="FineWeb", init_args=off)
    assert judge(breaks, good) == ""
    assert judge(breaks, "\n".join(words(good))) == "too_many_line_breaks"
    assert judge("gopher", "1 2 3 4 5 6 7 8 9 10 \n" * 3 + shuffled[:40]) != ""


@pytest.mark.parametrize("language", LANGUAGES)
def test_verdicts_are_those_of_datatrove_with_the_same_words_and_thresholds(
    write_spaceless: Write, language: str
) -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters", reason="needs the cluster extra")
    from datatrove.data import Document as TheirDocument
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Ours(WordTokenizer):  # type: ignore[misc]  # datatrove has no types
        def word_tokenize(self, text: str) -> list[str]:
            return words(text)

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError  # these filters count words alone

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError  # likewise

    known, splitter = LANGUAGE_THRESHOLDS[language], Ours()
    pairs: list[tuple[Any, Any]] = [
        (
            GopherQuality(),
            filters.GopherQualityFilter(
                min_avg_word_length=min(3, known.min_mean_word_length),
                max_avg_word_length=max(10, known.max_mean_word_length),
                max_non_alpha_words_ratio=min(0.8, known.min_alphabetic_words),
                stop_words=list(known.stop_words),
                language=splitter,
            ),
        ),
        (
            GopherRepetition(),
            filters.GopherRepetitionFilter(
                dup_line_frac=max(0.3, known.max_duplicate_lines),
                top_n_grams=tuple((n, max(TOP_NGRAMS[n], known.top_ngrams[n])) for n in TOP_NGRAMS),
                dup_n_grams=tuple(
                    (n, max(DUPLICATE_NGRAMS[n], known.duplicate_ngrams[n]))
                    for n in DUPLICATE_NGRAMS
                ),
                language=splitter,
            ),
        ),
        (
            FineWeb(),
            filters.FineWebQualityFilter(
                line_punct_thr=min(0.12, known.min_sentence_end_lines),
                short_line_thr=1.0,
                char_duplicates_ratio=0.1,
                new_line_ratio=max(0.3, known.max_line_breaks_per_word),
                language=splitter,
            ),
        ),
    ]
    seen = set()
    for seed in range(30):
        text = write_spaceless(language, seed, sentences=4 + 4 * (seed % 5))
        text += ("\n" + text.splitlines()[0]) * (seed % 7) + " 12 34 (56)" * (seed % 11)
        for ours, theirs in pairs:
            mine = ours(Document(text, "x"), View(text)).keep
            assert mine == (theirs.filter(TheirDocument(text=text, id="")) is True), (seed, text)
            seen.add((type(ours).__name__, mine))
    assert {keep for _, keep in seen} == {True, False}


def test_what_counts_as_english_are_the_defaults_of_the_filters() -> None:
    """A threshold is laxer in a language only where a filter has its default."""
    defaults = {
        name: each.default
        for filter in (GopherRepetition, GopherQuality, FineWeb)
        for name, each in inspect.signature(filter).parameters.items()
    }
    assert {name: defaults[name] for name in ENGLISH} == dict(ENGLISH)


def test_thresholds_of_the_user_and_of_text_with_spaces_stay(write_spaceless: Write) -> None:
    text = write_spaceless("zh", 3)
    assert judge(FilterSpec(class_path="GopherQuality"), text) == ""
    for arguments, reason in (
        ({"min_mean_word_length": 2.9}, "short_words"),
        ({"min_alphabetic_words": 0.95}, "too_few_alphabetic_words"),
        ({"stop_words": ["the", "of"]}, "too_few_stop_words"),
        ({"by_language": False}, "short_words"),
    ):
        assert judge(FilterSpec(class_path="GopherQuality", init_args=arguments), text) == reason
    assert judge(FilterSpec(class_path="GopherQuality"), "no stop words here at all " * 20) == (
        "too_few_stop_words"
    )


@pytest.mark.parametrize(
    ("language", "line", "count"),
    [
        ("zh", "他来了。她走了！你呢？我在3.5米处，", 4),
        ("ja", "「来た。」と言った。それから、", 3),
        ("th", "ครูไปโรงเรียน นักเรียนกลับบ้าน", 2),
        ("km", "គ្រូទៅសាលា។ សិស្សទៅផ្ទះ។", 2),
        ("my", "ဆရာသွားသည်။ ကျောင်းသားပြန်သည်။", 2),
        ("", "One. Two? “Three!” v1.2 goes on", 4),
    ],
)
def test_sentences_end_with_the_marks_of_their_language(
    language: str, line: str, count: int
) -> None:
    assert count_sentences(line, language) == count


def test_c4_keeps_lines_that_end_a_sentence_in_their_language(write_spaceless: Write) -> None:
    lines = write_spaceless("zh", 5).splitlines()
    text = "\n".join([*lines, "首页，产品，联系", "他说：「好。」", "版权"])
    verdict = C4()(Document(text, "x"), View(text))
    assert verdict.keep
    assert verdict.text is not None
    assert verdict.text.splitlines() == [*lines, "他说：「好。」"]


MANUAL = """# Client

## new Client(url, options)

* **url** `URL` - the address of the server, with its protocol
* **options** `object` - all of them may be left out
* **retries** `number` - how often to try again (default: `3`)

```js
const client = new Client('http://localhost:3000')
client.request({ path: '/', method: 'GET' }, function (error, data) {
  if (error) {
    throw error
  }
})
```

## client.close()

Closes the client and ends all of the requests that have not been sent yet.

```js
client.close({ force: true }, function (error) {
  if (error) {
    throw error
  }
})
```

| option | meaning |
|---|---|
| `force` | do not wait for the answers that are on their way |
| `timeout` | how many milliseconds to wait for them |
"""


def test_documentation_is_kept_by_its_preset() -> None:
    """Code fences, headings and lists are its form; what repeats itself is still removed."""
    assert judge("documentation", MANUAL) == ""
    assert {judge(preset, MANUAL) != "" for preset in ("c4", "fineweb")} == {True}
    assert judge("documentation", "\n".join(["See the list of all of the pages"] * 30)) != ""
    assert judge("documentation", "- [a/b/c](https://example.org/a/b/c/d/e/f/g)\n" * 40) != ""
