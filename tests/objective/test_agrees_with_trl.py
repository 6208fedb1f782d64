"""Every objective has the loss and the gradients of TRL's own code: by numbers kept from it,
and by TRL itself where it is installed.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5
"""Relative, in fp32."""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "reference_objectives", ROOT / "scripts" / "reference_objectives.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reference = load()
CASES = reference.cases()
KEPT = json.loads(reference.FILE.read_text(encoding="utf-8"))


def test_every_case_is_kept() -> None:
    assert KEPT["versions"]["trl"] == reference.VERSION
    assert KEPT["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_kept_from_trl(name: str) -> None:
    kept = KEPT["cases"][name]
    loss, gradients = reference.run_ours(CASES[name])
    found = reference.sketch(gradients)
    assert loss == pytest.approx(kept["loss"], rel=TOLERANCE, abs=1e-7)
    assert found["norm"] == pytest.approx(kept["gradient"]["norm"], rel=TOLERANCE)
    # A product with a random direction has the size of the gradient's norm, and so has what it may
    # be off by.
    assert found["products"] == pytest.approx(
        kept["gradient"]["products"], abs=TOLERANCE * kept["gradient"]["norm"]
    )


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_trl_itself(name: str) -> None:
    trl = pytest.importorskip(
        "trl", reason="trl is not installed; the numbers kept from it are tested in its place"
    )
    if trl.__version__ != reference.VERSION:
        pytest.skip(f"trl {reference.VERSION} is compared with, found {trl.__version__}")
    expected, theirs = reference.run_trl(CASES[name])
    loss, gradients = reference.run_ours(CASES[name])
    assert loss == pytest.approx(expected, rel=TOLERANCE, abs=1e-7)
    assert gradients.keys() == theirs.keys()
    norm = reference.sketch(theirs)["norm"]
    error = (
        torch.stack([(gradients[key] - theirs[key]).double().norm() for key in theirs])
        .norm()
        .item()
    )
    assert error <= TOLERANCE * norm


def test_the_cases_can_tell_objectives_apart() -> None:
    """No two cases of a kind have the same gradients, but for those that must: bnpo is dapo
    where there is one micro-batch.
    """
    seen: dict[tuple[float, ...], str] = {}
    for name, kept in KEPT["cases"].items():
        key = tuple(np.round(np.array(kept["gradient"]["products"]) / kept["gradient"]["norm"], 4))
        other = seen.setdefault(key, name)
        # dr_grpo differs from dapo by a constant factor only where all is one micro-batch.
        assert other == name or {other.split("_")[0], name.split("_")[0]} <= {
            "dapo",
            "bnpo",
            "dr",
        }, (other, name)
