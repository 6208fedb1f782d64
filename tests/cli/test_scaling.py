"""`lit_pretrain scaling` as a user runs it: results, refusals with the cause, and nothing heavy
before it is needed.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.scaling.published import published_law as published

Row = dict[str, Any]
LAW = published("besiroglu")


def rows(
    budgets: int = 4, below: float = 4.0, above: float = 4.0, sigma: float = 0.002
) -> list[Row]:
    rng, found = np.random.default_rng(7), []
    for c in 10.0 ** np.arange(18, 18 + budgets):
        for n in LAW.optimum(c).n * np.geomspace(1 / below, above, 7):
            found.append(
                {
                    "n": n,
                    "c": c,
                    "loss": float(LAW.loss(n, c / 6 / n) * np.exp(rng.normal(0, sigma))),
                }
            )
    return found


def write(path: Path, table: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "runs.jsonl", rows())


def test_fit_then_forecast(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "law.json"
    assert (
        main(
            [
                "scaling",
                "fit",
                "--data",
                data,
                "--bootstrap",
                "30",
                "--seed",
                "3",
                "--drop-highest",
                "1",
                "--json",
                "--out",
                str(kept),
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= {
        "params",
        "ci95",
        "objective",
        "n_runs",
        "dropped",
        "optimum",
        "residuals",
        "params_counted",
    }
    assert found["params"].keys() == {"E", "A", "B", "alpha", "beta"}
    assert found["ci95"]["alpha"][0] < found["params"]["alpha"] < found["ci95"]["alpha"][1]
    assert (
        found["optimum"]["ci95"]["a"][0] < found["optimum"]["a"] < found["optimum"]["ci95"]["a"][1]
    )
    assert (found["n_runs"], len(found["dropped"]), len(found["residuals"])) == (27, 1, 27)

    assert main(["scaling", "forecast", "--fit", str(kept), "--flops", "1e23", "--json"]) == 0
    ahead = json.loads(capsys.readouterr().out)
    assert ahead["extrapolation"] is True
    assert any("omits the error of the law's form" in note for note in ahead["notes"])
    assert ahead["ci95"][0] < ahead["loss"] < ahead["ci95"][1]
    best = LAW.optimum(1e23)
    assert ahead["loss"] == pytest.approx(float(LAW.loss(best.n, best.d)), rel=0.02)

    assert (
        main(
            [
                "scaling",
                "forecast",
                "--data",
                data,
                "--bootstrap",
                "30",
                "--n",
                "1e9",
                "--d",
                "2e10",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "95 % interval of one run" in text
    assert "extrapolation" not in text


@pytest.mark.parametrize("law", ["tied", "kaplan"])
@pytest.mark.parametrize("loss", ["huber", "lad"])
def test_every_law_prints_a_table(
    data: str, law: str, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "scaling",
                "fit",
                "--data",
                data,
                "--law",
                law,
                "--loss",
                loss,
                "--bootstrap",
                "0",
                "--params",
                "nonembed",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert f"{law} law: 28 runs; N counts non-embedding parameters; loss in nats per token" in out
    assert "a (N* ~ C^a)" in out


def test_law_of_repeated_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    law, table = published("muennighoff"), []
    for i, row in enumerate(rows(sigma=0)):
        d = row["c"] / 6 / row["n"]
        unique = d / (1, 3, 10, 40)[i % 4]
        table.append({**row, "unique": unique, "loss": float(law.loss(row["n"], d, unique))})
    assert (
        main(
            [
                "scaling",
                "fit",
                "--data",
                write(tmp_path / "r.jsonl", table),
                "--law",
                "data",
                "--bootstrap",
                "0",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["params"] == pytest.approx(
        dict(law.params), rel=1e-5
    )


def test_isoflop(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "scaling",
                "isoflop",
                "--data",
                data,
                "--bootstrap",
                "100",
                "--flops",
                "1e22",
                "1e24",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["optimum"]["a"] == pytest.approx(LAW.exponents.a, abs=0.02)
    assert [round(np.log10(b["c"])) for b in found["budgets"]] == [18, 19, 20, 21]
    assert found["at"][1]["ci95"]["n"][0] < found["at"][1]["n"] < found["at"][1]["ci95"]["n"][1]
    assert main(["scaling", "isoflop", "--data", data, "--flops", "1e24", "--bootstrap", "10"]) == 0
    assert "(extrapolated)" in capsys.readouterr().out


def test_plot(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, events = tmp_path / "figures", tmp_path / "events"
    assert (
        main(
            [
                "scaling",
                "plot",
                "--data",
                data,
                "--bootstrap",
                "10",
                "--out",
                str(out),
                "--tensorboard",
                str(events),
            ]
        )
        == 0
    )
    names = {"isoflop", "optimum", "envelope", "contour", "residuals", "bootstrap"}
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in names}
    assert "6 images for TensorBoard" in capsys.readouterr().out
    assert len(list(events.glob("events.out.tfevents.*"))) == 1


def test_plot_of_runs_that_are_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scattered = [
        {**row, "c": row["c"] * 1.13**i, "loss": row["loss"] - 0.001 * i}
        for i, row in enumerate(rows())
    ]
    data = write(tmp_path / "r.jsonl", scattered)
    assert (
        main(["scaling", "plot", "--data", data, "--bootstrap", "0", "--out", str(tmp_path / "f")])
        == 0
    )
    told = capsys.readouterr().err
    assert "no parabolas: 28 of 28 budgets have no minimum: budget 1e+18 FLOPs: 1 size" in told
    assert "; and 23 more\n" in told
    assert "bootstrap.png is left out" in told
    assert not (tmp_path / "f" / "isoflop.png").exists()
    assert (
        main(["scaling", "plot", "--data", data, "--bootstrap", "0", "--figures", "isoflop"]) == 2
    )
    assert main(["scaling", "plot", "--data", data, "--figures", "pie"]) == 2
    assert "--figures pie: there is isoflop, " in capsys.readouterr().err


def changed(change: Callable[[list[Row]], object]) -> list[Row]:
    table = rows()
    change(table)
    return table


def test_isoflop_leaves_out_bad_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(budgets=4)
    table += [
        {**row, "c": 1e23, "d": 1e23 / 6 / row["n"], "loss": 9 - i}
        for i, row in enumerate(table[:5])
    ]
    table = [{**row, "sweep": f"{row['c']:.0e}"} for row in table]
    data = write(tmp_path / "runs.jsonl", table)
    common = ["scaling", "isoflop", "--data", data, "--columns", "group=sweep", "--bootstrap", "0"]
    assert main(common) == 2
    assert "1e+23 FLOPs: the minimum is at the edge" in capsys.readouterr().err
    assert main([*common, "--skip_bad_budgets"]) == 0
    found = capsys.readouterr()
    assert "left out: 1 of 5 budgets\n  budget 1e+23 FLOPs: the minimum is at" in found.out
    assert "warning: left out: budget 1e+23 FLOPs" in found.err
    assert main([*common, "--budgets", "1e18", "1e19", "1e21", "--json"]) == 0
    assert [b["c"] for b in json.loads(capsys.readouterr().out)["budgets"]] == pytest.approx(
        [1e18, 1e19, 1e21]
    )


REFUSED: dict[str, tuple[str, list[Row], list[str], str]] = {
    "budgets, fit": ("fit", rows(budgets=2), [], "2 FLOP budgets"),
    "budgets, isoflop": ("isoflop", rows(budgets=2), [], "2 FLOP budgets"),
    "edge": ("isoflop", rows(below=12, above=0.9), [], "the minimum is at the edge of the sweep"),
    "spread, isoflop": (
        "isoflop",
        rows(below=1.5, above=1.5, sigma=0),
        [],
        "N spreads over a factor of 2.25 only",
    ),
    "spread, fit": (
        "fit",
        [{**row, "n": 1e8 * (1 + i / 20)} for i, row in enumerate(rows())],
        [],
        "N spreads over a factor of 2.35 only",
    ),
    "nan": (
        "fit",
        changed(lambda t: t[3].update(loss=float("nan"))),
        [],
        "runs.jsonl:4: loss (nats per token) is NaN",
    ),
    "negative": (
        "isoflop",
        changed(lambda t: t[3].update(loss=-2.0)),
        [],
        "is -2; it must be positive",
    ),
    "units": (
        "fit",
        changed(lambda t: t[3].update(bits_per_byte=t[3].pop("loss"))),
        [],
        "units are mixed: ",
    ),
    "duplicates": ("fit", changed(lambda t: t.append(dict(t[0]))), [], "runs.jsonl:1 and "),
    "columns": ("fit", rows(), ["--columns", "n=params"], "has no column 'params'"),
    "quantity": ("fit", rows(), ["--columns", "x=n"], "is not QUANTITY=COLUMN"),
    "exponent": (
        "isoflop",
        [{**r, "n": r["n"] * (1e18 / r["c"]) ** 0.6} for r in rows(sigma=0)],
        [],
        "N* falls with compute (exponent -0.",
    ),
    "unique": ("fit", rows(), ["--law", "data"], "needs the unique tokens"),
    "bootstrap": ("fit", rows(), ["--bootstrap", "1"], "--bootstrap 1"),
    "option": ("fit", rows(), ["--los", "huber"], "Did you mean '--loss'?"),
    "what": ("fitt", rows(), [], "scaling has no part 'fitt'. Did you mean 'fit'?"),
    "two laws": (
        "forecast",
        rows(),
        ["--published", "kaplan", "--flops", "1e20"],
        "one law is needed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_cause(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, table, options, message = REFUSED[case]
    arguments = ["scaling", what, "--data", write(tmp_path / "runs.jsonl", table), *options]
    try:
        code = main(arguments)
    except SystemExit as exit:  # of the parser
        code = int(str(exit.code))
    assert code == 2
    assert message in capsys.readouterr().err


def test_published_laws(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "scaling",
                "forecast",
                "--published",
                "besiroglu",
                "--flops",
                "5.76e23",
                "--bootstrap",
                "300",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["extrapolation"]) == (pytest.approx(73.2e9, rel=1e-3), True)
    assert found["ci95"][0] < found["loss"] < found["ci95"][1]
    assert (
        main(
            [
                "scaling",
                "forecast",
                "--published",
                "muennighoff",
                "--n",
                "8.67e9",
                "--d",
                "178e9",
                "--unique",
                "25e9",
            ]
        )
        == 0
    )
    assert "loss 2.2270 nats per token (C4" in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys, lit_pretrain.__main__ as m\n"
        "try:\n    m.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'lightning'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    for arguments in ([], ["fit"], ["isoflop"], ["forecast"], ["plot"]):
        run = subprocess.run(
            [sys.executable, "-c", code, "scaling", *arguments, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "usage: lit_pretrain scaling" in run.stdout


def test_no_part_imports_torch(data: str, tmp_path: Path) -> None:
    code = (
        "import sys, lit_pretrain.__main__ as m\nassert m.main(sys.argv[1:]) == 0\nassert 'torch'"
        " not in sys.modules\n"
    )
    options = [
        "plot",
        "--data",
        data,
        "--bootstrap",
        "5",
        "--out",
        str(tmp_path / "f"),
        "--tensorboard",
        str(tmp_path / "t"),
    ]
    run = subprocess.run(
        [sys.executable, "-c", code, "scaling", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
