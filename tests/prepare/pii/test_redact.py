"""Redaction: what has the form of personal data goes, and what only looks like it stays."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.pii.redact import PII_KINDS, PiiConfig, Redactor

REDACT = Redactor(PiiConfig())
SYNTHETIC = Redactor(PiiConfig(style="synthetic", key="secret"))

FOUND = {
    "email": [
        ("Write to jane.doe+news@mail.acme.co.uk today.", "Write to <EMAIL> today."),
        ("<o_brien@acme.com>, bob@acme.org", "<<EMAIL>>, <EMAIL>"),
        ("mail me@acme.com.Then wait", "mail <EMAIL>.Then wait"),
    ],
    "ipv4": [
        ("The request came from 93.184.216.34 at noon", "The request came from <IP> at noon"),
        ("http://93.184.216.34:8080/x", "http://<IP>:8080/x"),
        ("8.8.8.8:53 answers", "<IP>:53 answers"),
        (
            "It runs version 1.2.3.4, and asks 8.8.8.8:53.",
            "It runs version 1.2.3.4, and asks <IP>:53.",
        ),
        ("version 1.2.3.4, 8.8.8.8:53", "version 1.2.3.4, <IP>:53"),
        (
            "Since version 1.2.3.4 it connects to 93.184.216.34 at start",
            "Since version 1.2.3.4 it connects to <IP> at start",
        ),
    ],
    "ipv6": [
        ("ping 2606:2800:220:1:248:1893:25c8:1946 now", "ping <IP> now"),
        ("[2a00:1450:4001:81b::200e]:443", "[<IP>]:443"),
    ],
    "phone": [
        ("Call +49 30 901820 or (212) 867-5309.", "Call <PHONE> or <PHONE>."),
        ("tel 212-867-5309, +31641044153", "tel <PHONE>, <PHONE>"),
        ("415 867 5309, 415.867.5309 or 415-867-5309", "<PHONE>, <PHONE> or <PHONE>"),
        ("(415) 867-5309; (415) 867 5309; 1 415 867 5309", "<PHONE>; <PHONE>; <PHONE>"),
    ],
    "card": [
        ("paid with 4012 8888 8888 1881 today", "paid with <CARD> today"),
        ("Visa 4111 1111 1111 1111, Mastercard 5555555555554444", "Visa <CARD>, Mastercard <CARD>"),
        ("3782-822463-10005 or 5105105105105100", "<CARD> or <CARD>"),
    ],
    "iban": [
        ("to DE89 3704 0044 0532 0130 00 please", "to <IBAN> please"),
        ("GB82WEST12345698765432,", "<IBAN>,"),
    ],
    "key": [
        ("aws = AKIAIOSFODNN7EXAMPLE", "aws = <KEY>"),
        ("token: ghp_" + "a1B2" * 9, "token: <KEY>"),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9",
            "<KEY>",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\n"
            + "MIIEpAIBAAKCAQEA7" * 8
            + "\n-----END RSA PRIVATE KEY-----\nrest",
            "<KEY>\nrest",
        ),
    ],
}

LEFT = [
    "v1.2.3.4", "release 1.2.3.4-rc1", "OpenSSL 1.0.2.1", "version 93.184.216.34",
    "pkg==10.20.30.40", "Chrome/96.0.4664.110",
    "see section 10.2.34.5", "OID 1.3.6.1.4.1.311", "127.0.0.1", "0.0.0.0", "192.168.1.1",
    "10.0.0.7", "198.51.100.7", "2001:db8::1",
    "fe80::1", "std::vector<int>", "12:34:56", "2024-01-31T12:34:56.789012", "00:1A:2B:3C:4D:5E",
    "x[2000::2]",
    "ISBN 978-3-16-148410-0",
    "d41d8cd98f00b204e9800998ecf8427e", "3.14159265358979", "+1.5e-10", "555-0123",
    "(212) 555-0142", "1234 5678 9012 3456",
    "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "@property", "git@github.com:me/it.git",
    "me@example.com", "a @ b", "icon@2x.png",
    "array@b.shape",
    "version 1.2.3.4:8", "updated from 93.0.1.2 to 94.0.1.2",
    "versions 93.0.1.2, 93.0.1.3 and 93.0.1.4", "v1.2.3.4:53",
    "415 867 5309 12", "12 415 867 5309", "415 867 53091", "115 867 5309", "415 167 5309",
    "030 901820", "020 7946 0018", "01 42 68 53 00", "4444 4444 4444 4444",
    "sk-learn", "AKIA", "-----BEGIN RSA PRIVATE KEY-----", "1 + 2 = 3", "2020-2021-2022",
    "0000 0000 0000 0000",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "expected"), [(kind, *pair) for kind, pairs in FOUND.items() for pair in pairs]
)
def test_each_kind_is_found(kind: str, text: str, expected: str) -> None:
    redacted, counts = REDACT(text)
    assert redacted == expected
    assert set(counts) == {kind}
    only_others = PiiConfig(kinds=[other for other in PII_KINDS if other != kind])
    assert Redactor(only_others)(text)[0] == text


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    for around in ("{}", "It says {} here.", "({})\n"):
        given_text = around.format(text)
        assert REDACT(given_text) == (given_text, {})


def test_synthetic_values_stay_equal_and_are_nobodys() -> None:
    one, _ = SYNTHETIC("a@acme.com b@acme.com A@ACME.com from 93.184.216.34")
    first, second, third, _, address = one.split()
    assert first == third != second
    assert first.endswith("@example.com")
    assert address.rsplit(".", 1)[0] in ("192.0.2", "198.51.100", "203.0.113")
    other, _ = Redactor(PiiConfig(style="synthetic", key="another"))("a@acme.com")
    assert other != first


PIECES = st.sampled_from(
    [text for pairs in FOUND.values() for text, _ in pairs]
    + LEFT
    + ["\n", " ", ".", "-", "+", "the fox", "1", ":", "@"]
)


@given(pieces=st.lists(PIECES, max_size=8), glue=st.sampled_from(["", " ", "\n", "."]))
@pytest.mark.parametrize("redact", [REDACT, SYNTHETIC], ids=["placeholder", "synthetic"])
def test_a_second_time_changes_nothing(redact: Redactor, pieces: list[str], glue: str) -> None:
    once, _ = redact(glue.join(pieces))
    again, counts = redact(once)
    assert again == once
    assert not counts


def test_the_order_of_documents_does_not_matter() -> None:
    texts = [text for pairs in FOUND.values() for text, _ in pairs] + LEFT
    first = {text: Redactor(PiiConfig(style="synthetic"))(text)[0] for text in texts}
    random.Random(0).shuffle(texts)
    redact = Redactor(PiiConfig(style="synthetic"))
    assert {text: redact(text)[0] for text in texts} == first


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PiiConfig(kinds=[]), "must name at least one of key, email"),
        (PiiConfig(key="x"), "no meaning for style placeholder"),
        (PiiConfig(style="synthetic", key="x" * 65), "at most 64"),
    ],
)
def test_mistakes(config: PiiConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Redactor(config)
