"""Numbers and keys that lead to a person or an account: telephone, card, IBAN, access token.

Keys and tokens are found by the patterns that their issuers publish for scanners.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_pretrain.prepare.pii.addresses import Span

_INTERNATIONAL = re.compile(
    r"\+(?<![\w+.)\]*/^-].)[1-9]\d{0,14}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]\d{1,12}|["
    r" .-]?\(\d{1,4}\)){0,7}(?![\w+*^/]|[.,-]\d)",
    re.ASCII,
)
# North American Numbering Plan: area code and exchange begin with 2 to 9 (T-2 to T-9), the exchange
# is not N11, 555-01xx is fiction's.
_AREA, _EXCHANGE = r"[2-9][0-8]\d", r"(?!.11)[2-9]\d\d"
_NORTH_AMERICAN = re.compile(
    rf"(?<![\w.+$#/%-])(?<!\d[ ,\t])(?:1[ .-])?(?:\({_AREA}\)[ ]?{_EXCHANGE}[-. ]|"
    # With spaces alone it may be a row of numbers: not before another one.
    rf"{_AREA}(?:-{_EXCHANGE}-|\.{_EXCHANGE}\.|[ ]{_EXCHANGE}-|[ ]{_EXCHANGE}[ ](?=\d{{4}}(?!["
    r" \t]{1,3}\d))))\d{4}(?![\w%+*/-]|[.,]\d)",
    re.ASCII,
)
_NO_PHONE = re.compile(
    r"\b(?:order|invoice|ticket|case|part|serial|model|item|sku|ref|reference|tracking|lot|batch|"
    r"policy|claim|patent|catalog(?:ue)?|product|isbn|issn|doi|rfc|version|code)s?"
    r"(?:[ \t]*(?:no\.?|nr\.?|num(?:ber)?|id|code|[#:]|is|was|[Nn]\u00b0|\u2116))*[ \t]*[#(]?\Z",
    re.IGNORECASE,
)
"""Words before a number that say what else it is: `order 212-867-5309`, `Part No. 415 867 5309`."""


def find_phones(text: str) -> Iterator[Span]:
    """Find telephone numbers: international ones with +, North American ones with separators.

    A number must be one that its country may give out, by the plans that `phonenumbers` keeps.
    555-01xx stays, what is called something else (an order, a part), and other countries' numbers
    without a +. Their forms (030 901820, 020 7946 0018, 01 42 68 53 00) are also those of
    quantities, codes and dates, and no rule of the digits tells them apart.
    """
    spans = (
        [
            match.span()
            for match in _INTERNATIONAL.finditer(text)
            if _is_international(match.group())
        ]
        if "+" in text
        else []
    )
    for match in _NORTH_AMERICAN.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        before = text[max(0, match.start() - 40) : match.start()]
        if (
            not _is_fiction(digits)
            and _is_given_out(f"+1{digits[-10:]}")
            and not _NO_PHONE.search(before)
        ):
            spans.append(match.span())
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            yield start, end
            done = end


def _is_fiction(digits: str) -> bool:
    """Recognise 555-0100 to 555-0199 of any area code (ATIS-0300115)."""
    return digits[-7:-2] == "55501"


def _is_given_out(number: str) -> bool:
    """Tell whether a number, written with + and digits alone, is of its country's plan."""
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number)))
    except phonenumbers.NumberParseException:  # no country has this code
        return False


def _is_international(found: str) -> bool:
    """Tell whether a number with + is a telephone number, by its digits and their groups."""
    groups = re.findall(r"\d+", found)
    digits = "".join(groups)
    if len(groups) == 1:
        # A shorter one may be a signed number, or a date in a patch.
        if not 10 <= len(digits) <= 15:
            return False
    elif "." in found and found.count(".") < 2:
        return False  # It is a signed decimal.
    # A list of small numbers is not a number with its digits spread out.
    elif not (
        9 <= len(digits) <= 15
        and len(groups[0]) <= 4
        and sum(len(group) == 1 for group in groups[1:]) <= 1
    ):
        return False
    # (0) is dialled within the country alone: +49 (0)30 901820.
    number = re.sub(r"\(0\)", "", found)
    return not (digits[0] == "1" and _is_fiction(digits)) and _is_given_out(
        "+" + re.sub(r"\D", "", number)
    )


# Payment cards by issuer (ISO/IEC 7812; ranges as the issuers publish them): prefix, lengths.
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"6011|64[4-9]|65"), (16, 17, 18, 19)),  # Discover
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),  # JCB
    (re.compile(r"30[0-5]|3[689]"), (14,)),  # Diners Club
    (re.compile(r"62"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"5018|5020|5038|6304|6759|676[123]"), (13, 14, 15, 16, 17, 18, 19)),  # Maestro
)
# In one piece, or grouped as on the card; not part of a decimal, a digest, an identifier or a sum.
_CARD = re.compile(
    r"[2-6](?<![\w.+*/^-].)(?<!\d[ ,:].)(?:\d{12,18}|\d{3}(["
    r" -])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5}))"
    r"(?![\w+*/^-]|[., :]\d)",
    re.ASCII,
)


def find_cards(text: str) -> Iterator[Span]:
    """Find payment card numbers, by the issuer's prefix and length and by Luhn's check digit."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if (
            any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _ISSUERS)
            and _luhn(digits)
            and len(set(digits)) > 1
        ):
            yield match.span()


def _luhn(digits: str) -> bool:
    """Check the last digit by ISO/IEC 7812-1 annex B.

    Every second digit from the right counts double, with its own digits summed.
    """
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    return (
        sum(map(int, digits[-1::-2])) + sum(doubled[int(digit)] for digit in digits[-2::-2])
    ) % 10 == 0


# SWIFT's IBAN registry: length by country.
_IBAN_LENGTHS = {
    pair[:2]: int(pair[3:])
    for pair in (
        "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24"
        " DE:22 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28"
        " HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20"
        " LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15 PK:24 PL:28 PS:29 PT:25"
        " QA:29 RO:24 RS:22 SA:24 SC:31 SE:24 SI:19 SK:24 SM:27 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29"
        " VA:22 VG:24 XK:20"
    ).split()
}
_IBAN_START = re.compile(
    rf"(?<![A-Za-z0-9])(?:{'|'.join(_IBAN_LENGTHS)})\d\d(?=[ -]?[A-Z0-9]{{4}})"
)
_IBAN_REST = {
    length: re.compile(
        rf"[A-Z0-9]{{{length - 4}}}|(?:[ -][A-Z0-9]{{4}}){{{(length - 4) // 4}}}"
        + (rf"[ -][A-Z0-9]{{{length % 4}}}" if length % 4 else "")
    )
    for length in set(_IBAN_LENGTHS.values())
}


def find_ibans(text: str) -> Iterator[Span]:
    """Find international bank account numbers (ISO 13616), in one piece or in groups of four.

    The length must be the country's, and the check digits must be right modulo 97.
    """
    done = 0
    for match in _IBAN_START.finditer(text):
        rest = _IBAN_REST[_IBAN_LENGTHS[match.group()[:2]]].match(text, match.end())
        if rest is None or match.start() < done or text[rest.end() : rest.end() + 1].isalnum():
            continue
        value = (rest.group() + match.group()).replace(" ", "").replace("-", "")
        if int("".join(str(int(character, 36)) for character in value)) % 97 == 1:
            yield match.start(), rest.end()
            done = rest.end()


_START, _END = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_FORMS = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        # RFC 7468 §10 to §11, OpenPGP armour (RFC 9580 §6.2): a private key from its first line to
        # its last. A name without a body is code.
        (
            "PRIVATE KEY",
            r"-----BEGIN ([A-Z0-9 ]{0,20}PRIVATE KEY(?: BLOCK)?)-----"
            r"(?=(?:(?!-----)[\s\S]){0,400}?[A-Za-z0-9+/]{40})"
            r"(?:(?!-----)[\s\S]){60,20000}-----END \1-----",
        ),
        # AWS IAM User Guide, "IAM identifiers": access key; ASIA is a temporary one.
        ("AKIA", _START + r"AKIA[A-Z2-7]{16}" + _END),
        ("ASIA", _START + r"ASIA[A-Z2-7]{16}" + _END),
        # GitHub, "Behind GitHub's new authentication token formats" (2021), and fine-grained tokens
        # (2022).
        *((f"gh{kind}_", _START + rf"gh{kind}_[A-Za-z0-9]{{36,251}}" + _END) for kind in "pousr"),
        ("github_pat_", _START + r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _END),
        # GitLab docs, "Token overview".
        ("glpat-", _START + r"glpat-[A-Za-z0-9_-]{20,}" + _END),
        # Slack API docs, "Token types" and "Incoming webhooks".
        ("xox", _START + r"xox[abeoprs]-(?:\d+-)?[A-Za-z0-9-]{10,}" + _END),
        (
            "hooks.slack.com/services/T",
            r"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}" + _END,
        ),
        # Google Cloud docs, "Manage API keys".
        ("AIza", _START + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
        # Stripe docs, "API keys": secret and restricted.
        ("k_live_", _START + r"[rs]k_live_[A-Za-z0-9]{16,247}" + _END),
        ("k_test_", _START + r"[rs]k_test_[A-Za-z0-9]{16,247}" + _END),
        # OpenAI and Anthropic API docs: sk-proj-, sk-svcacct-, sk-admin-, sk-ant-api03-; formerly
        # sk- and 48 letters and digits.
        (
            "sk-",
            _START + r"(?<!-)sk-(?:proj|svcacct|admin|ant-[a-z]+\d\d)-[A-Za-z0-9_-]{32,}" + _END,
        ),
        (
            "sk-",
            _START
            + r"(?<!-)sk-(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{32,64}(?![A-Za-z0-9_-])",
        ),
        # Hugging Face Hub docs, "User access tokens".
        ("hf_", _START + r"hf_[A-Za-z]{34}" + _END),
        # npm docs, "About access tokens".
        ("npm_", _START + r"npm_[A-Za-z0-9]{36}" + _END),
        # PyPI help, "API tokens": a macaroon with its version.
        ("pypi-AgEI", _START + r"pypi-AgEI[A-Za-z0-9_-]{50,}" + _END),
        # Twilio SendGrid docs, "API keys".
        ("SG.", _START + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}" + _END),
        # RFC 7519: header and claims are JSON objects, so both begin with {" in base64url.
        (
            "eyJ",
            r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"
            + _END,
        ),
    )
)
"""(literal that must occur in the text, pattern of the whole). Most texts hold none of the literals
and cost only string searches; a pattern begins with its literal, so that it is found as fast.
"""


def find_keys(text: str) -> Iterator[Span]:
    """Find private keys and tokens."""
    spans = [
        match.span() for literal, form in _FORMS if literal in text for match in form.finditer(text)
    ]
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            yield start, end
            done = end
