"""The script that a test is of, as a module."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import `scripts/NAME.py` for `test_NAME.py`, with the scripts that it imports."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(request.path.stem.removeprefix("test_"))


NANOCHAT = """
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

asked = {}


@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    window_pattern: str


class Shared:
    def forward(self, idx, targets=None, loss_reduction="mean"):
        logits = F.embedding(idx, self.wte) @ self.head.T
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=loss_reduction
        )

    def num_scaling_params(self):
        layers = self.config.n_layer * 12 * self.config.n_embd**2
        return {"transformer_matrices": layers, "lm_head": self.head.numel()}

    def setup_optimizer(self, **given):
        asked.update(given)
        groups = [
            {"kind": "adamw", "params": [self.wte], "lr": given["embedding_lr"]},
            {"kind": "muon", "params": [self.head], "lr": given["matrix_lr"], "momentum": 0.95,
             "weight_decay": given["weight_decay"]},
        ]
        optimizer = torch.optim.AdamW(groups)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer


class Functions(Shared):
    def __init__(self, config, device):
        self.config = config
        shape = (config.vocab_size, config.n_embd)
        self.wte = torch.randn(shape, device=device).requires_grad_()
        self.head = torch.zeros(shape, device=device).requires_grad_()

    def parameters(self):
        return [self.wte, self.head]


class Module(Shared, nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        self.head = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))

    def init_weights(self):
        nn.init.normal_(self.wte)
        nn.init.zeros_(self.head)


GPT = KIND
"""


@pytest.fixture
def nanochat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Write a stand-in for a checkout of nanochat: the interface of its newest network (Functions)
    or of the one before (Module), around a bigram table.
    """

    def write(kind: str) -> Path:
        package = tmp_path / "checkout" / "nanochat"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "gpt.py").write_text(NANOCHAT.replace("KIND", kind))
        return package.parent

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("NANOCHAT_DTYPE", "")
    yield write
    for name in ("nanochat", "nanochat.gpt"):
        sys.modules.pop(name, None)
