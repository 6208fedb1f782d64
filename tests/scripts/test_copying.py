"""copying.py against a network that copies by construction, and one that cannot."""

import math
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

V = 512


@pytest.mark.parametrize("copies", [True, False])
def test_what_is_repeated_is_known_the_second_time_only(
    copies: bool, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(ids_BT: Tensor) -> Tensor:
        half = ids_BT.shape[1] // 2
        logits_BTV = torch.zeros(*ids_BT.shape, V)
        if copies:
            logits_BTV[:, half:] = 50 * F.one_hot(ids_BT[:, 1 : half + 1], V)
        return logits_BTV

    loaded = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=V), logits=logits)
    monkeypatch.setattr(script.lit_pretrain, "load", lambda run: loaded)
    first, again = script.copying_losses(Path("run"), rows=4, length=16, seed=0)
    assert first == pytest.approx(math.log(V), rel=1e-5)
    assert again == pytest.approx(0.0 if copies else math.log(V), abs=1e-4)
