"""Every objective with every adapter: a few steps change what is to be trained, and nothing
else.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.adapter import LoRA, is_adapter_tensor
from lit_pretrain.checkpoint.weights import load_weights
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import (
    CPO,
    DPO,
    GRPO,
    KTO,
    ORPO,
    CrossEntropy,
    Distillation,
    Objective,
    ProcessRewardModel,
    RewardModel,
    SimPO,
)
from lit_pretrain.reward import Reward
from lit_pretrain.rollout import Rollout
from tests.stage.test_post_training import (
    NET,
    Made,
    Recorder,
    T,
    V,
    learned,
    pairs,
    run,
    samples,
    save_llama,
    stepwise,
    verdicts,
)
from tests.stage.test_rollout import Prompts
from tests.stage.test_rollout import run as run_prompts

OBJECTIVES: dict[str, tuple[Callable[[], Objective], Callable[[int], Any]]] = {
    "CrossEntropy": (CrossEntropy, learned),
    "Distillation": (Distillation, learned),
    "DPO": (lambda: DPO(beta=0.3, sft_weight=0.1), pairs),
    "IPO": (lambda: DPO(beta=0.3, variant="ipo"), pairs),
    "SimPO": (SimPO, pairs),
    "CPO": (CPO, pairs),
    "ORPO": (ORPO, pairs),
    "KTO": (lambda: KTO(beta=0.3), verdicts),
    "RewardModel": (RewardModel, pairs),
    "ProcessRewardModel": (ProcessRewardModel, stepwise),
    "GRPO": (lambda: GRPO(beta=0.1), samples),
}
SCORED = {"RewardModel", "ProcessRewardModel"}
ADAPTERS: dict[str, Mapping[str, Any]] = {
    "full": {},
    "freeze": {"freeze": ("token_embedding", r"blocks\.0\.")},
    "lora": {"adapter": LoRA(rank=4, alpha=8.0, dropout=0.1)},
    "rslora": {
        "adapter": LoRA(rank=4, alpha=8.0, rslora=True, targets=(r"attention\.(q|v)_proj$",))
    },
    "dora": {"adapter": LoRA(rank=4, alpha=8.0, dora=True)},
    "pissa": {"adapter": LoRA(rank=4, alpha=4.0, init="pissa")},
    "nf4": {"adapter": LoRA(rank=4, alpha=8.0, quantize="nf4")},
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    folder = tmp_path_factory.mktemp("hf") / "parent"
    save_llama(transformers, folder, seed=0)
    save_llama(transformers, folder.parent / "teacher", seed=5)
    return folder


def even(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    ids = [int(word) for word in completion.split()]
    return sum(i % 2 == 0 for i in ids) / (1 + len(ids))


def changed(
    name: str, parent: Path, data: Any, make: Callable[[], Objective], options: Mapping[str, Any]
) -> dict[str, bool]:
    """What three steps have changed of the network as it was before the first, by the names of
    its tensors.
    """
    needed = {"teacher": str(parent.parent / "teacher")} if name == "Distillation" else {}
    found = run(
        make(),
        data,
        steps=3,
        init_from=str(parent),
        optimizer=Recorder(0.05),
        **{**options, **needed},
    )
    sums = found.stage.sums
    assert math.isfinite((sums["nats_S"].sum() / sums["terms_S"].sum()).item())
    assert sums["grad_norm"].item() > 0
    start = Transformer(NET)
    load_weights(start, str(parent))
    base = start.state_dict()
    state = found.stage.net.state_dict()
    trained = {key for gradients in found.gradients for key in gradients}
    assert trained == {
        key for gradients in found.gradients for key, g in gradients.items() if g.abs().sum() > 0
    }
    for key in trained:
        assert key.startswith("score.") or is_adapter_tensor(key) == ("adapter" in options), key
    return {
        key: not torch.equal(value, base[key]) for key, value in state.items() if key in base
    } | {key: True for key in trained if key not in base}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_trains_what_is_to_be_trained_and_nothing_else(
    name: str, adapter: str, parent: Path
) -> None:
    make, batch = OBJECTIVES[name]
    options = ADAPTERS[adapter]
    moved = changed(name, parent, Made([[batch(step)] for step in range(3)]), make, options)
    assert moved.get("score.weight", False) == (name in SCORED)
    network = {
        key: value
        for key, value in moved.items()
        if not key.startswith("score.") and not is_adapter_tensor(key)
    }
    if "adapter" in options:
        assert not any(network.values())
        assert any(is_adapter_tensor(key) for key in moved)
        return
    still = {key for key, value in network.items() if not value}
    frozen = (
        {key for key in network if key.startswith(("token_embedding", "blocks.0."))}
        if adapter == "freeze"
        else set()
    )
    assert still == frozen | (
        {"head.weight"} if name in SCORED else set()
    )  # nothing reads the head of a reward model


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_rollout_is_sampled_with_every_adapter(adapter: str, tmp_path: Path) -> None:
    """The check of the first step compares the policy that samples with the one that learns."""
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    save_llama(transformers, tmp_path / "parent", seed=0)
    data = Prompts()
    data.contract = data.contract._replace(vocab_size=V, token_bytes=tuple(range(V)), seq_len=T)
    rollout = Rollout(rewards={"even": Reward(path=f"{__name__}.even")}, max_completion_tokens=8)
    found = run_prompts(
        data,
        steps=3,
        objective=GRPO(beta=0.05),
        rollout=rollout,
        net=NET,
        init_from=str(tmp_path / "parent"),
        **ADAPTERS[adapter],
    )
    assert found.stage.sums["grad_norm"].item() > 0
