"""Run tables: three formats and any column names give the same runs; what is unclear is asked
for.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters
from lit_pretrain.scaling.run_table import parse_columns, read_folders, read_table, write_table
from lit_pretrain.scaling.runs import Counts, Record, assemble_runs

ROWS = [
    {"Model Size": 1e8, "Training FLOP": 1.2e18, "val/loss": 3.1},
    {"Model Size": 4e8, "Training FLOP": 1.2e19, "val/loss": 2.9},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".csv":
        lines = [
            ",".join(rows[0]),
            *(",".join(str(value) for value in row.values()) for row in rows),
        ]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text(
            json.dumps(rows)
            if path.suffix == ".json"
            else "".join(json.dumps(row) + "\n\n" for row in rows)
        )
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"runs{suffix}", ROWS)
    for columns in ({}, {"n": "Model Size", "c": "Training FLOP", "loss": "val/loss"}):
        records = read_table(path, columns)
        assert [(r.n, r.d, r.c, dict(r.losses)) for r in records] == [
            (1e8, None, 1.2e18, {"nats": 3.1}),
            (4e8, None, 1.2e19, {"nats": 2.9}),
        ]
    assert (
        records[1].label == f"{path}" + {".csv": ":3", ".jsonl": ":3", ".json": ": item 2"}[suffix]
    )


def test_units(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"n": 1e8, "d": 1e9, "bpb": 1.1}]
    assert read_table(write(tmp_path / "a.jsonl", rows))[0].losses == {"bits_per_byte": 1.1}
    assert read_table(tmp_path / "a.jsonl", {"loss": "bpb"})[0].losses == {"bits_per_byte": 1.1}
    rows = [{"n": 1e8, "d": 1e9, "loss": 1.1}]
    assert read_table(
        write(tmp_path / "b.jsonl", rows), unit="bits_per_byte", columns={"loss": "loss"}
    )[0].losses == {"bits_per_byte": 1.1}
    rows = [
        {"n": 1e8, "d": 1e9, "loss": 3.1, "unit": "nats"},
        {"n": 1e9, "d": 1e9, "loss": 1.1, "unit": "bits/byte"},
    ]
    with pytest.raises(UserError, match=r"c\.jsonl:3: the unit of the loss is 'bits/byte'"):
        read_table(write(tmp_path / "c.jsonl", rows))
    rows[1]["unit"] = "bpb"
    assert [dict(r.losses) for r in read_table(write(tmp_path / "d.jsonl", rows))] == [
        {"nats": 3.1},
        {"bits_per_byte": 1.1},
    ]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            ROWS,
            {"loss": "final"},
            "--columns loss=final: .* has no column 'final'.* Columns: 'Model Size', ",
        ),
        (ROWS, {"n": "Model size"}, "Did you mean 'Model Size'"),
        ([{"a": 1, "b": 2, "loss": 3}], {}, r"no column is known as two of n \(parameters\)"),
        ([{"n": 1, "d": 2, "perplexity": 3}], {}, "no column is known as loss"),
        ([{"n": 1, "d": 2, "loss": 3, "val_loss": 3}], {}, "'loss', 'val_loss' could each be loss"),
        ([{"n": 1, "d": "many", "loss": 3}], {}, "d is 'many', not a number"),
        ([{"n": 1, "d": 2, "loss": ""}], {}, "no loss in column 'loss'"),
        ([{"n": True, "d": 2, "loss": 3}], {}, "n is True, not a number"),
    ],
)
def test_refused(
    tmp_path: Path, rows: list[dict[str, object]], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "runs.jsonl", rows), columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a .csv, .jsonl or .json file is needed"),
        ("a.csv", b"n,d,loss\n1,2\n", r"a\.csv:2: the row has not the 3 fields"),
        ("a.csv", b"", "has no rows"),
        ("a.jsonl", b"{", r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b"[1]", "an object with a value per column"),
        ("a.json", b"{}", "a list of objects is needed, found dict"),
        ("a.csv", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_hold_no_runs(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / name)


def test_columns_as_given() -> None:
    assert parse_columns("n=Model Size,c=Training FLOP, LOSS=val/loss") == {
        "n": "Model Size",
        "c": "Training FLOP",
        "loss": "val/loss",
    }
    for text in ("m=x", "n"):
        with pytest.raises(UserError, match="is not QUANTITY=COLUMN"):
            parse_columns(text)
    with pytest.raises(UserError, match="cannot be read"):
        read_table(Path("absent.csv"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    runs = assemble_runs(
        [
            Record(f"run, {i}", {"bits_per_byte": 1.5 - i / 10}, 1e6 * (i + 1), 2e7, unique=1e7)
            for i in range(3)
        ],
        counts="total",
    )
    (tmp_path / "runs.csv").write_text(write_table(runs))
    again = assemble_runs(read_table(tmp_path / "runs.csv"), counts="total")
    assert again.unit == "bits_per_byte"
    for column in ("n", "d", "c", "unique", "loss"):
        assert list(getattr(again, column)) == list(getattr(runs, column))


# ------------------------------------------------------------------ run folders


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


def test_a_folder_is_read_without_what_a_law_does_not_describe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "base", ModelConfig())
    run_folder(tmp_path / "early", ModelConfig(), last=3)
    others = {
        "tuned": ({"verb": "finetune", "parent": "runs/base"}, "by `lit_pretrain finetune`"),
        "imported": ({"verb": "import", "parent": "a/folder"}, "by `lit_pretrain import`"),
        "longer": ({"verb": "fit", "parent": "runs/base"}, "goes on from runs/base"),
    }
    for name, (facts, _) in others.items():
        (run_folder(tmp_path / name, ModelConfig()) / "provenance.json").write_text(
            json.dumps(facts)
        )
    assert [record.label for record in read_folders([tmp_path], "total")] == [
        str(tmp_path / "base")
    ]
    said = capsys.readouterr().err
    assert f"{tmp_path}: 4 of its runs are left out" in said
    for name, (_, why) in others.items():
        assert f"{tmp_path / name} " in said
        assert why in said
        with pytest.raises(UserError, match=why):
            read_folders([tmp_path / name], "total")
    assert f"{tmp_path / 'early'} is at step 3 of 4" in said
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="holds no run that a law can be fitted to"):
        read_folders([tmp_path], "total")


def test_folders_that_are_refused(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"is not a run folder: it holds no config\.yaml"):
        read_folders([tmp_path / "empty"], "total")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").touch()
    for place, said in {"data": "is a dataset", "base": "does not exist"}.items():
        with pytest.raises(UserError, match=said):
            read_folders([tmp_path / place], "total")
    (tmp_path / "runs.csv").touch()
    with pytest.raises(UserError, match="is not a folder; give tables with --data"):
        read_folders([tmp_path / "runs.csv"], "total")
