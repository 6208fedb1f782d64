"""Joined datasets hold what their parts hold, byte for byte, and only what fits together is
joined.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.corpus.manifest import SPLITS, Manifest, verify
from lit_pretrain.data.text.mixture import Mixture, make_order
from lit_pretrain.data.text.order import Tracer
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet
from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256
from lit_pretrain.prepare.join_datasets import join
from lit_pretrain.prepare.pipeline import prepare
from lit_pretrain.prepare.prepare_config import (
    PrepareConfig,
    SourceConfig,
    SplitsConfig,
    TokenizerConfig,
)
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe

QUESTIONS = [" ".join(f"question{n}word{m}" for m in range(15)) for n in range(3)]


def config(folder: Path, name: str, **changes: Any) -> PrepareConfig:
    fields: dict[str, Any] = {
        "out": str(folder / name),
        "sources": {
            "web": SourceConfig(
                kind="jsonl", path=str(folder / f"{name}.jsonl"), licence="CC0-1.0"
            ),
            f"only-{name}": SourceConfig(kind="text", path=str(folder / f"{name}-texts")),
        },
        "tokenizer": TokenizerConfig(kind="file", path=str(folder / "tokenizer")),
        "decontaminate": DecontaminateConfig(
            against={"exam": EvaluationSet(path=str(folder / "exam.jsonl"), fields=["question"])},
            action="remove",
        ),
        "splits": SplitsConfig(validation=0.2, test=0.1),
        "chunk_tokens": 2_000,
        "workers": 1,
    }
    return PrepareConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets a and b, each with a source `web` and one of its own; each leaks the first
    question, b the second, too.
    """
    folder = tmp_path_factory.mktemp("join")
    (folder / "exam.jsonl").write_text(
        "".join(json.dumps({"question": question}) + "\n" for question in QUESTIONS)
    )
    for name, leaks in (("a", QUESTIONS[:1]), ("b", QUESTIONS[:2])):
        rows = [
            f"Row {n} of {name}: {n * 7919 % 10007} things, and {n * 31 % 97} more of them.\n"
            * (1 + n % 5)
            for n in range(120)
        ]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in [*rows, *leaks])
        )
        (folder / f"{name}-texts").mkdir()
        for n in range(30):
            (folder / f"{name}-texts" / f"{n}.txt").write_text(
                f"Text {n} of {name}, which says {n * 37 % 101}. " * 5
            )
    (folder / "tokenizer").mkdir()
    train_bpe(rows, TokenizerConfig(vocab_size=300)).save(folder / "tokenizer")
    for name in ("a", "b"):
        prepare(config(folder, name))
    return folder


def test_the_whole_holds_its_parts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all"
    assert main(["join", str(out), str(folder / "a"), str(folder / "b")]) == 0
    shown = capsys.readouterr()
    whole, parts = Manifest.load(out), {name: Manifest.load(folder / name) for name in ("a", "b")}
    assert list(whole.sources) == ["a_web", "only-a", "b_web", "only-b"]
    assert f"{whole.tokens('train'):,}" in shown.out
    assert verify(out, whole) == []
    for new, (name, old) in {
        "a_web": ("a", "web"),
        "only-a": ("a", "only-a"),
        "b_web": ("b", "web"),
    }.items():
        assert whole.sources[new] == parts[name].sources[old]
        for split in SPLITS:
            mine, theirs = out / split / new, folder / name / split / old
            assert {p.name: file_sha256(p) for p in mine.iterdir()} == {
                p.name: file_sha256(p) for p in theirs.iterdir()
            }
    assert whole.tokens("train") == sum(part.tokens("train") for part in parts.values())
    assert json.loads((out / "joined" / "b" / "manifest.json").read_text())["config"]["sources"][
        "web"
    ]["path"].endswith("b.jsonl")
    files = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".bin"
    }
    assert files - {"manifest.json"} == set(whole.files)
    # The same order of names gives the same data; what it is called on disk has no say.
    assert main(["join", str(tmp_path / "again"), str(folder / "a"), str(folder / "b")]) == 0
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (
        out / "manifest.json"
    ).read_bytes()


def test_the_gate_adds_up(folder: Path, tmp_path: Path) -> None:
    (record,) = join(str(tmp_path / "all"), [str(folder / "a"), str(folder / "b")]).decontamination
    assert (record.name, record.items, record.documents_hit, record.items_hit, record.clean) == (
        "exam",
        3,
        3,
        2,
        True,
    )


def test_a_set_that_one_part_was_not_held_against_is_not_declared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config(folder, "b", out=str(tmp_path / "free"), decontaminate=None))
    assert (
        join(str(tmp_path / "all"), [str(folder / "a"), str(tmp_path / "free")]).decontamination
        == ()
    )
    assert (
        f"not checked against the evaluation set exam: {tmp_path / 'free'} was not"
        in capsys.readouterr().err
    )


def test_a_row_is_traced_to_its_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all"
    whole = join(str(out), [str(folder / "a"), str(folder / "b")])
    order = make_order(
        whole, Mixture(), seq_len=32, batch=BatchSizes.one(128), seed=0, cycle=64, shuffle_chunks=1
    )
    rows = list(Tracer(out, whole, order, seq_len=32).rows(range(40)))
    assert {row.source for row in rows} == set(whole.sources)
    assert all(row.documents for row in rows)
    capsys.readouterr()
    assert main(["inspect", "data", str(out), "--find", "Row 7 of b:"]) == 0
    assert "b_web" in (found := capsys.readouterr().out)
    assert f"{folder / 'b.jsonl'}:8" in found


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    a, out = str(folder / "a"), str(tmp_path / "all")
    train_bpe(
        ["other words than these, again and again"] * 9, TokenizerConfig(vocab_size=270)
    ).save(tmp_path)
    other = TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json"))
    for name, changes, what in (
        ("tokens", {"tokenizer": other}, "tokenizer.hash is"),
        ("splits", {"splits": SplitsConfig(validation=0.3, test=0.1)}, "splits is"),
        ("seed", {"seed": 5}, "seed is 5 there and 0 here"),
    ):
        prepare(config(folder, "b", out=str(tmp_path / name), **changes))
        with pytest.raises(UserError, match=rf"{name} and .*a cannot be joined: {what}"):
            join(out, [a, str(tmp_path / name)])
    copy = shutil.copytree(folder / "a", tmp_path / "copy")
    with pytest.raises(
        UserError, match="copy holds the same tokens as one that is named before it"
    ):
        join(out, [a, str(copy)])
    with pytest.raises(UserError, match="two datasets at least"):
        join(out, [a])
    with pytest.raises(UserError, match="no prepared dataset at"):
        join(out, [a, str(tmp_path)])
    with pytest.raises(UserError, match="is not a prepared dataset"):
        join(str(folder), [a, str(folder / "b")])
    assert not (tmp_path / "all").exists()


def test_a_damaged_part_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "b", tmp_path / "b"))
    chunk = copy / "train" / "web" / "chunk-0-0.bin"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1])
    with pytest.raises(
        UserError,
        match=rf"chunk-0-0\.bin has {len(data) - 1:,} bytes, its manifest says {len(data):,}",
    ):
        join(str(tmp_path / "all"), [str(folder / "a"), str(copy)])
    chunk.unlink()
    with pytest.raises(UserError, match=r"chunk-0-0\.bin is missing"):
        join(str(tmp_path / "all"), [str(folder / "a"), str(copy)])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
