"""Published rules at 7 B parameters and 2 T tokens, against the figures that others computed
from them.
"""

import pytest

from lit_pretrain.scaling.planner import recommendations


def test_rules_at_7b_and_2t() -> None:
    found = {rule.name: rule for rule in recommendations(7e9, 2e12, 2.0)}
    for name, lr, batch in (
        ("DeepSeek", 4.3e-4, 9.2e6),
        ("Step Law", 1.0e-3, 6.1e6),
        ("OLMo ladder", 5.9e-4, 5.3e6),
    ):
        assert found[name].lr == pytest.approx(lr, rel=0.03)
        assert found[name].batch_tokens == pytest.approx(batch, rel=0.01)
    assert found["critical batch"].batch_tokens == pytest.approx(2e8 / 2.0 ** (1 / 0.21))
    assert all(rule.source and rule.formula for rule in found.values())
    assert len(recommendations(7e9, 2e12)) == 3
