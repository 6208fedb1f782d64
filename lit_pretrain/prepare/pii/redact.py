"""Redaction: personal data replaced in a text, by what depends on the value and the config
alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.pii.addresses import Span, find_emails, find_ipv4, find_ipv6
from lit_pretrain.prepare.pii.numbers import find_cards, find_ibans, find_phones

# The config of what personal data is replaced, and by what.


PiiKind = Literal["key", "email", "iban", "card", "phone", "ipv6", "ipv4"]
PII_KINDS: tuple[PiiKind, ...] = ("key", "email", "iban", "card", "phone", "ipv6", "ipv4")
"""In the order in which they are looked for: the more certain form first."""


@dataclass(kw_only=True)
class PiiConfig:
    """Replaces personal data that has a recognisable form. What has none (names, street addresses)
    stays.

    When in doubt a text stays as it is: a version number that became an address is damage that
    nobody sees. What is nobody's stays too: private, loopback and documentation addresses,
    example.com, telephone numbers 555-01xx.
    """

    kinds: list[PiiKind] = field(default_factory=lambda: list(PII_KINDS))
    """email; ipv4 and ipv6; phone: international with +, and North American with separators, not
    other countries' without a + (030 901820 may be anything); card: payment cards (issuer's prefix
    and Luhn digit); iban: (country's length and check digits); key: private keys and tokens of
    common services.
    """
    style: Literal["placeholder", "synthetic"] = "placeholder"
    """placeholder: <EMAIL>, <IP>, <PHONE>, <CARD>, <IBAN>, <KEY>; says plainly that something was
    here, and links nothing. synthetic: emails, addresses and phone numbers become others from
    ranges reserved for documentation, so that text keeps its form and equal values stay equal;
    cards, IBANs and keys, which have no such range, become placeholders.
    """
    key: str = ""
    """Synthetic only: key of the hash that chooses the new value. Who knows it can check a
    guess at the old one, so keep it to yourself.
    """

    def validate(self) -> None:
        """Checks what the types cannot say.

        Raises:
            UserError: No kind is asked for, an unknown one, or one key too long.
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


# Keys: private keys and access tokens, by the forms that their issuers publish so that they can be
# found.


# What must stand in the text, and the whole form. Each begins with its literal, so that a search
# runs at the speed of a string search.
_B, _E = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_FORMS = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        # RFC 7468 §10 to §11, OpenPGP armour (RFC 9580 §6.2): a private key from its first line to
        # its last. A name without a body is code.
        (
            "PRIVATE KEY",
            r"-----BEGIN ([A-Z0-9 ]{0,20}PRIVATE KEY(?:"
            r" BLOCK)?)-----(?=(?:(?!-----)[\s\S]){0,400}?[A-Za-z0-9+/]{40})"
            r"(?:(?!-----)[\s\S]){60,20000}-----END \1-----",
        ),
        (
            "AKIA",
            _B + r"AKIA[A-Z2-7]{16}" + _E,
        ),  # AWS IAM User Guide, "IAM identifiers": access key; ASIA is a temporary one
        ("ASIA", _B + r"ASIA[A-Z2-7]{16}" + _E),
        # GitHub, "Behind GitHub's new authentication token formats" (2021), and fine-grained tokens
        # (2022)
        *((f"gh{kind}_", _B + rf"gh{kind}_[A-Za-z0-9]{{36,251}}" + _E) for kind in "pousr"),
        ("github_pat_", _B + r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _E),
        ("glpat-", _B + r"glpat-[A-Za-z0-9_-]{20,}" + _E),  # GitLab docs, "Token overview"
        (
            "xox",
            _B + r"xox[abeoprs]-(?:\d+-)?[A-Za-z0-9-]{10,}" + _E,
        ),  # Slack API docs, "Token types"
        (
            "hooks.slack.com/services/T",
            r"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}" + _E,
        ),  # Slack, "Incoming webhooks"
        (
            "AIza",
            _B + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
        ),  # Google Cloud docs, "Manage API keys"
        (
            "k_live_",
            _B + r"[rs]k_live_[A-Za-z0-9]{16,247}" + _E,
        ),  # Stripe docs, "API keys": secret and restricted
        ("k_test_", _B + r"[rs]k_test_[A-Za-z0-9]{16,247}" + _E),
        # OpenAI and Anthropic API docs: sk-proj-, sk-svcacct-, sk-admin-, sk-ant-api03-; formerly
        # sk- and 48 letters and digits
        ("sk-", _B + r"(?<!-)sk-(?:proj|svcacct|admin|ant-[a-z]+\d\d)-[A-Za-z0-9_-]{32,}" + _E),
        (
            "sk-",
            _B + r"(?<!-)sk-(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{32,64}(?![A-Za-z0-9_-])",
        ),
        ("hf_", _B + r"hf_[A-Za-z]{34}" + _E),  # Hugging Face Hub docs, "User access tokens"
        ("npm_", _B + r"npm_[A-Za-z0-9]{36}" + _E),  # npm docs, "About access tokens"
        (
            "pypi-AgEI",
            _B + r"pypi-AgEI[A-Za-z0-9_-]{50,}" + _E,
        ),  # PyPI help, "API tokens": a macaroon with its version
        (
            "SG.",
            _B + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}" + _E,
        ),  # Twilio SendGrid docs, "API keys"
        # RFC 7519: header and claims are JSON objects, so both begin with {" in base64url
        (
            "eyJ",
            r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"
            + _E,
        ),
    )
)


def find_keys(text: str) -> Iterator[Span]:
    """Private keys and tokens."""
    spans = [
        match.span() for literal, form in _FORMS if literal in text for match in form.finditer(text)
    ]
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            yield start, end
            done = end


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
# A text without these shapes holds nothing of the kind. String searches at GB/s, so that most texts
# cost no regex.
_SHAPE = bytes(
    48 if 48 <= code < 58 else 65 if 65 <= code < 91 else code for code in range(256)
)  # digits as 0, capitals as A
_NEEDLES: dict[PiiKind, tuple[bytes, ...]] = {
    "email": (b"@",),
    "iban": (b"AA00",),
    "card": (b"0" * 13, b"0000 0000", b"0000-0000"),
    "phone": (b"+0", b"000-0000", b"000.0000", b"000 0000"),
    "ipv6": (b":",),
}
_QUAD_SHAPE = re.compile(rb"0\.00{0,2}\.00{0,2}\.0")
_DOCUMENTATION_V4 = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737


def _possible(kind: PiiKind, shape: bytes) -> bool:
    if kind == "ipv4":
        return _QUAD_SHAPE.search(shape) is not None
    return kind not in _NEEDLES or any(needle in shape for needle in _NEEDLES[kind])


class Redactor:
    """Replaces personal data in texts, one at a time. Holds nothing of them, so that neither
    order nor sharding can matter.
    """

    def __init__(self, config: PiiConfig) -> None:
        config.validate()
        self._kinds = [kind for kind in PII_KINDS if kind in config.kinds]
        self._key = config.key.encode()
        self._synthetic = config.style == "synthetic"

    def __call__(self, text: str) -> tuple[str, Counter[PiiKind]]:
        """The text without what was found, and how much of each kind that was. Redacting the
        result once more changes nothing.
        """
        counts: Counter[PiiKind] = Counter()
        before = None
        while (
            text != before
        ):  # what is replaced frees its neighbours: to the end, or a second run would find more
            before = text
            shape = text.encode("utf-8", "surrogatepass").translate(_SHAPE)
            for kind in self._kinds:
                spans = list(_FIND[kind](text)) if _possible(kind, shape) else None
                if spans:
                    counts[kind] += len(spans)
                    text = self._replace(kind, text, spans)
        return text, counts

    def _replace(self, kind: PiiKind, text: str, spans: list[Span]) -> str:
        pieces, done = [], 0
        for start, end in spans:
            pieces += [text[done:start], self._substitute(kind, text[start:end])]
            done = end
        return "".join([*pieces, text[done:]])

    def _substitute(self, kind: PiiKind, value: str) -> str:
        """What stands for a value: of ranges reserved for documentation, or the placeholder."""
        if not self._synthetic or kind not in ("email", "phone", "ipv6", "ipv4"):
            return _PLACEHOLDER[kind]
        # The same address in capitals, or number with other separators, is the same.
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
            return "2001:db8:" + ":".join(
                f"{number >> 16 * n & 0xFFFF:x}" for n in range(6)
            )  # RFC 3849
        return f"{_DOCUMENTATION_V4[number % 3]}.{number // 3 % 254 + 1}"
