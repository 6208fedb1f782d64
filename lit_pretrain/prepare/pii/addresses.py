"""Addresses on a network: email, IPv4, IPv6."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

Span = tuple[int, int]
"""Start and end of a finding in the text, in characters."""

# RFC 5321 §4.5.3.1.1: at most 64 characters before the @. Of the signs that RFC 5322 allows, those
# in use.
_LOCAL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?\Z")
_LOCAL_RUN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+'-")
_DOMAIN = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})){1,8}"
)
_FILE_ENDINGS = frozenset("cc md ml mov pl pm ps pt py rs sh so tf zip".split())
"""Top-level domains that are also endings of files: they count only below a name of at least three
letters, or of two that are no part of a version (`a@b.py`, `model@v1.2.so`, `net@step-100.pt`).
"""
_SHORT_NAMES = frozenset({"pt", "ml", "cc", "pl"})
"""Those of them under which names of two letters are common (`ua.pt`)."""
_VERSION_NAME = re.compile(
    r"(?:v|ver|version|rev|rel|release|r|rc|step|epoch|iter|ckpt|checkpoint|part|build)?"
    r"[-_]?\d[\w-]*",
    re.IGNORECASE | re.ASCII,
)
# RFC 2606.
_RESERVED_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example\.(?:com|net|org)|example|test|invalid|localhost)", re.IGNORECASE
)


def find_emails(text: str) -> Iterator[Span]:
    """Find email addresses.

    RFC 2606's example domains stay, and `git@host:path`, which belongs to nobody.
    """
    at, done = text.find("@"), 0
    while at >= 0:
        start = _run_start(text, max(done, at - 65), at)
        if (domain := _DOMAIN.match(text, at + 1)) and at - start <= 64:
            while start < at and not (text[start].isalnum() or text[start] == "_"):
                start += 1  # Quotes, dots and dashes before an address are not part of it.
            end = _domain_end(text, at + 1, domain.end())
            if (
                end
                and _LOCAL.match(text, start, at)
                and not _RESERVED_DOMAIN.fullmatch(text, at + 1, end)
                and not (text[start:at] == "git" and text[end : end + 1] == ":")
                and text[end : end + 1] != "("  # a call: `a@b.run(x)` multiplies matrices
            ):
                yield start, end
                done = end
        at = text.find("@", at + 1)


def _run_start(text: str, low: int, at: int) -> int:
    """Find where the characters that may stand before an @ begin."""
    start = at
    while start > low and text[start - 1] in _LOCAL_RUN:
        start -= 1
    return start


def _domain_end(text: str, start: int, end: int) -> int:
    """Find the end of the domain name; return 0 if there is none.

    A sentence may go on after a full stop without a space: `me@site.com.Then`.
    """
    while text[end - 1] == "-":
        end -= 1
    if text[end : end + 1] == "_":
        return 0
    while (dot := text.rfind(".", start, end)) > 0:
        last = text[dot + 1 : end]
        if _is_top_level(last.lower(), text[start:dot]):
            return end
        if not last[0].isupper():
            return 0
        end = dot
    return 0


def _is_top_level(label: str, below: str) -> bool:
    """Tell whether a domain name may end in a label.

    Args:
        label: What stands behind the last dot, in lower case.
        below: What stands before it.
    """
    if label in _FILE_ENDINGS:
        name = below.rpartition(".")[2]
        shortest = 2 if label in _SHORT_NAMES else 3
        if len(below) < shortest or _VERSION_NAME.fullmatch(name):
            return False
    return _is_delegated(label)


@functools.cache
def _is_delegated(label: str) -> bool:
    """Look a top-level domain up in the Public Suffix List, as the package brings it.

    It takes a list, because `icon@2x.png` and `a@b.shape` have an address's form.
    """
    # Some countries have rules for the names below theirs alone: ask for one of these.
    return _suffixes().publicsuffix(f"name.{label}") is not None


@functools.cache
def _suffixes() -> PublicSuffixList:
    """Read the list, which takes 50 ms."""
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False, only_icann=True)


# IANA's IPv4 special-purpose registry (RFC 6890 and later): nobody on the Internet has one of these
# addresses.
_NOBODYS_V4 = [
    (int(network.network_address), int(network.broadcast_address))
    for network in map(
        ipaddress.IPv4Network,
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24"
        " 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24"
        " 224.0.0.0/4 240.0.0.0/4".split(),
    )
]
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# Not within a longer dotted number (OIDs), a name (pkg-1.2.3.4), a requirement (==1.2.3.4) or
# something that goes on (1.2.3.4-rc1).
_QUAD = re.compile(
    rf"(?<![\w.+~^-])(?<![=<>~!]=){_OCTET}(?:\.{_OCTET}){{3}}(?![\w+~-]|\.\w)", re.ASCII
)
_QUAD_RANGE = re.compile(
    rf"(?<![\w.+~^-])({_OCTET}(?:\.{_OCTET}){{3}})-({_OCTET}(?:\.{_OCTET}){{3}})(?![\w+~-]|\.\w)",
    re.ASCII,
)
_SMALL = 32
"""Three numbers below this begin a version or a section (1.0.2.211), unless the text says
otherwise; of all addresses 1 in 512 does.
"""
_VERSION = re.compile(
    r"version|\bver\b|release|\brev(?:ision)?\b|\bbuild\b|updat|upgrad|downgrad|patch|firmware|"
    r"driver|install|plugin|\boids?\b|section|chapter|clause|"
    r"\bsec\.|\u00a7|\bfig(?:ure)?\b|\btable\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)+")
_AMONG_VERSIONS = frozenset(
    "and or to from through until till not but before after than via".split()
)
"""Words that may stand between two versions: `updated from 93.0.1.2 to 94.0.1.2`."""
_PORT = re.compile(r":[1-9]\d{0,4}(?![\w:]|\.\d)", re.ASCII)
_WORD_BEFORE = re.compile(r"([A-Za-z][A-Za-z0-9_+#.-]*)[ \t]+\Z")
_ADDRESS = frozenset(
    "ip ips ipv4 ipaddr addr address addresses host hosts hostname dns nameserver resolver ping"
    " pinged".split()
)
_BEFORE_ADDRESS = _ADDRESS | frozenset(
    "server servers client clients gateway router peer node proxy traceroute tracert ssh telnet"
    " curl wget nslookup dig whois visit from to at on by via is was are were of and or with for in"
    " through between against banned blocked block ban allow deny accept reject drop user login"
    " connect connected connecting connection reached range subnet network net inet inet4 route src"
    " dst source destination remote bind listen listening a a6 mx ns ptr txt get post put delete"
    " head".split()
)


def find_ipv4(text: str) -> Iterator[Span]:
    """Find IPv4 addresses of the public Internet.

    A dotted quad stays where it may be a version, a section number or an OID: after a word that
    does not usually stand before addresses (`OpenSSL 1.0.2.11`, but `from 93.184.215.14`), where
    the words before it speak of versions, or with three small numbers in front. A quad with a port
    (8.8.8.8:53) is no version, unless it is called one.
    """
    if text.count(".") < 3:
        return
    spans = [match.span() for match in _QUAD.finditer(text)]
    for match in _QUAD_RANGE.finditer(text) if spans or "-" in text else ():
        spans += [match.span(1), match.span(2)]
    for start, end in sorted(spans):
        octets = [int(octet) for octet in text[start:end].split(".")]
        value = int.from_bytes(bytes(octets), "big")
        if any(low <= value <= high for low, high in _NOBODYS_V4):
            continue
        before = text[max(0, start - 60, text.rfind("\n", max(0, start - 60), start) + 1) : start]
        word = found.group(1).lower() if (found := _WORD_BEFORE.search(before)) else None
        port = _PORT.match(text, end) is not None and (word is None or not _VERSION.search(word))
        certain = before.endswith(("://", "@")) or word in _ADDRESS or port
        if not certain and (
            max(octets[:3]) < _SMALL
            or _VERSION.search(_of_this(before))
            or (word is not None and word not in _BEFORE_ADDRESS)
        ):
            continue
        yield start, end


def _of_this(before: str) -> str:
    """Return the words that speak of a quad: those after the number before it, if they add any."""
    *_, last = (0, *(match.end() for match in _NUMBER.finditer(before)))
    after = before[last:]
    return after if last and set(re.findall(r"[a-z]+", after.lower())) - _AMONG_VERSIONS else before


# RFC 4291 §2.2, in 2000::/3: all that is assigned (IANA). So no `std::vector`, no MAC address, no
# link-local fe80::, no loopback. The digit comes before the look-behind: a search skips to digits.
_GROUPS = re.compile(
    r"[23](?<![\w:.].)[0-9A-Fa-f]{3}(?:::|(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:::)?)(?![\w:]|\.\w)"
)
# RFC 3849, RFC 9637.
_DOCUMENTATION_V6 = [ipaddress.IPv6Network("2001:db8::/32"), ipaddress.IPv6Network("3fff::/20")]


def find_ipv6(text: str) -> Iterator[Span]:
    """Find IPv6 addresses of the public Internet.

    `2000::2` needs a third group or a hex letter, for it may be a slice.
    """
    if text.count(":") < 2:
        return
    for match in _GROUPS.finditer(text):
        found = match.group()
        if found.count(":") < 2 or (
            sum(map(bool, found.split(":"))) < 3
            and found.isascii()
            and not re.search(r"[A-Fa-f]", found)
        ):
            continue
        try:
            address = ipaddress.IPv6Address(found)
        except ValueError:
            continue
        if not any(address in network for network in _DOCUMENTATION_V6):
            yield match.span()
