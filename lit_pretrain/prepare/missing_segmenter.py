"""Warn where words are counted in Chinese, Japanese or Thai, and no segmenter is installed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from lit_pretrain.files import is_remote
from lit_pretrain.prepare.filters.filter import may_count_words
from lit_pretrain.prepare.filters.filter_spec import expand_filters
from lit_pretrain.prepare.inputs import Inputs
from lit_pretrain.prepare.prepare_config import PrepareConfig, SourceConfig
from lit_pretrain.prepare.progress_table import say
from lit_pretrain.prepare.read.reader import DamagedFile, RawText, ReadPolicy, reader_class
from lit_pretrain.words import has_segmenter, language_without_spaces

_FILES, _RECORDS, _CHARACTERS = 3, 20, 2000
"""What is looked at before a run: so many files of a source, records and characters of each."""
_CURE = (
    "words are counted by white space there, and rules about words fail or mean nothing. Install"
    " the segmenter before you prepare the data: pip install 'lit_pretrain[words]'"
)
_NAMES = {
    "zh": "Chinese", "ja": "Japanese", "th": "Thai", "km": "Khmer", "lo": "Lao", "my": "Burmese",
}  # fmt: skip


def counts_words(config: PrepareConfig, source: str) -> bool:
    """Tell whether a filter of a source, or the search for repeated lines, counts words."""
    return (config.dedup is not None and config.dedup.lines is not None) or any(
        may_count_words(spec) for spec in expand_filters(config.filters_of(source))
    )


def warn_before(config: PrepareConfig, inputs: Mapping[str, Inputs]) -> set[str]:
    """Look at the beginning of some local files of each source, and warn if one needs a segmenter.

    Returns:
        The sources that were warned of.
    """
    warned: set[str] = set()
    if has_segmenter():
        return warned
    for name, found in inputs.items():
        if not counts_words(config, name):
            continue
        languages = Counter(map(language_without_spaces, _beginnings(config.sources[name], found)))
        del languages[""]
        if languages:
            warned.add(name)
            say(f"warning: sources.{name} holds {_list(languages)}: {_CURE}")
    return warned


def warn_after(name: str, languages: Mapping[str, int]) -> None:
    """Warn of a source in which a segmenter was needed, and nobody knew before.

    Args:
        name: Name of the source.
        languages: Language -> its documents.
    """
    counts = ", ".join(f"{count:,} in {_NAMES[code]}" for code, count in languages.items() if count)
    say(f"warning: sources.{name} holds documents without spaces between words ({counts}): {_CURE}")


def _beginnings(source: SourceConfig, found: Inputs) -> Iterator[str]:
    """Yield the beginnings of some texts of the first, middle and last file."""
    files = found.files
    places = sorted({0, len(files) // 2, len(files) - 1})[:_FILES]
    reader = reader_class(source.kind)(source, ReadPolicy())
    for file in (files[place] for place in places if not is_remote(files[place].location)):
        try:
            records = itertools.islice(reader.records(Path(file.location), file.name), _RECORDS)
            for record in records:
                if isinstance(record, RawText):
                    content = record.content[: 4 * _CHARACTERS]
                    text = (
                        content.decode(errors="replace") if isinstance(content, bytes) else content
                    )
                    yield text[:_CHARACTERS]
        except (DamagedFile, OSError, ImportError):
            continue  # Reading the source reports it, with what to do.


def _list(languages: Mapping[str, int]) -> str:
    """Name the languages, the commonest first."""
    ranked = sorted(languages, key=lambda code: (-languages[code], code))
    return " and ".join(_NAMES[code] for code in ranked)
