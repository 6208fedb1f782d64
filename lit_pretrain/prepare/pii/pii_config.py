"""The config of personal data: which kinds are replaced, and by what."""

from dataclasses import dataclass, field
from typing import Literal

from lit_pretrain.errors import UserError

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
    """email; ipv4 and ipv6; phone: international with +, and North American with separators, not
    other countries' without a + (030 901820 may be anything); card: payment cards (issuer's prefix
    and Luhn digit); iban (country's length and check digits); key: private keys and tokens of
    common services.
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
