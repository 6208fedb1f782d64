"""FilterSpec: the filters of a config, by name, by class path or as a preset of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse.typing import register_type

from lit_pretrain.errors import UserError, did_you_mean


@dataclass(kw_only=True)
class FilterSpec:
    """One filter of a config: `{class_path: Language, init_args: {keep: [en]}}`."""

    class_path: str
    """Name of one of our filters (C4, Classifier, FineWeb, GopherQuality, GopherRepetition,
    Language, Url), or the dotted path of a filter of your own: a function, or a class whose
    objects are functions, that takes (document, view) and returns a Verdict, a bool, or (bool,
    reason).
    """
    init_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments by name."""


FilterEntry = str | FilterSpec
"""An entry in a list of filters: the name of a preset (gopher, c4, fineweb, documentation), or a
FilterSpec.
"""


def _parse_spec(value: Any) -> FilterSpec:
    """Parse a spec from its mapping in a config."""
    if isinstance(value, FilterSpec):
        return value
    if not isinstance(value, dict):
        raise UserError(
            "a filter is the name of a preset, or a mapping with class_path and init_args; found"
            f" {value!r}"
        )
    known = [each.name for each in dataclasses.fields(FilterSpec)]
    for name in value:
        if name not in known:
            raise UserError(
                "a filter takes class_path and init_args; found"
                f" {name!r}.{did_you_mean(str(name), known)}"
            )
    if not isinstance(value.get("class_path"), str):
        raise UserError(f"a filter needs class_path, the name of its class; found {value!r}")
    if not isinstance(value.get("init_args", {}), dict):
        raise UserError(
            f"init_args of {value['class_path']} must map names to values; found"
            f" {value['init_args']!r}"
        )
    return FilterSpec(**value)


# Left to itself, jsonargparse takes {class_path, init_args} for a class to instantiate, and refuses
# names without a dot.
register_type(
    FilterSpec,
    serializer=dataclasses.asdict,
    deserializer=_parse_spec,
    fail_already_registered=False,
)

FILTERS = {
    "C4": "lit_pretrain.prepare.filters.c4.C4",
    "Classifier": "lit_pretrain.prepare.filters.classifier.Classifier",
    "FineWeb": "lit_pretrain.prepare.filters.fineweb.FineWeb",
    "GopherQuality": "lit_pretrain.prepare.filters.gopher.GopherQuality",
    "GopherRepetition": "lit_pretrain.prepare.filters.gopher.GopherRepetition",
    "Language": "lit_pretrain.prepare.filters.language.Language",
    "Url": "lit_pretrain.prepare.filters.url.Url",
}
"""Our filters: name in a config -> class path, imported only when a config uses it."""
_NAMES = {class_path: name for name, class_path in FILTERS.items()}

# Rae et al. (2021), Scaling Language Models, arXiv:2112.11446, section A.1.1.
_GOPHER_REPETITION = {
    # Table A1: fractions of duplicate paragraphs and lines, and of the characters in them.
    "max_duplicate_paragraphs": 0.30,
    "max_duplicate_paragraph_characters": 0.20,
    "max_duplicate_lines": 0.30,
    "max_duplicate_line_characters": 0.20,
    # Table A1: fraction of characters in the top n-gram, and in duplicate n-grams.
    "top_ngrams": {2: 0.20, 3: 0.18, 4: 0.16},
    "duplicate_ngrams": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
}
_GOPHER_QUALITY = {
    "min_words": 50,  # "between 50 and 100,000 words"
    "max_words": 100_000,
    "min_mean_word_length": 3,  # "mean word length" from 3 to 10 characters
    "max_mean_word_length": 10,
    "max_symbols_per_word": 0.1,  # "symbol-to-word ratio" of hash signs and of ellipses
    "max_bullet_lines": 0.9,  # lines starting with a bullet point
    "max_ellipsis_lines": 0.3,  # lines ending with an ellipsis
    "min_alphabetic_words": 0.8,  # words with at least one alphabetic character
    "min_stop_words": 2,  # of the, be, to, of, and, that, have, with
}
# Raffel et al. (2020), Exploring the Limits of Transfer Learning, JMLR 21 (20-074), section 2.2.
_C4 = {
    "terminal_punctuation": True,  # lines that end in a terminal punctuation mark
    "min_sentences": 5,  # as in datatrove, with which FineWeb was made; the authors' code has 3
    "min_words_per_line": 3,  # as in datatrove; the authors' code has 5
    "max_word_length": 1000,  # in the authors' code only
    "curly_brackets": True,  # pages with a curly bracket
    "javascript": True,  # lines with the word Javascript
    "policy": True,  # boilerplate policy notices
    "lorem_ipsum": True,  # pages with "lorem ipsum"
    "citations": True,  # Wikipedia's citation marks
}
# Penedo et al. (2024), The FineWeb Datasets, arXiv:2406.17557, section 3.6.
_FINEWEB = {
    "min_sentence_end_lines": 0.12,  # fraction of lines ending with punctuation
    "max_short_lines": 0.67,  # fraction of lines shorter than 30 characters
    "short_line": 30,
    # Fraction of characters in duplicated lines: their code has 0.01, the paper says 0.1.
    "max_duplicate_line_characters": 0.01,
    "max_line_breaks_per_word": 0.3,  # in their code only
}
# Ours, for manuals, Markdown and wikis: what the rules above take for faults of a web page is how
# such text is written (code fences and braces repeat, headings have hash signs, lists and tables
# have no sentences, names and links are long). Chosen by reading what they removed
# (docs/experiments.md).
_DOCUMENTATION_REPETITION = {
    "max_duplicate_paragraphs": None,
    "max_duplicate_paragraph_characters": 0.50,
    "max_duplicate_lines": None,  # ``` and } are lines of code, over and over
    "max_duplicate_line_characters": 0.50,
    "top_ngrams": {2: 0.25, 3: 0.25, 4: 0.25},
    "duplicate_ngrams": {5: 0.40, 6: 0.38, 7: 0.36, 8: 0.34, 9: 0.32, 10: 0.30},
}
_DOCUMENTATION_QUALITY = {
    "min_words": 30,
    "max_words": 200_000,
    "min_mean_word_length": 3,
    "max_mean_word_length": 20,  # identifiers, paths and links
    "max_symbols_per_word": 0.2,  # headings, and comments of a shell
    "max_bullet_lines": None,
    "max_ellipsis_lines": 0.3,
    "min_alphabetic_words": 0.6,  # cells of tables, operators of code
    "min_stop_words": 2,
}
FILTER_PRESETS: dict[str, tuple[FilterSpec, ...]] = {
    "gopher": (
        FilterSpec(class_path="GopherRepetition", init_args=_GOPHER_REPETITION),
        FilterSpec(class_path="GopherQuality", init_args=_GOPHER_QUALITY),
    ),
    "c4": (FilterSpec(class_path="C4", init_args=_C4),),
    "fineweb": (FilterSpec(class_path="FineWeb", init_args=_FINEWEB),),
    "documentation": (
        FilterSpec(class_path="GopherRepetition", init_args=_DOCUMENTATION_REPETITION),
        FilterSpec(class_path="GopherQuality", init_args=_DOCUMENTATION_QUALITY),
    ),
}
"""The rules of published datasets by name, each number with its source above, and our own for
documentation.

FineWeb's own recipe puts several of them one after the other:

    filters:
      - {class_path: Url, init_args: {datatrove_lists: true}}       # section 3.3, the same lists
      - {class_path: Language, init_args: {keep: [en]}}             # fastText there, score >= 0.65
      - gopher                                                      # section 3.3
      - {class_path: C4, init_args: {terminal_punctuation: false}}  # section 3.5, without this rule
      - fineweb                                                     # section 3.6
"""


def expand_filters(entries: Sequence[FilterEntry]) -> list[FilterSpec]:
    """List the specs of a config's entries, with presets replaced by what they stand for.

    A filter of ours gets its name, also where the config has its class path: by the name others
    know which files and libraries it uses.

    Raises:
        UserError: A name is neither a preset nor a filter.
    """
    specs: list[FilterSpec] = []
    for entry in entries:
        if isinstance(entry, FilterSpec):
            specs.append(entry)
        elif entry in FILTER_PRESETS:
            specs += FILTER_PRESETS[entry]
        elif entry in FILTERS or "." in entry:
            specs.append(FilterSpec(class_path=entry))
        else:
            raise UserError(
                f"filters: unknown {entry!r}.{did_you_mean(entry, (*FILTER_PRESETS, *FILTERS))}"
                f" Presets: {', '.join(FILTER_PRESETS)}; filters: {', '.join(FILTERS)}; or the"
                " dotted path of your own."
            )
    return [
        dataclasses.replace(spec, class_path=_NAMES[spec.class_path])
        if spec.class_path in _NAMES
        else spec
        for spec in specs
    ]
