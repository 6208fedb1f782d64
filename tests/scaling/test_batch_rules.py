"""Batch rules: published values, the choice and its reasons, and regrets on a made table."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.scaling.batch_rules import (
    MUON_TOKENS,
    NANOCHAT_TOKENS,
    choose,
    muon_recommendations,
    rate_at,
    recommendations,
)

ROOT = Path(__file__).parents[2]


def test_rules_at_7b_and_2t() -> None:
    found = {rule.name: rule for rule in recommendations(7e9, 2e12, 2.0)}
    for name, lr, batch in (
        ("DeepSeek", 4.3e-4, 9.2e6),
        ("Step Law", 1.0e-3, 6.1e6),
        ("OLMo ladder", 5.9e-4, 5.3e6),
        ("Power Lines", 1.0e-3, 3.2e6),
    ):
        assert found[name].lr == pytest.approx(lr, rel=0.03)
        assert found[name].batch_tokens == pytest.approx(batch, rel=0.01)
    assert found["critical batch"].batch_tokens == pytest.approx(2e8 / 2.0 ** (1 / 0.21))
    assert all(rule.source and rule.formula for rule in found.values())
    assert len(recommendations(7e9, 2e12)) == 4


def test_rules_for_adamw_are_ranked_by_regret() -> None:
    ranked = [rule.regret[0] for rule in recommendations(1e9, 1e10) if rule.regret is not None]
    assert ranked == sorted(ranked) == [0.0010, 0.0016, 0.0053, 0.0076]


def test_the_step_law_counts_no_embeddings() -> None:
    whole, body = (recommendations(1e8, 1e10, body=n)[0].lr for n in (None, 5e7))
    assert whole is not None
    assert body == pytest.approx(whole * 2**0.713)


def test_rules_for_muon_are_what_was_measured_where_it_was() -> None:
    (nearest, _), (other, _) = (muon_recommendations(d) for d in (MUON_TOKENS, NANOCHAT_TOKENS))
    assert (nearest.name, nearest.batch_tokens, nearest.lr) == ("muon.yaml", 4096, 0.04)
    assert (other.name, other.batch_tokens, other.lr) == ("nanochat", 2**19, 0.02)
    assert pytest.approx(1.16e9, rel=0.01) == NANOCHAT_TOKENS


@given(st.floats(1e5, 1e12), st.floats(1e4, 1e14), st.integers(128, 2**22))
def test_a_choice_is_a_batch_of_whole_rows_with_the_rate_that_goes_with_it(
    n: float, d: float, unit: int
) -> None:
    for kind, rules in (("AdamW", recommendations(n, d)), ("Muon", muon_recommendations(d))):
        found = choose(kind, rules, n=n, d=d, unit=unit)  # type: ignore[arg-type]  # its literals
        rows = found.batch_tokens // unit
        assert found.batch_tokens == rows * unit
        assert rows & (rows - 1) == 0
        assert found.rule == rules[0].name
        assert found.lr == pytest.approx(rate_at(rules[0], found.batch_tokens))
        if rows > 1:
            assert 0.7 < found.batch_tokens / rules[0].batch_tokens < 1.42


def test_a_choice_says_whether_it_extrapolates() -> None:
    within = choose("AdamW", recommendations(5e8, 1e10), n=5e8, d=1e10, unit=2048)
    assert "extrapolates" not in within.reason
    small = choose("AdamW", recommendations(1e7, 5e5), n=1e7, d=5e5, unit=512)
    assert "(N 6.0 × below its runs, D 4,000.0 × below its runs)" in small.reason
    assert "scaling critical-batch" in small.reason


def test_regrets_of_a_made_table(tmp_path: Path) -> None:
    """A loss with its best at the Step Law's pair: it alone has no regret there."""
    n, d = 4e8, 1e10
    best = recommendations(n, d)[0]
    assert best.lr is not None
    rows = ["N,D,lr,bs,smooth loss"]
    for i in range(-6, 7):
        for j in range(-6, 7):
            lr, batch = best.lr * 2 ** (i / 2), best.batch_tokens / 2048 * 2 ** (j / 2)
            rows.append(f"{n},{d},{lr},{batch},{2.5 + 0.01 * (i * i + j * j)}")
    rows.append(f"{n},{d},1,1,")  # a run without a loss
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "batch_rules.py"), str(tmp_path / "table.csv")],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[1] == "Step Law      batch -0.84, -1.41   rate -0.49, -1.51"
    lines = lines[5:]
    assert lines[0] == "169 runs in 1 settings"
    assert lines[1] == "Step Law      mean 0.00%  at most 0.00%"
    other = recommendations(n, d)[1]
    steps = round(2 * abs(math.log2(other.batch_tokens / best.batch_tokens)))
    regret = 0.01 * steps**2 / 2.5
    assert f"Power Lines   mean {regret:.2%}  at most {regret:.2%}" in lines
