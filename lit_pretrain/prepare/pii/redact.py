"""Redaction: replace personal data in a text, by a function of the value and the config alone."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.pii.accounts import find_cards, find_ibans, find_keys, find_phones
from lit_pretrain.prepare.pii.addresses import Span, find_emails, find_ipv4, find_ipv6

PiiKind = Literal["key", "email", "iban", "card", "phone", "ipv6", "ipv4"]
PII_KINDS: tuple[PiiKind, ...] = ("key", "email", "iban", "card", "phone", "ipv6", "ipv4")
"""All kinds, in the order in which they are looked for: the more certain form first."""


@dataclass(kw_only=True)
class PiiConfig:
    """Replace personal data that has a recognisable form.

    Data without one (names, street addresses) stays. When in doubt, a text stays as it is: a
    version number that became an address is damage that nobody sees. What belongs to nobody stays
    too: private, loopback and documentation addresses, example.com, telephone numbers 555-01xx.
    """

    kinds: list[PiiKind] = field(default_factory=lambda: list(PII_KINDS))
    """email: under a top-level domain that exists; ipv4 and ipv6; phone: international with +, and
    North American with separators, as their plans give them out, not other countries' without a +
    (030 901820 may be anything); card: payment cards (issuer's prefix and Luhn digit); iban
    (country's length and check digits); key: private keys and tokens of common services.
    """
    style: Literal["placeholder", "synthetic"] = "placeholder"
    """placeholder: <EMAIL>, <IP>, <PHONE>, <CARD>, <IBAN>, <KEY>; says plainly that something was
    there, and links nothing. synthetic: emails, addresses and phone numbers become others from
    ranges reserved for documentation, so that text keeps its form and equal values stay equal;
    cards, IBANs and keys, which have no such range, become placeholders.
    """
    key: str = ""
    """Synthetic only: key of the hash that chooses the new value. Whoever knows it can check a
    guess at the old value, so keep it to yourself.
    """

    def validate(self) -> None:
        """Check what the types cannot say.

        Raises:
            UserError: `kinds` is empty or names an unknown one, or `key` is too long or has no
                meaning.
        """
        if not self.kinds or not set(self.kinds) <= set(PII_KINDS):
            raise UserError(
                f"pii.kinds={self.kinds!r} must name at least one of {', '.join(PII_KINDS)}"
            )
        if self.key and self.style != "synthetic":
            raise UserError(
                "pii.key has no meaning for style placeholder, which hashes nothing; set `style:"
                " synthetic`"
            )
        if len(self.key.encode()) > 64:
            raise UserError(
                f"pii.key has {len(self.key.encode())} bytes; the keyed hash (BLAKE2b) takes at"
                " most 64"
            )


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
_TYPOGRAPHIC = {
    **dict.fromkeys("\u00a0\u2007\u2008\u2009\u202f\u2060", " "),  # spaces that do not break
    **dict.fromkeys("\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
}
"""Character -> the plain one that it stands for between the groups of a number."""
_QUAD_SHAPE = re.compile(rb"0\.00{0,2}\.00{0,2}\.0")
_DOCUMENTATION_V4 = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737


def _possible(kind: PiiKind, shape: bytes) -> bool:
    """Tell whether a text of this shape may hold data of a kind."""
    if kind == "ipv4":
        return _QUAD_SHAPE.search(shape) is not None
    return kind not in _NEEDLES or any(needle in shape for needle in _NEEDLES[kind])


def _plain(text: str) -> str:
    """Write separators plainly, character for character, so that places stay what they are."""
    if not text.isascii():
        for character, plain in _TYPOGRAPHIC.items():
            if character in text:
                text = text.replace(character, plain)
    return text


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
            before, plain = text, _plain(text)
            shape = plain.encode("utf-8", "surrogatepass").translate(_SHAPE)
            for kind in self._kinds:
                spans = list(_FIND[kind](plain)) if _possible(kind, shape) else None
                if spans:
                    counts[kind] += len(spans)
                    text = self._replace(kind, text, spans)
                    plain = _plain(text)
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
