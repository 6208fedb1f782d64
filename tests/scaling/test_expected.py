"""Expected: a law applied to one run, whoever fitted it."""

import json
from pathlib import Path

import numpy as np
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.fitted import fit_document, fit_runs
from lit_pretrain.scaling.forecast import expected
from lit_pretrain.scaling.published import find_law
from lit_pretrain.scaling.published import published_law as published
from lit_pretrain.scaling.runs import Record, assemble_runs

COUNTS = count_parameters(ModelConfig(n_layer=12, width=768, n_head=12, vocab_size=32_000))
LAW = published("besiroglu")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law fitted to noisy runs of one tokenizer."""
    rng, records = np.random.default_rng(0), []
    for c in 10.0 ** np.arange(17, 20):
        for n in LAW.optimum(c).n * np.geomspace(1 / 4, 4, 7):
            loss = float(LAW.loss(n, c / 6 / n) * np.exp(rng.normal(0, 0.003)))
            records.append(Record(f"{c}_{n}", {"nats": loss}, n, c / 6 / n, vocabulary="aa"))
    path = tmp_path_factory.mktemp("laws") / "law.json"
    path.write_text(
        json.dumps(
            fit_document(
                fit_runs(assemble_runs(records, counts="nonembed"), draws=50), with_draws=True
            )
        )
    )
    return path


def test_a_law_of_one_s_own(kept: Path) -> None:
    found = expected(COUNTS, 1e10, given=str(kept), tokenizer="aa")
    assert found.n == COUNTS.non_embedding
    assert found.metric == "val/loss"
    assert found.end.loss == pytest.approx(float(LAW.loss(found.n, 1e10)), rel=0.02)
    assert (
        found.interval == found.end.run95
    )  # with the scatter of single runs, not of the law alone
    low, high = found.interval or (0, 0)
    values = found.values(1e10)
    assert values == {"forecast/loss": found.end.loss, "forecast/low": low, "forecast/high": high}
    assert found.values(1e9)["forecast/loss"] > values["forecast/loss"]
    assert found.text == f"{found.end.loss:.3f} ({low:.3f}–{high:.3f}) by law.json"
    assert expected(COUNTS, 1e12, given=str(kept)).text.endswith("× its largest run")


def test_nats_of_other_tokens_are_refused(kept: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer aa, this one has bb: .* --unit bits_per_byte"):
        expected(COUNTS, 1e10, given=str(kept), tokenizer="bb")


def test_published_laws_know_where_they_hold() -> None:
    found = expected(COUNTS, 1e10)
    assert (found.name, found.outside) == ("besiroglu", ())
    assert found.end.loss == pytest.approx(float(LAW.loss(COUNTS.total, 1e10)))
    assert found.interval == found.end.ci95
    assert expected(COUNTS, 1e6).outside == (
        "D 250.0 × below the smallest of the law's runs (2.5e+08)",
    )
    assert expected(COUNTS, 1e10, given="kaplan").interval is None
    assert expected(COUNTS, 1e10, given="kaplan").n == COUNTS.non_embedding
    with pytest.raises(UserError, match="no published law: besiroglu, "):
        expected(COUNTS, 1e10, given="besiroglo")


def test_a_plan_by_a_law_of_one_s_own(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_law(str(kept))
    assert (found.counts, found.unit, found.citation) == (
        "nonembed",
        "nats per token",
        "fitted to 21 runs of one's own",
    )
    assert found.outside(1e13, 1e10)[0].startswith("N ")
    shape = str(Path(__file__).parents[2] / "configs" / "model" / "llama_124m.yaml")
    assert (
        main(["plan", "--config", shape, "--max_tokens", "2.5e9", "--law", str(kept), "--json"])
        == 0
    )
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert loss["here"]["loss"] == pytest.approx(float(LAW.loss(loss["n"], 2.5e9)), rel=0.02)
    assert loss["here"]["ci95"][0] < loss["here"]["loss"] < loss["here"]["ci95"][1]
    assert loss["optimum"]["n_ci95"][0] < loss["optimum"]["n"] < loss["optimum"]["n_ci95"][1]
    assert find_law("kaplan") is published("kaplan")
