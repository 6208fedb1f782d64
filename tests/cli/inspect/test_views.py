"""Inspect: the line of descent of a run, also where it leaves this machine."""

import json
from pathlib import Path

import pytest

from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.cli.inspect.views import run
from lit_pretrain.errors import UserError


def write(folder: Path, parent: str | None) -> None:
    folder.mkdir(parents=True)
    facts = {
        "verb": "fit", "started": "today", "revision": "abc", "precision": "32-true",
        "parameters": {"total": 1234}, "data": "data/x",
        "manifest_hash": "m" * 64, "tokenizer_hash": "t" * 64, "parent": parent,
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text("max_steps: 5\n")
    (folder / "metrics.jsonl").write_text(
        '{"step": 5, "val/loss": 2.0, "val/bits_per_byte": 1.0}\n'
    )


def test_descent(tmp_path: Path) -> None:
    checkpoint = "checkpoints/step=00000005.ckpt"
    write(tmp_path / "a", str(tmp_path / "models" / "llama"))  # a Hugging Face folder
    write(tmp_path / "b", str(tmp_path / "a" / checkpoint))
    write(tmp_path / "c", str(tmp_path / "b" / checkpoint))
    text = run(str(tmp_path / "c"))
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("/")] == [
        str(tmp_path / name) for name in "cba"
    ]
    assert f"from {tmp_path / 'models' / 'llama'}" in text
    assert text.count("1,234 parameters, 5 steps") == 3
    (tmp_path / "a" / "provenance.json").unlink()
    assert str(tmp_path / "a") in run(str(tmp_path / "c"))  # named, though it is gone


def test_what_is_gone_is_still_recorded(tmp_path: Path) -> None:
    write(tmp_path / "c", str(tmp_path / "b" / "checkpoints" / "step=00000005.ckpt"))
    source = {
        "kind": "jsonl", "licence": "CC0-1.0", "origin": "a library", "path": "x",
        "documents": 1234, "tokens": 5678, "sha256": "d" * 64,
    }  # fmt: skip
    gate = {"name": "piqa", "documents_hit": 3, "action": "remove"}
    data = {"where": "data/x", "hash": "h" * 64, "sources": {"prose": source}, "gate": [gate]}
    nothing = {"where": None, "hash": None, "sources": {}, "gate": []}
    stages = [
        {
            "name": name,
            "verb": verb,
            "started": "today",
            "revision": None,
            "parent": None,
            "data": what,
        }
        for name, verb, what in (
            ("c", "merge", nothing),
            ("b", "fit", data),
            ("models/llama", "Hugging Face folder", None),
        )
    ]
    (tmp_path / "c" / "lineage.json").write_text(Lineage({}, tuple(stages)).dump())
    text = run(str(tmp_path / "c"))
    assert "b: fit, started today, as recorded" in text
    assert (
        "source prose: jsonl, licence CC0-1.0, 1,234 documents, 5,678 tokens, from a library,"
        " sha256 " + "d" * 16 in text
    )
    assert "decontaminated against piqa: 3 documents hit, remove" in text
    assert text.endswith(
        "models/llama: Hugging Face folder, started today, as recorded\n  data not known\n"
    )
    (tmp_path / "c" / "lineage.json").write_text("{")
    with pytest.raises(UserError, match=r"lineage.json is damaged"):
        run(str(tmp_path / "c"))
