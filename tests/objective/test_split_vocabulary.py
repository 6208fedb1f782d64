"""Objectives compute the same where the vocabulary is split over devices, as far as they claim."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lit_pretrain.objective
from lit_pretrain.objective import Objective

ROOT = Path(__file__).parents[2]


def test_every_objective_that_splits_the_vocabulary_computes_the_same() -> None:
    """Its value, and the gradients of the hidden states and of the head."""
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("split_heads.py"))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, list[float]] = json.loads(ran.stdout)
    claim = {
        cls.__name__
        for cls in vars(lit_pretrain.objective).values()
        if isinstance(cls, type) and issubclass(cls, Objective) and cls.splits_vocabulary
    }
    assert {name.split()[0] for name in found} == claim
    for name, errors in found.items():
        assert max(errors) < 1e-5, (name, errors)
