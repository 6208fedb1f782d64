"""A made set of all kinds: 100 values in sentences that must go, and 100 look-alikes that must not.

Numbers are computed, so that no one's are written here: cards and IBANs with right check digits,
telephone numbers of plans with invented subscribers.
"""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from lit_pretrain.prepare.pii.redact import PiiConfig, PiiKind, Redactor

REDACT = Redactor(PiiConfig())
RNG = random.Random(16)


def digits(count: int) -> str:
    return "".join(RNG.choice("0123456789") for _ in range(count))


def luhn(body: str) -> str:
    """Append the check digit by trying all ten."""
    for last in "0123456789":
        number = [int(digit) for digit in body + last]
        doubled = [d * 2 - 9 * (d > 4) if n % 2 else d for n, d in enumerate(reversed(number))]
        if sum(doubled) % 10 == 0:
            return body + last
    raise AssertionError


def iban(country: str, account: str) -> str:
    """Compute the check digits of ISO 13616."""
    value = int("".join(str(int(letter, 36)) for letter in f"{account}{country}00"))
    return f"{country}{98 - value % 97:02}{account}"


def grouped(text: str, sizes: tuple[int, ...], separator: str) -> str:
    parts, done = [], 0
    for size in sizes:
        parts.append(text[done : done + size])
        done += size
    return separator.join([*parts, text[done:]] if done < len(text) else parts)


FOURS = (4, 4, 4, 4, 4, 4, 4, 4)


def true_values() -> Iterator[tuple[PiiKind, str, str]]:
    """(kind, value, sentence with {} in its place)."""
    for value, sentence in (
        ("anna.kowalska@uni-warszawa.pl", "Contact: {}."),
        ("joao@sapo.pt", "E-mail: {}"),
        ("prof@ua.pt", "ask {} about it"),
        ("sales@some-shop.store", "Write to {} or visit us"),
        ("dev@startup.ai", "<{}>"),
        ("j.o'neil@mail.co.uk", "From: {}"),
        ("first+tag@sub.domain.org", "({})"),
        ("someone@firma.gmbh", "Mail an {}, bitte"),
        ("user_name@163.com", "QQ or {}"),
        ("kontakt@stadt.berlin", "{} antwortet"),
        ("team@project.dev", "mailto:{}"),
        ("x@y-z.photography", "by {}"),
        ("bob@rust-lang.rs", "thanks to {} for this"),
        ("office@church.foundation", "Our address is {}; come by"),
        ("info@website.xn--p1ai", "new: {}"),
        ("AUTHOR@BIGCORP.COM", "CONTACT {}"),
    ):
        yield "email", value, sentence
    for number, (country, area) in enumerate(
        (("+1", "212"), ("+1", "604"), ("", "312"), ("", "415"), ("", "808"), ("1", "646"))
    ):
        line = f"{RNG.randint(2, 9)}{RNG.randint(2, 9)}{RNG.randint(0, 9)}-{digits(4)}"
        for form, sentence in (
            (f"{area}-{line}", "Call {} today."),
            (f"({area}) {line}", "Phone: {}"),
        ):
            value = f"{country} {form}".strip()
            yield "phone", value, sentence
        if number % 3 == 0:
            yield "phone", f"{area}\u2011{line}".replace("-", "\u2011"), "Fax {}, mornings"
    for value in (
        f"+49 30 9{digits(6)}", f"+49 (0)89 2{digits(7)}", f"+44 20 7946 {digits(4)}",
        f"+33 1 42 {digits(2)} {digits(2)} {digits(2)}",
        "+33\u00a06\u00a012\u00a034\u00a056\u00a078",
        f"+39 06 6982 {digits(4)}", f"+34 612 345 {digits(3)}",
        f"+48 22 621 {digits(2)} {digits(2)}",
        f"+81 3-3212-{digits(4)}", f"+86 138 0013 {digits(4)}", f"+91 98765 {digits(5)}",
        f"+55 11 98765-{digits(4)}", f"+61 2 9374 {digits(4)}", f"+316{4}1044{digits(3)}",
        f"+41 44 668 {digits(2)} {digits(2)}", f"+46-8-506 {digits(3)} {digits(2)}",
    ):  # fmt: skip
        yield "phone", value, "Tel.: {} (office)"
    for prefix, length, sizes in (
        ("4", 16, FOURS[:4]), ("52", 16, FOURS[:4]), ("2345", 16, FOURS[:4]), ("37", 15, (4, 6, 5)),
        ("6011", 16, FOURS[:4]), ("3566", 16, FOURS[:4]),
    ):  # fmt: skip
        number_ = luhn(prefix + digits(length - 1 - len(prefix)))
        for separator in ("", " ", "-")[: 2 + (len(prefix) > 1)]:
            yield "card", grouped(number_, sizes, separator), "paid by card {} in May"
    yield "card", grouped(luhn("4" + digits(14)), FOURS[:4], "\u00a0"), "Visa {}, thanks"
    for country, account in (
        ("DE", digits(18)), ("GB", "WEST" + digits(14)), ("FR", digits(23)),
        ("NL", "ABNA" + digits(10)),
        ("CH", digits(17)), ("NO", digits(11)), ("MT", "MALT" + digits(23)),
    ):  # fmt: skip
        value = iban(country, account)
        yield "iban", value, "IBAN {}."
        yield "iban", grouped(value, FOURS[: -(-len(value) // 4)], " "), "transfer to {}, please"
    for separator in ("-", "\u00a0", "\u202f", "\u2011"):
        value = iban("DE", digits(18))
        yield "iban", grouped(value, FOURS[:6], separator), "Konto: {}"
    for value, sentence in (
        ("93.184.216.34", "The request came from {} at noon"),
        ("151.101.1.69", "ping {} works"),
        ("142.250.74.46", "host {} is down"),
        ("104.16.132.229", "http://{}/index.html"),
        ("45.33.32.156", "banned {} for an hour"),
        ("8.8.4.4", "resolver {}"),
        ("77.88.55.60", "Connected to {}:443"),
    ):
        yield "ipv4", value, sentence
    for value in (
        "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450:4001:81b::200e", "2001:4860:4860::8888",
        "2620:fe::fe",
    ):  # fmt: skip
        yield "ipv6", value, "ping {} now"
    for value in (
        "AKIA" + "".join(RNG.choice("ABCDEFGH234567") for _ in range(16)),
        "ghp_" + "a1B2" * 9,
        "glpat-" + "x9Y8z7W6v5U4t3S2r1Q0",
        "xoxb-" + "123456789012-" + "AbCdEfGhIjKlMnOp",
        "AIza" + "Sy0123456789abcdefghijklmnopqrstuvw",
        "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
        "sk-proj-" + "AbCd1234" * 5,
        "npm_" + "a1B2c3" * 6,
    ):
        yield "key", value, "token = {}"


FALSE = [
    # Not addresses of anybody: reserved, code, versions, files.
    "me@example.com", "a@b.example", "root@localhost", "user@host.local", "user@server.internal",
    "git@github.com:me/it.git", "icon@2x.png", "model@v1.2.so", "library@1.4.so", "net@step-100.pt",
    "image@sha256:9f86d081884c7d65", "array@b.shape", "W@x.T", "a@b.py", "A@B.run(x)", "foo@bar",
    "lodash@4.17.21", "pkg@2.0.0.zip", "@decorator.method", "@types/node", "x @ y.com",
    "build@release-3.tf", "w@v2.md", "user@[address]", "mail@company",
    # Numbers that are called something else, or that no plan gives out.
    "order 300-212-7365", "Order no. 212-867-5309", "invoice #415-867-5309",
    "Part Number 646 867 5309",
    "ticket: 312-867-5309", "case 202-867-5309", "serial 808-867-5309", "ref. id 604-867-5309",
    "555-0123", "(212) 555-0142", "030 901820", "020 7946 0018", "01 42 68 53 00", "123-456-7890",
    "911-234-5678", "415 167 5309", "2020-2021-2022", "+1.5e-10", "+0.25", "+12", "+20240131",
    "+999 123 4567 89", "+49 1", "1 + 2 = 3", "100 200 3000", "115 867 5309", "12 415 867 5309",
    "version 212.867.5309", "300.212.7365", "000-867-5309", "212-111-5309",
    # Numbers with the form of a card or an account, without its check digits.
    "4111 1111 1111 1112", "4444 4444 4444 4444", "1234 5678 9012 3456", "0000 0000 0000 0000",
    "9780 1314 0628 0012", "1.4111111111111111", "DE89 3704 0044 0532 0130 01",
    "GB82WEST12345698765433",
    "DE89-3704-0044-0532-0130-01", "XX82 WEST 1234 5698 7654 32", "DE00 0000 0000 0000 0000 00",
    "ISBN 978-3-16-148410-0", "ISSN 2049-3630", "EAN 4006381333931",
    "UUID 123e4567-e89b-12d3-a456-426614174000",
    # Versions, sections, private and documentation addresses.
    "v1.2.3.4", "release 1.2.3.4-rc1", "OpenSSL 1.0.2.1", "version 93.184.216.34",
    "pkg==10.20.30.40",
    "Chrome/96.0.4664.110", "see section 10.2.34.5", "OID 1.3.6.1.4.1.311", "127.0.0.1", "0.0.0.0",
    "192.168.1.1", "10.0.0.7", "198.51.100.7", "172.16.5.4", "169.254.1.1", "300.300.300.300",
    "2001:db8::1", "fe80::1", "::1", "std::vector<int>", "12:34:56", "2024-01-31T12:34:56.789012",
    "00:1A:2B:3C:4D:5E", "x[2000::2]",
    # Names of keys without a key.
    "sk-learn", "AKIA", "-----BEGIN RSA PRIVATE KEY-----", "ghp_short",
    "d41d8cd98f00b204e9800998ecf8427e",
    "hf_hub_download", "npm_config_registry", "xoxo-love",
]  # fmt: skip


def test_ninety_five_of_a_hundred_are_found() -> None:
    values = list(true_values())
    missed, wrong = [], Counter[str]()
    for kind, value, sentence in values:
        text = sentence.format(value)
        redacted, counts = REDACT(text)
        whole = redacted.count("<") - text.count("<") == 1 and value[-5:] not in redacted
        if set(counts) != {kind} or not whole:
            missed.append((kind, text, redacted))
            wrong[kind] += 1
    assert len(values) >= 100
    assert {kind for kind, _, _ in values} == {
        "email", "phone", "card", "iban", "ipv4", "ipv6", "key",
    }  # fmt: skip
    assert len(missed) <= 0.05 * len(values), missed
    assert max(wrong.values(), default=0) <= 2, wrong


def test_two_of_a_hundred_look_alikes_are_taken_at_most() -> None:
    texts = [around.format(text) for text in FALSE for around in ("{}", "It says {} here.")]
    taken = [(text, REDACT(text)[0]) for text in texts if REDACT(text)[1]]
    assert len(FALSE) >= 100
    assert len(taken) <= 0.02 * len(texts), taken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000 und 1\u00a0000\u00a0€",
        "<IBAN> und 1\u00a0000\u00a0€"),
        ("Visa 4111\u202f1111\u202f1111\u202f1111\u2009!", "Visa <CARD>\u2009!"),
        ("(415)\u00a0867\u20115309 – “now”", "<PHONE> – “now”"),
    ],
)  # fmt: skip
def test_only_the_finding_changes_in_a_text_with_other_spaces(text: str, expected: str) -> None:
    assert REDACT(text)[0] == expected
