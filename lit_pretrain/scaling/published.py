"""Published scaling laws, each with its source, its units and the range where it holds.

A fit to runs of one's own takes the place of a published law in `find_law`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from lit_pretrain.errors import UserError
from lit_pretrain.scaling.law import Law, coordinates


@dataclass(frozen=True)
class PublishedLaw(Law):
    """A law with what one must know before using it."""

    name: str
    citation: str
    counts: Literal["total", "matmul", "nonembed"]
    """Which parameters N counts."""
    parameters: tuple[float, float]
    """Smallest and largest N among the runs that it was fitted to."""
    tokens: tuple[float, float]
    """Fewest and most training tokens among these runs."""
    largest_compute: float
    """6 N D of the largest run; where that is not published, of the largest N and D together."""
    unit: str
    """Unit of the loss.

    Nats per token depend on the tokenizer and the text: compare differences and optima rather than
    values.
    """
    note: str
    log_covariance: tuple[tuple[float, ...], ...] | None = None
    """Covariance of (ln E, ln A, ln B, alpha, beta) over bootstraps, if its runs are public.

    Normal draws with it give the interval of N* and of extrapolated losses; among the runs that
    interval is up to twice too wide.
    """

    def outside(self, n: float, d: float) -> list[str]:
        """Say how a run of N parameters and D tokens lies outside the law's runs."""
        said = []
        for name, value, (low, high) in (("N", n, self.parameters), ("D", d, self.tokens)):
            if value > high:
                said.append(
                    f"{name} {value / high:,.1f} × above the largest of the law's runs ({high:.3g})"
                )
            elif value < low:
                said.append(
                    f"{name} {low / value:,.1f} × below the smallest of the law's runs ({low:.3g})"
                )
        return said


# The runs that Besiroglu et al. read off Hoffmann's figure, from their table.
_READ_OFF_PARAMETERS, _READ_OFF_TOKENS, _READ_OFF_COMPUTE = (
    (5.7e7, 1.62e10),
    (2.5e8, 3.2e11),
    1.3e22,
)
_LAWS = (
    PublishedLaw(
        name="besiroglu",
        form="chinchilla",
        params={"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347310, "beta": 0.367172},
        citation=(
            "Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt; Huber(1e-3) on 240"
            " runs, optimum recomputed here"
        ),
        counts="total",
        parameters=_READ_OFF_PARAMETERS,
        tokens=_READ_OFF_TOKENS,
        largest_compute=_READ_OFF_COMPUTE,
        unit="nats per token (MassiveText, 32k SentencePiece)",
        note=(
            "The default. Its runs were read off Hoffmann's figure. 18 tokens per parameter at"
            " 5.76e23 FLOPs, as in approaches 1 and 2."
        ),
        log_covariance=(
            (0.000203387496, 0.002024298214, 0.003933765867, 0.000119629893, 0.000191507566),
            (0.002024298214, 0.062436979828, -0.024310934452, 0.003725070601, -0.001227558115),
            (0.003933765867, -0.024310934452, 0.181660819116, -0.001514429625, 0.008886945769),
            (0.000119629893, 0.003725070601, -0.001514429625, 0.000222543745, -7.6505313e-05),
            (0.000191507566, -0.001227558115, 0.008886945769, -7.6505313e-05, 0.000435029471),
        ),
    ),
    PublishedLaw(
        name="besiroglu_lad",
        form="chinchilla",
        params={"E": 1.816864, "A": 482.006, "B": 2085.434, "alpha": 0.347813, "beta": 0.365854},
        citation=(
            "Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt; the tuple that their"
            " notebook prints"
        ),
        counts="total",
        parameters=_READ_OFF_PARAMETERS,
        tokens=_READ_OFF_TOKENS,
        largest_compute=_READ_OFF_COMPUTE,
        unit="nats per token (MassiveText, 32k SentencePiece)",
        note=(
            "Their scale parameter shrinks the Huber threshold to about 5e-9: least absolute"
            " deviations, not Huber(1e-3)."
        ),
        log_covariance=(
            (0.000218964357, 0.002294580529, 0.00396224146, 0.000136115995, 0.000192712589),
            (0.002294580529, 0.070525619246, -0.027726306828, 0.00421161123, -0.00140112569),
            (0.00396224146, -0.027726306828, 0.187373542159, -0.001717541226, 0.009166224582),
            (0.000136115995, 0.00421161123, -0.001717541226, 0.000251853607, -8.6837264e-05),
            (0.000192712589, -0.00140112569, 0.009166224582, -8.6837264e-05, 0.000448704881),
        ),
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
        citation=(
            "Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, eq. 10 before"
            " rounding"
        ),
        counts="total",
        parameters=(7e7, 1.6e10),
        tokens=(5e9, 5e11),
        largest_compute=_READ_OFF_COMPUTE,
        unit="nats per token (MassiveText, 32k SentencePiece)",
        note=(
            "The optimiser had stopped early: 59 tokens per parameter at 5.76e23 FLOPs (93 with"
            " rounded exponents) for their own 20."
        ),
    ),
    PublishedLaw(
        name="kaplan",
        form="kaplan",
        params={"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
        citation=(
            "Kaplan et al. 2020, Scaling Laws for Neural Language Models, eq. 1.1, 1.2 and 1.5"
        ),
        counts="nonembed",
        parameters=(768.0, 1.5e9),
        tokens=(2.2e7, 2.3e10),
        largest_compute=2.1e20,
        unit="nats per token (WebText2, 50k BPE)",
        note=(
            "For early-stopped training on D tokens. Their N* ~ C^0.73 comes from loss against"
            " steps, not from this form (a = 0.56), and from a learning rate and head FLOPs that"
            " Porian et al. 2024 corrected to about 0.50."
        ),
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
        citation=(
            "Muennighoff et al. 2023, Scaling Data-Constrained Language Models, eq. 6, fitted on C4"
        ),
        counts="total",
        parameters=(7e6, 9e9),
        tokens=(1e8, 9e11),
        largest_compute=9.3e21,
        unit="nats per token (C4, GPT-2 BPE)",
        note=(
            "For repeated data: up to about 4 epochs are nearly as good as new text. The published"
            " constants are a local optimum of their objective; the law is evaluated here as"
            " published."
        ),
    ),
)
DEFAULT = "besiroglu"


def published_names() -> tuple[str, ...]:
    """List the names of all published laws, the default first."""
    return tuple(law.name for law in _LAWS)


def published_law(name: str = DEFAULT) -> PublishedLaw:
    """Find a published law by its name."""
    for found in _LAWS:
        if found.name == name:
            return found
    raise UserError(f"there is no published law {name!r}; there is: {', '.join(published_names())}")


def find_law(name: str) -> PublishedLaw:
    """Find a published law by its name, or read a fit that `scaling fit --out` has written.

    Raises:
        UserError: There is no such law and no such file, or the file holds no fit.
    """
    if name in published_names() or not Path(name).is_file():
        return published_law(name)
    # This imports scipy, which a published law does not need.
    from lit_pretrain.scaling.fitted import read_document
    from lit_pretrain.scaling.runs import UNIT_TEXT, Unit

    kept = read_document(Path(name))
    covariance = None
    if kept.draws is not None:
        spread = np.cov(np.array([coordinates(drawn) for drawn in kept.draws.laws]).T)
        covariance = tuple(tuple(float(x) for x in row) for row in spread)
    return PublishedLaw(
        name=name,
        form=kept.law.form,
        params=kept.law.params,
        citation=f"fitted to {len(kept.residuals)} runs of one's own",
        counts=kept.counts,
        parameters=kept.parameters,
        tokens=kept.tokens,
        largest_compute=kept.largest_compute,
        unit=UNIT_TEXT[cast(Unit, kept.unit)],
        note="",
        log_covariance=covariance,
    )
