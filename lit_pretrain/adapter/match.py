"""Match: which names a list of regular expressions means; one that means nothing is a mistake."""

import difflib
import re
from collections.abc import Iterable, Sequence

from lit_pretrain.errors import UserError


def matching(patterns: Sequence[str], names: Iterable[str], *, setting: str, what: str) -> list[str]:
    """The names in which at least one pattern is found, in their own order.

    Args:
        patterns: Regular expressions; each is searched for anywhere in a name.
        names: Dotted names.
        setting: Where the patterns come from, for the message.
        what: What is named, for the message: "matrix", "parameter".

    Raises:
        UserError: A pattern is not a regular expression, or is found in no name; near names are given.
    """
    all_names, found = list(names), set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{setting}: {pattern!r} is not a regular expression ({error})") from None
        hits = [name for name in all_names if regex.search(name)]
        if not hits:
            near = _near(pattern, all_names)
            raise UserError(f"{setting}: {pattern!r} is found in the name of no {what}; there are {', '.join(near)}")
        found.update(hits)
    return [name for name in all_names if name in found]


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """The kinds of names nearest to a pattern, layer numbers left out; the first few if none is near."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    plain = re.sub(r"\\(.)", r"\1", pattern)
    # A pattern may name the whole, the end or one part of a name.
    parts: dict[str, list[str]] = {}
    for kind in kinds:
        pieces = kind.split(".")
        for part in {kind, *pieces, *(".".join(pieces[i:]) for i in range(1, len(pieces)))}:
            parts.setdefault(part, []).append(kind)
    close = difflib.get_close_matches(plain, parts, n=3, cutoff=0.6)
    return list(dict.fromkeys(kind for part in close for kind in parts[part]))[:6] or kinds[:8]
