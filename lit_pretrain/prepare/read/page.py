"""Page: the main text of an HTML page, without menus and advertisements."""

from __future__ import annotations

import logging
import re

MAX_BYTES = 20_000_000
"""Larger pages are not parsed: the tree takes some twenty times as much memory, and no article is that long."""
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_WINDOWS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
"""What pages mean by these labels (WHATWG Encoding Standard, names and labels)."""


def main_text(page: bytes, charset: str | None = None) -> tuple[str, str | None]:
    """Extracts with trafilatura and its defaults, which balance precision and recall.

    Args:
        page: As the server sent it.
        charset: As the server declared it; else as the page does, else as the bytes look.

    Returns:
        The text, empty where there is none, and the page's title.

    Raises:
        Exception: Of any kind; lxml and trafilatura meet pages that nobody foresaw.
    """
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it reports each page without text
    tree = trafilatura.load_html(_decoded(page, charset))
    if tree is None:
        return "", None
    title = " ".join((tree.findtext(".//title") or "").split())
    return trafilatura.extract(tree) or "", title or None


def _decoded(page: bytes, charset: str | None) -> str | bytes:
    """As UTF-8 where it is that, for pages in UTF-8 that declare Latin-1 are common and the reverse is not seen; else by the first
    declaration that is true; else the bytes, for trafilatura to guess.
    """
    declared = [charset] if charset else []
    if found := _META.search(page, 0, 4096):
        declared.append(found.group(1).decode("ascii", "replace"))
    if not page.isascii():  # ASCII bytes may be an encoding with escapes, such as ISO-2022-JP
        declared.insert(0, "utf-8-sig")
    for label in declared:
        try:
            return page.decode(_WINDOWS.get(label.lower(), label))
        except (LookupError, ValueError):
            continue
    return page
