"""The commonest dataset, of one source: prepare, fit, validate and test, through the command
line.
"""

import json
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics


def test_one_source_from_raw_text_to_a_validated_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        json.dumps({"text": f"The story of number {n} and of the {n % 17} who came after it. " * 8})
        + "\n"
        for n in range(300)
    ]
    (tmp_path / "story.jsonl").write_text("".join(lines))
    sources = f'{{"mine": {{"kind": "jsonl", "path": "{tmp_path / "story.jsonl"}"}}}}'
    splits = ["--splits.validation=0.1", "--splits.test=0.05"]
    assert (
        main(
            [
                "prepare",
                f"--sources={sources}",
                f"--out={tmp_path / 'data'}",
                "--tokenizer.vocab_size=300",
                "--workers=1",
                *splits,
            ]
        )
        == 0
    )
    options = [
        "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
        "--model.compile=off", "--data.seq_len=32",
        "--data.global_batch_tokens=256", "--data.val_tokens=512", "--max_steps=3",
        "--validate_every=2", "--log_every=1",
        "--sample_prompts=[]", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert (
        main(
            [
                "fit",
                *options,
                f"--data.path={tmp_path / 'data'}",
                f"--runs={tmp_path}",
                "--name=run",
            ]
        )
        == 0
    )
    validated = [line for line in read_metrics(tmp_path / "run") if "val/loss" in line]
    assert [line["step"] for line in validated] == [2, 3]
    assert all(
        line["val/loss"] == pytest.approx(line["val_loss/mine"], rel=1e-6) for line in validated
    )
    for verb in ("validate", "test"):
        capsys.readouterr()
        assert main([verb, f"--run={tmp_path / 'run'}"]) == 0
        table = {
            row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines()[2:]
        }
        assert table["all"] == table["mine"]
