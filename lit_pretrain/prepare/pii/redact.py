"""Redaction: replace personal data in a text, by a function of the value and the config alone."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator

from lit_pretrain.prepare.pii.addresses import Span, find_emails, find_ipv4, find_ipv6
from lit_pretrain.prepare.pii.keys import find_keys
from lit_pretrain.prepare.pii.numbers import find_cards, find_ibans, find_phones
from lit_pretrain.prepare.pii.pii_config import PII_KINDS, PiiConfig, PiiKind

_FIND: dict[PiiKind, Callable[[str], Iterator[Span]]] = {
    "key": find_keys,
    "email": find_emails,
    "iban": find_ibans,
    "card": find_cards,
    "phone": find_phones,
    "ipv6": find_ipv6,
    "ipv4": find_ipv4,
}
_PLACEHOLDER: dict[PiiKind, str] = {
    "key": "<KEY>",
    "email": "<EMAIL>",
    "iban": "<IBAN>",
    "card": "<CARD>",
    "phone": "<PHONE>",
    "ipv6": "<IP>",
    "ipv4": "<IP>",
}
_SHAPE = bytes(
    ord("0") if chr(code) in string.digits else ord("A") if chr(code) in string.ascii_uppercase
    else code
    for code in range(256)
)  # fmt: skip
"""Translation of bytes that turns digits into 0 and capitals into A."""
_NEEDLES: dict[PiiKind, tuple[bytes, ...]] = {
    "email": (b"@",),
    "iban": (b"AA00",),
    "card": (b"0" * 13, b"0000 0000", b"0000-0000"),
    "phone": (b"+0", b"000-0000", b"000.0000", b"000 0000"),
    "ipv6": (b":",),
}
"""A text whose shape has none of these holds nothing of the kind. String searches run at GB/s, so
that most texts cost no regex.
"""
_QUAD_SHAPE = re.compile(rb"0\.00{0,2}\.00{0,2}\.0")
_DOCUMENTATION_V4 = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737


def _possible(kind: PiiKind, shape: bytes) -> bool:
    """Tell whether a text of this shape may hold data of a kind."""
    if kind == "ipv4":
        return _QUAD_SHAPE.search(shape) is not None
    return kind not in _NEEDLES or any(needle in shape for needle in _NEEDLES[kind])


class Redactor:
    """Replace personal data in texts, one at a time.

    A redactor keeps nothing of a text, so that neither order nor sharding can matter.
    """

    def __init__(self, config: PiiConfig) -> None:
        config.validate()
        self._kinds = [kind for kind in PII_KINDS if kind in config.kinds]
        self._key = config.key.encode()
        self._synthetic = config.style == "synthetic"

    def __call__(self, text: str) -> tuple[str, Counter[PiiKind]]:
        """Return the text with all findings replaced, and how many there were of each kind.

        Redacting the result once more changes nothing.
        """
        counts: Counter[PiiKind] = Counter()
        before = None
        # A replacement may uncover its neighbours: go on until nothing is found, or a second run
        # would find more.
        while text != before:
            before = text
            shape = text.encode("utf-8", "surrogatepass").translate(_SHAPE)
            for kind in self._kinds:
                spans = list(_FIND[kind](text)) if _possible(kind, shape) else None
                if spans:
                    counts[kind] += len(spans)
                    text = self._replace(kind, text, spans)
        return text, counts

    def _replace(self, kind: PiiKind, text: str, spans: list[Span]) -> str:
        """Replace some spans of a text."""
        pieces, done = [], 0
        for start, end in spans:
            pieces += [text[done:start], self._substitute(kind, text[start:end])]
            done = end
        return "".join([*pieces, text[done:]])

    def _substitute(self, kind: PiiKind, value: str) -> str:
        """Choose what replaces a value: one reserved for documentation, or the placeholder."""
        if not self._synthetic or kind not in ("email", "phone", "ipv6", "ipv4"):
            return _PLACEHOLDER[kind]
        # Capitals in an address, or other separators in a number, do not make another value.
        plain = re.sub(r"\D", "", value)[-10:] if kind == "phone" else value.lower()
        digest = hashlib.blake2b(
            plain.encode(), digest_size=16, key=self._key, person=kind.encode()
        ).digest()
        number = int.from_bytes(digest, "big")
        if kind == "email":
            return f"user{digest[:5].hex()}@example.com"  # RFC 2606
        if kind == "phone":
            return f"{'+1-' if value.startswith('+') else ''}202-555-01{number % 100:02}"
        if kind == "ipv6":
            # RFC 3849.
            return "2001:db8:" + ":".join(f"{number >> 16 * n & 0xFFFF:x}" for n in range(6))
        return f"{_DOCUMENTATION_V4[number % 3]}.{number // 3 % 254 + 1}"
