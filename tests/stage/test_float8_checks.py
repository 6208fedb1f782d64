"""Where products in fp8 cannot be computed, or save nothing, they are refused by name."""

import importlib.util
from typing import Any

import pytest
import torch

import lit_pretrain.objective
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, faster_in_float8
from lit_pretrain.objective import DPO, GRPO, KTO, CrossEntropy, Objective
from lit_pretrain.stage.checks import check_float8
from lit_pretrain.stage.origin import why_no_float8

SMALL = ModelConfig(vocab_size=64, n_layer=1, width=64, n_head=2, ffn_width=128)
LARGE = ModelConfig(vocab_size=64, n_layer=1, width=4096, n_head=32)
OBJECTIVES = [
    found
    for found in vars(lit_pretrain.objective).values()
    if isinstance(found, type) and issubclass(found, Objective) and found is not Objective
]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def check(**changes: Any) -> None:
    given: dict[str, Any] = {
        "recipe": "tensorwise", "net": SMALL, "objective": CrossEntropy(), "adapter": False,
        "tp": 1, "device": torch.device("cpu"), "why_not": None, "uncompiled": "off",
    }  # fmt: skip
    check_float8(**(given | changes))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'lit_pretrain\[fp8\]'"):
        check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": True}, r"beside model\.adapter these are frozen"),
        ({"tp": 2}, r"parallel\.tp=2 splits them"),
        ({"why_not": "not tried on mps"}, r"model\.float8=tensorwise: not tried on mps"),
        ({"device": torch.device("cuda")}, r"without the compiler \(off\).*model\.compile=on"),
        (
            {"device": torch.device("cuda"), "uncompiled": None},
            r"even the largest matrices of the blocks, 64 × 128, are too small",
        ),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(**changes)


def test_a_large_network_on_a_gpu() -> None:
    check(net=LARGE, device=torch.device("cuda"), uncompiled=None)


@pytest.mark.parametrize("cls", OBJECTIVES)
def test_objectives(cls: type[Objective]) -> None:
    if cls().needs & {"ref_logp", "rollout"}:
        with pytest.raises(UserError, match=rf"model\.objective {cls.__name__} compares"):
            check(objective=cls())
    else:
        check(objective=cls())


def test_the_objectives_that_are_refused() -> None:
    refused = [cls for cls in OBJECTIVES if cls().needs & {"ref_logp", "rollout"}]
    assert {DPO, GRPO, KTO} <= set(refused)
    assert CrossEntropy not in refused


@pytest.mark.parametrize("capability", [(7, 0), (8, 0), (8, 6)])
def test_older_gpus(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    why = why_no_float8(torch.device("cuda"))
    assert why is not None
    assert f"Old GPU has compute capability {capability[0]}.{capability[1]}" in why
    for newer in ((8, 9), (9, 0), (10, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, new=newer: new)
        assert why_no_float8(torch.device("cuda")) is None
    assert why_no_float8(torch.device("mps")) == "not tried on mps"
    assert why_no_float8(torch.device("cpu")) is None


def test_sizes_from_which_it_pays() -> None:
    """As torchao's `auto_filter_small_kn`, which filters out what is not faster."""
    assert [faster_in_float8("tensorwise", k, n) for k, n in ((4096, 1024), (4096, 1040))] == [
        False, True,
    ]  # fmt: skip
    rowwise = ((2048, 4096), (2064, 4096), (2048, 4112), (1024, 8192), (8192, 2048))
    assert [faster_in_float8("rowwise", k, n) for k, n in rowwise] == [
        False, True, True, False, False,
    ]  # fmt: skip
