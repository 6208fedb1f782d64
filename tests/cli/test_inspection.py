"""Inspect: the line of descent of a run, also where it leaves this machine."""

import json
from pathlib import Path

from lit_pretrain.cli.inspection import run


def write(folder: Path, parent: str | None) -> None:
    folder.mkdir(parents=True)
    facts = {
        "verb": "fit", "started": "today", "revision": "abc", "precision": "32-true", "parameters": {"total": 1234}, "data": "data/x",
        "manifest_hash": "m" * 64, "tokenizer_hash": "t" * 64, "parent": parent,
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text("max_steps: 5\n")
    (folder / "metrics.jsonl").write_text('{"step": 5, "val/loss": 2.0, "val/bits_per_byte": 1.0}\n')


def test_descent(tmp_path: Path) -> None:
    checkpoint = "checkpoints/step=00000005.ckpt"
    write(tmp_path / "a", str(tmp_path / "models" / "llama"))  # a Hugging Face folder
    write(tmp_path / "b", str(tmp_path / "a" / checkpoint))
    write(tmp_path / "c", str(tmp_path / "b" / checkpoint))
    text = run(str(tmp_path / "c"))
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("/")] == [str(tmp_path / name) for name in "cba"]
    assert f"from {tmp_path / 'models' / 'llama'}" in text
    assert text.count("1,234 parameters, 5 steps") == 3
    (tmp_path / "a" / "provenance.json").unlink()
    assert str(tmp_path / "a") in run(str(tmp_path / "c"))  # named, though it is gone
