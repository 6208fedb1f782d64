"""Recommendations: batch and learning rate by published rules. They disagree by factors: shown as a range, each rule by its name."""

from __future__ import annotations

from typing import NamedTuple, Optional


class Rule(NamedTuple):
    """What one rule says."""

    name: str
    batch_tokens: float
    """Tokens of an optimizer step."""
    lr: Optional[float]
    """Peak learning rate of AdamW; None where the rule has none."""
    formula: str
    source: str


def recommendations(n: float, d: float, loss: Optional[float] = None) -> list[Rule]:
    """All rules for one run.

    Args:
        n: Parameters.
        d: Training tokens.
        loss: Predicted final loss in nats per token, for the critical batch.
    """
    c = 6.0 * n * d
    scale = n / 108e6
    rules = [
        Rule(
            "DeepSeek", 0.2920 * c**0.3271, 0.3118 * c**-0.125, "B = 0.2920 C^0.3271, lr = 0.3118 C^-0.125",
            "DeepSeek-AI 2024, DeepSeek LLM, eq. 1",
        ),
        Rule(
            "Step Law", 0.58 * d**0.571, 1.79 * n**-0.713 * d**0.307, "B = 0.58 D^0.571, lr = 1.79 N^-0.713 D^0.307",
            "Li et al. 2025, Predictable Scale part I; fitted up to 1 B parameters and 100 B tokens",
        ),
        Rule(
            "OLMo ladder", 2048 * 160 * scale ** (2 / 3), 0.0047 * scale ** (-1 / 3) / 2,
            "B = 2048 · 160 (N / 108e6)^(2/3), lr = 0.0047 (N / 108e6)^(-1/3) / 2", "OLMo's model ladder; after Porian et al. 2024",
        ),
    ]  # fmt: skip
    if loss is not None:
        rules.append(
            Rule(
                "critical batch",
                2e8 / loss ** (1 / 0.21),
                None,
                "B = 2e8 / L^(1/0.21)",
                "Kaplan et al. 2020, eq. 1.4; above it larger steps pay little",
            )
        )
    return rules
