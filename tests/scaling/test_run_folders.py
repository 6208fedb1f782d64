"""Run folders: N, D, C and loss as the run wrote them, and refused before the run has ended."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters
from lit_pretrain.scaling.run_table import read_folders
from lit_pretrain.scaling.runs import Counts


def run_folder(
    path: Path,
    net: ModelConfig,
    *,
    steps: int = 4,
    last: int = 4,
    loss: float = 3.5,
    tokenizer: str = "aa",
) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        yaml.safe_dump({"model": {"net": dataclasses.asdict(net)}, "max_steps": steps})
    )
    (path / "provenance.json").write_text(
        json.dumps({"tokenizer_hash": tokenizer, "unique_tokens": 96})
    )
    lines: list[dict[str, Any]] = [
        {
            "step": 2,
            "val/loss": 9.0,
            "val/bits_per_byte": 3.0,
            "progress/tokens": 512.0,
            "progress/flops": 1e9,
        },
        {
            "step": last,
            "train/loss": 5.0,
            "progress/tokens": 256.0 * last,
            "progress/flops": 5e8 * last,
        },
        {
            "step": last,
            "val/loss": loss,
            "val/bits_per_byte": loss / 3,
            "progress/tokens": 256.0 * last,
            "progress/flops": 5e8 * last,
        },
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("counts", "field"), [("total", "total"), ("matmul", "matmul"), ("nonembed", "non_embedding")]
)
def test_what_a_run_says(tmp_path: Path, counts: Counts, field: str) -> None:
    net = ModelConfig(vocab_size=512, n_layer=2, width=32, n_head=2, rope_scaling=RopeScaling())
    run = run_folder(tmp_path / "a", net)
    (record,) = read_folders([run], counts)
    assert record.n == getattr(count_parameters(net), field)
    assert (record.d, record.c, dict(record.losses)) == (
        1024,
        2e9,
        {"nats": 3.5, "bits_per_byte": 3.5 / 3},
    )
    assert (record.label, record.vocabulary, record.unique) == (str(run), "aa", 96)


def test_a_folder_of_runs_stands_for_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        run_folder(tmp_path / name, ModelConfig())
    (tmp_path / "notes").mkdir()
    assert [record.label for record in read_folders([tmp_path], "total")] == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
    with pytest.raises(UserError, match="same run as one that was named before"):
        read_folders([tmp_path, tmp_path / "a"], "total")


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is at step 3 of 4: .* no final loss"):
        read_folders([run_folder(tmp_path / "early", ModelConfig(), last=3)], "total")
    (run_folder(tmp_path / "new", ModelConfig()) / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 9.0}\n'
    )
    with pytest.raises(UserError, match=r"no validation in metrics\.jsonl yet"):
        read_folders([tmp_path / "new"], "total")
    (run_folder(tmp_path / "odd", ModelConfig()) / "config.yaml").write_text(
        "model: {net: {vocab: 3}}\nmax_steps: 4\n"
    )
    with pytest.raises(UserError, match="is not the config of a run"):
        read_folders([tmp_path / "odd"], "total")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a run folder and holds none"):
        read_folders([tmp_path / "empty"], "total")
    with pytest.raises(UserError, match="is not a folder; give tables with --data"):
        read_folders([tmp_path / "runs.csv"], "total")
