"""Which files of a folder, or of a prefix of a store, a source reads, and which it passes over.

Two rules hold everywhere. A name that begins with a dot is hidden, as is all that lies below a
folder of such a name (`.git/`, `.ipynb_checkpoints/`): programs keep their own files there. And the
ending of a name is compared without regard to case, so that `README.TXT` is text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HIDDEN = "hidden"
"""Key of the hidden files among those that were passed over; the other keys are endings."""
NO_ENDING = "without ending"
"""Key of files whose names have no ending, such as Makefile."""

_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".7z")
"""Endings that say how a file is packed, and not what it holds."""


_SET = re.compile(r"\[!?\]?[^\]/]*\]")


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case: .txt, .jsonl.gz; empty if it has none."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in _PACKED:
        return "".join(suffixes)
    return suffixes[-1] if suffixes else ""


def is_shown(name: str, pattern: str | None) -> bool:
    """Tell whether a file is not hidden, or the pattern spells the dots that would hide it.

    As in a shell, a wildcard matches no dot at the beginning of a name: `.github/*.md` reads a
    folder that `**/*.md` passes over.

    Args:
        name: Path of the file below its folder or prefix, with forward slashes.
        pattern: The source's `glob`.
    """
    if not name.startswith(".") and "/." not in name:
        return True
    return pattern is not None and matcher(pattern, hidden=False).fullmatch(name) is not None


def matcher(pattern: str, *, hidden: bool = True) -> re.Pattern[str]:
    """Translate a pattern of `Path.glob` to a regular expression for whole names below a folder.

    Args:
        pattern: The pattern; its ending is compared without regard to case.
        hidden: Whether wildcards match a dot at the beginning of a name.
    """
    begin = "" if hidden else r"(?!(?<![^/])\.)"  # no dot where a name begins
    part = f"{begin}[^/]"
    tokens = {
        "**/": f"(?:(?:{part})+/)*",
        "**": f"(?:{part}|/{begin})+",
        "*": f"(?:{part})*",
        "?": part,
    }
    return re.compile(
        "".join(
            tokens.get(token)
            or (f"{begin}(?!/){_set(token)}" if _SET.fullmatch(token) else re.escape(token))
            for token in re.findall(
                rf"\*\*/|\*\*|\*|\?|{_SET.pattern}|\[|[^*?\[]+", fold_ending(pattern)
            )
        )
    )


def _set(token: str) -> str:
    """Translate a set of characters, as `fnmatch` reads it: [abc], [a-z], [!a-z]."""
    inner = token[1:-1].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner.replace('^', chr(92) + '^')}]"


def fold_ending(pattern: str) -> str:
    """Spell the ending of a pattern for both cases: `**/*.txt` becomes `**/*.[tT][xX][tT]`.

    A last part without a wildcard is the name of one file, and stays as it is.
    """
    head, slash, last = pattern.rpartition("/")
    found = re.fullmatch(r"(.*[*?\]])(\.[^*?\[\]]*)", last)
    if found is None:
        return pattern
    folded = "".join(
        f"[{each.lower()}{each.upper()}]" if each.lower() != each.upper() else each
        for each in found[2]
    )
    return f"{head}{slash}{found[1]}{folded}"


def choose_suffix(names: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """List the names that end in one of the suffixes, in either case, and are not hidden."""
    ends = tuple(suffix.lower() for suffix in suffixes)
    return [name for name in names if name.lower().endswith(ends) and is_shown(name, None)]


def count_passed_over(names: Iterable[str], chosen: Iterable[str]) -> Counter[str]:
    """Count the names that were not chosen: the hidden ones, and the others by their ending."""
    chosen = set(chosen)
    return Counter(
        (ending(name) or NO_ENDING) if is_shown(name, None) else HIDDEN
        for name in names
        if name not in chosen
    )


def list_passed_over(counts: Mapping[str, int], most: int = 5) -> str:
    """Write the counts as text, the commonest first: "12 .pdf, 3 .docx, 2 hidden"."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[most:])
    shown = [f"{count:,} {what}" for what, count in ranked[:most]]
    return ", ".join([*shown, f"{rest:,} of other endings"] if rest else shown)
