"""Trainer: how many devices a config means, and what it has no say in."""

from typing import Any

import pytest
from jsonargparse import Namespace

from lit_pretrain.cli.trainer import OWNED, check_owned, world_of
from lit_pretrain.errors import UserError


@pytest.mark.parametrize(("devices", "world"), [(1, 2), (3, 6), ("4", 8), ([0, 2, 5], 6), ("auto", 2), (-1, 2)])
def test_devices_are_counted_over_all_machines(devices: Any, world: int) -> None:
    assert world_of(Namespace(devices=devices, num_nodes=2, accelerator="cpu")) == world


def test_what_is_ours_to_decide_is_refused_with_what_to_set_instead() -> None:
    defaults = {name: default for name, (default, _) in OWNED.items()}
    check_owned(Namespace(**defaults))
    for name, (_, instead) in OWNED.items():
        with pytest.raises(UserError, match=f"trainer.{name}=5 is not for you to set") as caught:
            check_owned(Namespace(**(defaults | {name: 5})))
        assert instead in str(caught.value)
