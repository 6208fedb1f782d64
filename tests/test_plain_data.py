"""YAML and JSON are read so that nothing in them is lost in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import (
    boolean_words,
    check_references,
    escape_references,
    parse_json,
    parse_yaml,
    read_text,
    read_yaml,
    resolve_references,
)

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice, in line 1"),
        ("x:\n  a: 1\n  a: 1\n", "in line 2 and in line 3"),
        ('"a": 1\na: 1\n', "in line 1 and in line 2"),
        ("x: [{a: 1, a: 2}]", "the key 'a' is given twice"),
        ('{"a": 1,\n "b": {"c": 1,\n "c": 2}}', "in line 2 and in line 3"),
        ("1: a\n1: b\n", "the key '1' is given twice"),
        ("a: &a [*a]", "an anchor contains itself"),
        ("a: &a\n  b: {c: *a}", "an anchor contains itself"),
        (LAUGHS, "stand for more than 100,000 values"),
        ("no: 1", "YAML reads no as false; put the word in quotes: 'no'"),
        ("a:\n  On: 1", "line 2, column 3: YAML reads On as true"),
        ("a: \ud800", "surrogate"),
        ("a: '\x07'", "control characters are not allowed"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: [1", "line 2, column 1"),
        ("[" * 100_000, "nesting"),
        ("a: 1\n--- b", "another document"),
        ("? [1]\n: 2", "unhashable key"),
    ],
)
def test_yaml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "here.yaml")
    assert str(caught.value).startswith("here.yaml: ")
    assert said in str(caught.value)


def test_yaml_that_is_read() -> None:
    merged = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, y: 4}\n"
    assert parse_yaml(merged, "") == yaml.safe_load(merged)  # a merge may be overridden
    assert parse_yaml("a: 2e12\nb: '2e12'\nc: x2e12\n", "") == {
        "a": 2e12,
        "b": "2e12",
        "c": "x2e12",
    }
    assert parse_yaml("a: off\n'no': 1", "") == {"a": False, "no": 1}
    assert parse_yaml("", "") is None


def test_words_that_yaml_takes_for_booleans() -> None:
    found = dict(boolean_words("a:\n  b: off\nc: [de, no]\nd: 'off'\ne: true\nf: False\n"))
    assert sorted(found) == ["a.b", "c"]
    assert found["a.b"] == "line 2: YAML reads off as false; put the word in quotes: 'off'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "here.json: the key 'a' is given twice; keep"),
        ('{\n"a": 1,\n"b": {"a": 2},\n"a": 3}', "'a' is given twice, in line 2 and in line 4"),
        ('[{"{": 1},\n{"\\"}": 1,\n"\\"}": "{"}]', "in line 2 and in line 3"),
        ('{"é": 1, "\\u00e9": 2}', "'é' is given twice"),
        ('{"a": 1', "here.json is not JSON"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_json(text, "here.json")
    assert said in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_other_json_is_read_as_ever(value: Any) -> None:
    assert parse_json(json.dumps(value), "") == value


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"a: 1\nname: caf\xe9\n")
    with pytest.raises(UserError, match=r"a.yaml is not UTF-8: line 2 holds the byte 0xe9"):
        read_yaml(file)
    file.write_bytes(b"\xef\xbb\xbfa: caf\xc3\xa9\n")
    assert read_yaml(file) == {"a": "café"}
    for path, said in ((tmp_path / "b", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(UserError, match=said):
            read_text(path)
    with pytest.raises(UserError, match="null byte"):
        read_text("a\0b")


TEXTS = st.text(st.sampled_from("$\\{}a b'"))


@given(st.dictionaries(st.just("x"), TEXTS | st.lists(TEXTS)))
def test_escaped_text_is_what_a_config_reads(value: Any) -> None:
    escaped = escape_references(value)
    assert resolve_references(escaped) == value
    resolved = OmegaConf.to_container(OmegaConf.create(escaped), resolve=True)
    assert resolved == value


def test_references_that_multiply() -> None:
    laughs = {"a": "ha" * 10} | {
        name: f"${{{before}}}" * 10 for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    }
    with pytest.raises(UserError, match="stand for more than 1,000,000 characters"):
        check_references([laughs])
    with pytest.raises(UserError, match="stand for more"):
        check_references([{"x": laughs["a"] * 50_001}, {"y": ["${x}"]}])
    nested = {"g": {"a": "ha" * 100, "b": "${.a}" * 100, "c": "${..g.b}" * 100}}
    with pytest.raises(UserError, match=r"g\.c"):
        check_references([nested])
    check_references([{"a": "${b}", "b": "${a}", "c": "${oc.env:HOME}", "d": "${nowhere}"}])
