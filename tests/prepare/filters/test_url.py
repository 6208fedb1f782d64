"""URL: domains and what lies under them, addresses, words; from the config, from files, from
datatrove's package.
"""

from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters import url as module
from lit_pretrain.prepare.filters.filter import View
from lit_pretrain.prepare.filters.url import Url


def reason(url: str | None, **arguments: Any) -> str:
    verdict = Url(**arguments)(
        Document(text="text", origin="", fields={} if url is None else {"url": url}), View("text")
    )
    assert verdict.keep == (not verdict.reason)
    return verdict.reason


@pytest.mark.parametrize(
    ("url", "removed"),
    [
        ("https://example.org/page", True),
        ("http://www.example.org", True),
        ("https://a.b.EXAMPLE.org:8080/x?y#z", True),
        ("example.org/page", True),
        ("//user:secret@example.org./x", True),
        ("https://notexample.org/", False),
        ("https://example.org.other.net/", False),
        ("https://other.net/example.org", False),
        ("https://org/", False),
        ("http://[::1]:80/", False),
        ("http://[broken", False),
        ("::", False),
    ],
)
def test_domains_cover_what_lies_under_them(url: str, removed: bool) -> None:
    assert reason(url, domains=["Example.org"]) == ("domain" if removed else "")
    assert reason(url, domains=["https://www.example.net/", "x.example.org"]) == ""


def test_addresses() -> None:
    arguments = {"addresses": ["https://www.example.org/bad/page/"]}
    assert reason("http://example.org/bad/page", **arguments) == "address"
    assert reason("HTTPS://example.org/bad/page/#top", **arguments) == "address"
    assert reason("https://example.org/bad/page2", **arguments) == ""
    assert reason("https://example.org/bad", **arguments) == ""


def test_words_soft_words_and_substrings() -> None:
    arguments = {
        "words": ["Casino"],
        "soft_words": ["win", "bet", "odds"],
        "substrings": ["free money"],
    }
    assert reason("https://example.org/the-CASINO/1", **arguments) == "word"
    assert reason("https://example.org/casinos", **arguments) == ""
    assert reason("https://example.org/win/win", **arguments) == "", "one soft word, twice"
    assert reason("https://example.org/win-or-bet", **arguments) == "soft_words"
    assert reason("https://example.org/win-or-bet", **arguments, min_soft_words=3) == ""
    assert reason("https://example.org/free-mo/ney", **arguments) == "substring"


def test_files(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("# of mine\n\nbad.example\nworse.example\n", encoding="utf-8")
    (tmp_path / "words").write_text("spam\n", encoding="utf-8")
    arguments = {
        "domain_files": [str(tmp_path / "domains")],
        "word_files": [str(tmp_path / "words")],
        "domains": ["third.example"],
    }
    assert reason("https://x.worse.example", **arguments) == "domain"
    assert reason("https://third.example", **arguments) == "domain"
    assert reason("https://good.example/spam", **arguments) == "word"
    assert reason("https://good.example/", **arguments) == ""


@pytest.mark.parametrize(
    ("option", "entry", "url", "found"),
    [
        ("address_files", "https://good.example/one", "http://www.good.example/one/", "address"),
        ("address_files", "https://good.example/one", "https://good.example/two", ""),
        ("soft_word_files", "cheap\nloan", "https://good.example/cheap-loan", "soft_words"),
        ("soft_word_files", "cheap\nloan", "https://good.example/cheap-cheap", ""),
        ("substring_files", "free-money", "https://good.example/my-freemon-ey", "substring"),
        ("substring_files", "free-money", "https://good.example/free", ""),
    ],
)
def test_files_of_the_other_lists(
    tmp_path: Path, option: str, entry: str, url: str, found: str
) -> None:
    (tmp_path / "list").write_text(f"# of mine\n{entry}\n", encoding="utf-8")
    assert reason(url, **{option: [str(tmp_path / "list")]}) == found


def test_documents_without_a_url() -> None:
    assert reason(None, domains=["example.org"]) == ""
    assert reason(" ", domains=["example.org"], without_url="remove") == "no_url"


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="only empty lists"):
        Url()
    with pytest.raises(UserError, match=r"domain_files: .*none cannot be read: No such file"):
        Url(domain_files=[str(tmp_path / "none")])
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"word_files: .*not UTF-8"):
        Url(word_files=[str(tmp_path / "latin")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="datatrove is not installed"):
        module._datatrove_assets()


@pytest.mark.slow  # the lists hold four million domains
def test_datatrove_lists() -> None:
    """The lists of the package, read as data and without a network; the verdicts are those of
    its filter but for three differences.
    """
    pytest.importorskip("datatrove", reason="needs the cluster extra")
    arguments = {"datatrove_lists": True}
    domains, addresses = module._datatrove_hashes()
    assert len(domains) > 4_000_000
    assert domains.nbytes < 40e6
    assert len(addresses) > 5_000
    assert reason("https://www.0-porno.com/", **arguments) == "domain"
    assert reason("http://0-puppy-0.tumblr.com/page", **arguments) == "domain"
    assert reason("https://tumblr.com/page", **arguments) == ""
    assert reason("https://docs.python.org/3/library/re.html", **arguments) == ""
    assert reason("https://en.wikipedia.org/wiki/Language_model", **arguments) == ""
    assert reason("https://nowhere.example/2g1c", **arguments) == "word"
    assert reason("https://nowhere.example/alabama-hot-pocket", **arguments) == "substring"
    assert reason("https://nowhere.example/suck-butt", **arguments) == "soft_words"
