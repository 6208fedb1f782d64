"""Published laws: what others fitted, each with its source, its units and where it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Optional

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import Law


@dataclass(frozen=True)
class PublishedLaw(Law):
    """A law with what must be known before it is used."""

    name: str
    citation: str
    counts: Literal["total", "nonembed"]
    """Which parameters N counts."""
    parameters: tuple[float, float]
    """Smallest and largest N among the runs that it was fitted to."""
    tokens: tuple[float, float]
    """Fewest and most training tokens among them."""
    unit: str
    """Unit of the loss. Nats per token depend on the tokenizer and the text: compare differences and optima rather than values."""
    note: str
    log_covariance: Optional[tuple[tuple[float, ...], ...]] = None
    """Covariance of the coordinates (ln E, ln A, ln B, alpha, beta) over bootstraps of its runs; None where nobody has the runs."""


_CHINCHILLA_RANGES = ((44e6, 16.2e9), (2e8, 5e11))
_LAWS = (
    PublishedLaw(
        name="besiroglu",
        form="chinchilla",
        params={"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347310, "beta": 0.367172},
        citation="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt; Huber(1e-3) on 240 runs, optimum recomputed here",
        counts="total",
        parameters=_CHINCHILLA_RANGES[0],
        tokens=_CHINCHILLA_RANGES[1],
        unit="nats per token (MassiveText, 32k SentencePiece)",
        note="The default. Its runs were read off Hoffmann's figure. 18 tokens per parameter at 5.76e23 FLOPs, as in approaches 1 and 2.",
        log_covariance=(  # 1,000 bootstraps of the 240 runs, seed 0
            (2.06217840e-04, 2.04377623e-03, 4.00694136e-03, 1.20535427e-04, 1.95379497e-04),
            (2.04377623e-03, 6.02650817e-02, -2.12460046e-02, 3.59436502e-03, -1.07159911e-03),
            (4.00694136e-03, -2.12460046e-02, 1.80847667e-01, -1.33614412e-03, 8.84706635e-03),
            (1.20535427e-04, 3.59436502e-03, -1.33614412e-03, 2.14671086e-04, -6.74261831e-05),
            (1.95379497e-04, -1.07159911e-03, 8.84706635e-03, -6.74261831e-05, 4.33075199e-04),
        ),
    ),
    PublishedLaw(
        name="besiroglu_lad",
        form="chinchilla",
        params={"E": 1.816864, "A": 482.006, "B": 2085.434, "alpha": 0.347813, "beta": 0.365854},
        citation="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt; the tuple that their notebook prints",
        counts="total",
        parameters=_CHINCHILLA_RANGES[0],
        tokens=_CHINCHILLA_RANGES[1],
        unit="nats per token (MassiveText, 32k SentencePiece)",
        note="Their scale parameter shrinks the Huber threshold to about 5e-9: least absolute deviations, not Huber(1e-3).",
    ),
    PublishedLaw(
        name="hoffmann",
        form="chinchilla",
        params={
            "E": math.exp(0.5267228),
            "A": math.exp(6.0073404),
            "B": math.exp(6.0179186),
            "alpha": 0.33917084,
            "beta": 0.2849083,
        },
        citation="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, eq. 10 before rounding",
        counts="total",
        parameters=_CHINCHILLA_RANGES[0],
        tokens=_CHINCHILLA_RANGES[1],
        unit="nats per token (MassiveText, 32k SentencePiece)",
        note="The optimiser had stopped early: 59 tokens per parameter at 5.76e23 FLOPs (93 with rounded exponents) for their own 20.",
    ),
    PublishedLaw(
        name="kaplan",
        form="kaplan",
        params={"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
        citation="Kaplan et al. 2020, Scaling Laws for Neural Language Models, eq. 1.1, 1.2 and 1.5",
        counts="nonembed",
        parameters=(768.0, 1.5e9),
        tokens=(2.2e7, 2.3e10),
        unit="nats per token (WebText2, 50k BPE)",
        note="For early-stopped training on D tokens. Their N* ~ C^0.73 comes from loss against steps, not from this form (a = 0.56), and "
        "from a learning rate and head FLOPs that Porian et al. 2024 corrected to about 0.50.",
    ),
    PublishedLaw(
        name="muennighoff",
        form="data",
        params={
            "E": math.exp(0.6254804),
            "A": math.exp(6.255414),
            "B": math.exp(7.3049974),
            "alpha": 0.3526596,
            "beta": 0.3526596,
            "R_D": 15.387756,
            "R_N": 5.309743,
        },
        citation="Muennighoff et al. 2023, Scaling Data-Constrained Language Models, eq. 6, fitted on C4",
        counts="total",
        parameters=(7e6, 9e9),
        tokens=(1e8, 9e11),
        unit="nats per token (C4, GPT-2 BPE)",
        note="For repeated data: up to about 4 epochs are nearly as good as new text. The published constants are a local optimum of their "
        "objective; the law is evaluated here as published.",
    ),
)
DEFAULT = "besiroglu"


def names() -> tuple[str, ...]:
    """All names, the default first."""
    return tuple(law.name for law in _LAWS)


def law(name: str = DEFAULT) -> PublishedLaw:
    """A published law by its name."""
    for found in _LAWS:
        if found.name == name:
            return found
    raise UserError(f"there is no published law {name!r}; there is: {', '.join(names())}")
