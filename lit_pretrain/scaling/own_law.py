"""Own law: a fit to runs of one's own in the place of a published law."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from lit_pretrain.scaling.law import coordinates
from lit_pretrain.scaling.published import PublishedLaw, law, names


def find_law(name: str) -> PublishedLaw:
    """A published law by its name, or the fit in a file that `scaling fit --out` has written.

    Raises:
        UserError: There is no such law and no such file, or the file holds no fit.
    """
    if name in names() or not Path(name).is_file():
        return law(name)
    from lit_pretrain.scaling.fitted import read_document  # and with it scipy, which a published law does not need
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
