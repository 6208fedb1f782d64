"""Run length: one unit of four, rounded up to whole steps."""

from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import Namespace

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.cli.train.resolve import UNITS, resolve_length, training_flops
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig

NET = ModelConfig(n_layer=2, width=16, n_head=2, vocab_size=64, max_seq_len=32)


def config(**given: Any) -> Namespace:
    return Namespace(**(dict.fromkeys(UNITS) | given), model=Namespace(net=NET, adapter=None))


DATA: Any = SimpleNamespace(
    batch_tokens=BatchSizes.one(1024),
    seq_len=32,
    default_steps=None,
    default_epochs=None,
    steps_of=lambda epochs: round(100 * epochs),
)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 1.5}, 150),
        ({"max_tokens": 10 * 1024}, 10),
        ({"max_tokens": 10 * 1024 + 1}, 11),
        ({"max_flops": 2.5 * 1024 * training_flops(config(), seq_len=32)}, 3),
    ],
)
def test_every_unit_becomes_steps(given: dict[str, Any], steps: int) -> None:
    resolved = config(**given)
    resolve_length(resolved, DATA)
    assert {name: resolved[name] for name in UNITS} == dict.fromkeys(UNITS) | {"max_steps": steps}


def test_text_has_a_usual_length() -> None:
    resolved = config()
    resolve_length(resolved, SimpleNamespace(**vars(DATA) | {"default_steps": 100}))
    assert {name: resolved[name] for name in UNITS} == dict.fromkeys(UNITS) | {"max_steps": 100}


def test_rows_have_an_epoch() -> None:
    resolved = config()
    resolve_length(resolved, SimpleNamespace(**vars(DATA) | {"default_epochs": 1.0}))
    assert {name: resolved[name] for name in UNITS} == dict.fromkeys(UNITS) | {"max_steps": 100}


@pytest.mark.parametrize(
    "given",
    [{}, {"max_steps": 1, "max_tokens": 1e6}, {"max_steps": 0}, {"max_flops": float("inf")}],
)
def test_no_length_and_several_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match="exactly one of max_steps" if len(given) != 1 else "positive and finite"
    ):
        resolve_length(config(**given), DATA)
