"""URL: where a document came from, against lists of domains, addresses and words.

The rules of datatrove 0.10.1's filter, which FineWeb ran with the lists that come inside that
package (adult sites of the University of Toulouse and words; `datatrove_lists: true` reads them as
data, offline). Three differences. A domain on the list covers all that lies under it (datatrove
looks at the registered domain and the full host name alone, and asks the network for the list of
public suffixes). Addresses are compared without scheme, "www." and closing slash (theirs hold no
scheme, so that no full URL could ever match). Words are compared in lower case (they lower the list
but not the URL).
"""

from __future__ import annotations

import functools
import importlib.util
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, FilterInputs, Verdict, View, remove

_NO_WORD = re.compile(r"[^a-z0-9]+")
_SCHEME = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//")
_ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"


class Url:
    """Remove documents by their field `url`.

    Every list may also name files with one entry a line; empty lines and those that begin with #
    are left out.

    Reasons, in the order of the checks: no_url, domain, address, word, soft_words, substring.

    Args:
        domains: Hosts, with all that lies under them (example.org covers www.example.org).
        domain_files: Files of domains. A domain or address takes 8 bytes, so that millions fit.
        addresses: Whole URLs.
        address_files: Files of addresses.
        words: Words of the URL; whatever is no letter or digit separates words.
        word_files: Files of words.
        soft_words: Words of which `min_soft_words` different ones must occur.
        soft_word_files: Files of soft words.
        substrings: What occurs anywhere in the URL once all but letters and digits is taken out.
        substring_files: Files of substrings.
        min_soft_words: See `soft_words`.
        datatrove_lists: Add the lists inside the datatrove package: 4.6 million domains, read in
            some seconds and held in 37 MB.
        without_url: What to do with a document that has no URL.

    Raises:
        UserError: A file cannot be read, datatrove's lists are not there, or all lists are empty.
    """

    counts_words = False

    @staticmethod
    def inputs(init_args: Mapping[str, Any]) -> FilterInputs:
        """See `Filter`."""
        return FilterInputs(packages=("datatrove",) if init_args.get("datatrove_lists") else ())

    def __init__(
        self,
        *,
        domains: list[str] | None = None,
        domain_files: list[str] | None = None,
        addresses: list[str] | None = None,
        address_files: list[str] | None = None,
        words: list[str] | None = None,
        word_files: list[str] | None = None,
        soft_words: list[str] | None = None,
        soft_word_files: list[str] | None = None,
        substrings: list[str] | None = None,
        substring_files: list[str] | None = None,
        min_soft_words: int = 2,
        datatrove_lists: bool = False,
        without_url: Literal["keep", "remove"] = "keep",
    ) -> None:
        domain_entries = _entries("domain_files", domains, domain_files)
        address_entries = _entries("address_files", addresses, address_files)
        self._domains = [_hashes(map(_host, domain_entries))]
        self._addresses = [_hashes(map(_address, address_entries))]
        found = {
            "words": set(map(_squeezed, _entries("word_files", words, word_files))),
            "soft_words": set(
                map(_squeezed, _entries("soft_word_files", soft_words, soft_word_files))
            ),
            "substrings": set(
                map(_squeezed, _entries("substring_files", substrings, substring_files))
            ),
        }
        if datatrove_lists:
            more_domains, more_addresses = _datatrove_hashes()
            self._domains.append(more_domains)
            self._addresses.append(more_addresses)
            for name, file in (
                ("words", "banned_words"),
                ("soft_words", "soft_banned_words"),
                ("substrings", "banned_subwords"),
            ):
                found[name].update(
                    map(_squeezed, _lines(_datatrove_assets() / f"{file}.txt", "datatrove_lists"))
                )
        self._words, self._soft_words, parts = (
            found[name] - {""} for name in ("words", "soft_words", "substrings")
        )
        self._substring = re.compile("|".join(map(re.escape, sorted(parts)))) if parts else None
        self._min_soft_words = min_soft_words
        self._without_url = without_url
        if not (
            any(map(len, (*self._domains, *self._addresses)))
            or self._words
            or self._soft_words
            or parts
        ):
            raise UserError(
                "Url has only empty lists; give it domains, addresses or words, or set"
                " datatrove_lists: true"
            )

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        url = document.fields.get("url", "").strip().lower()
        if not url:
            return KEEP if self._without_url == "keep" else remove("no_url")
        host = _host(url)
        labels = host.split(".")
        if any(_within(".".join(labels[start:]), self._domains) for start in range(len(labels))):
            return remove("domain")
        if _within(_address(url), self._addresses):
            return remove("address")
        parts = set(_NO_WORD.split(url))
        if not parts.isdisjoint(self._words):
            return remove("word")
        if self._soft_words and len(parts & self._soft_words) >= self._min_soft_words:
            return remove("soft_words")
        if self._substring is not None and self._substring.search(_squeezed(url)):
            return remove("substring")
        return KEEP


def _host(url: str) -> str:
    """Return the host of a URL or of a list's entry, without user, port and closing dot."""
    authority = re.split(r"[/?#]", _SCHEME.sub("", url.strip().lower()), maxsplit=1)[0].rpartition(
        "@"
    )[2]
    return re.sub(r":\d*$", "", authority).strip(".")


def _address(url: str) -> str:
    """Normalise a URL: lower case, without scheme, "www.", fragment and closing slash."""
    return _SCHEME.sub("", url.strip().lower()).partition("#")[0].removeprefix("www.").rstrip("/")


def _squeezed(text: str) -> str:
    """Keep letters and digits only, in lower case."""
    return _NO_WORD.sub("", text.lower())


def _entries(name: str, given: list[str] | None, files: list[str] | None) -> Iterator[str]:
    """Yield the entries of the config, then those of its files."""
    yield from given or ()
    for file in files or ():
        yield from _lines(Path(file), name)


def _lines(path: Path, name: str) -> Iterator[str]:
    """Yield the entries of a file."""
    try:
        with path.open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: {path} is not UTF-8 text: {error}") from None


def _hashes(entries: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Hash entries to 64 bits, sorted and each once, so that millions take 8 bytes each.

    Two entries share a hash by chance once in 10^12 look-ups.
    """
    return np.unique(
        np.fromiter((_hash(entry.encode()) for entry in entries if entry), dtype=np.uint64)
    )


def _hash(entry: bytes) -> int:
    """Hash one entry."""
    return xxhash.xxh3_64_intdigest(entry)


def _within(entry: str, lists: list[npt.NDArray[np.uint64]]) -> bool:
    """Look an entry up in sorted lists of hashes."""
    value = np.uint64(_hash(entry.encode("utf-8", "surrogatepass")))
    return any(
        place < len(known) and known[place] == value
        for known in lists
        for place in (known.searchsorted(value),)
    )


def _datatrove_assets() -> Path:
    """Find where the package keeps its lists, without importing it, which takes seconds."""
    spec = importlib.util.find_spec("datatrove")
    folder = (
        Path(spec.submodule_search_locations[0], "assets")
        if spec and spec.submodule_search_locations
        else None
    )
    if folder is None or not (folder / _ARCHIVE).is_file():
        raise UserError(
            "datatrove_lists: the package datatrove"
            f" {'is not installed' if folder is None else f'has no {_ARCHIVE} in {folder}'}."
            " Install datatrove 0.10.1, or give files of your own (domain_files, address_files,"
            " word_files)."
        )
    return folder


@functools.cache  # Reading them takes some seconds.
def _datatrove_hashes() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the domains and addresses of the package, hashed.

    Its entries are in lower case and without scheme, one a line.
    """
    found: list[npt.NDArray[np.uint64]] = []
    with tarfile.open(_datatrove_assets() / _ARCHIVE, "r:gz") as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}
        for name in ("domains", "urls"):
            file = archive.extractfile(members[name])
            assert file is not None, f"{name} is no file in {_ARCHIVE}"
            lines = (line.strip() for line in file)
            found.append(
                np.unique(
                    np.fromiter(
                        (_hash(line) for line in lines if line[:1] != b"#"), dtype=np.uint64
                    )
                )
            )
    return found[0], found[1]
