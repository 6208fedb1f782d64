"""VLLM: weights and requests as vLLM takes them. The module here is a pretended one, on top of
transformers; where the real one is installed (on a CPU: vllm-cpu), the slow tests run it.
"""

import dataclasses
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_pretrain.adapter import LoRA
from lit_pretrain.batch import PolicyBatch
from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import CompletionSampling
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.objective import GRPO
from lit_pretrain.reward import Reward
from lit_pretrain.rollout import VLLM, Rollout
from tests.stage.test_post_training import NET, T, V, save_llama
from tests.stage.test_rollout import STOP, Prompts, Seen, run

transformers = pytest.importorskip("transformers", reason="needs the dev extra")


class PretendedModel:
    """What vLLM's model is asked for, by transformers."""

    def __init__(self, folder: str) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.loads = 0

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.model.load_state_dict(
            {name: tensor.clone() for name, tensor in weights}
        )  # strict: names and shapes
        self.loads += 1


class PretendedLLM:
    """As much of vllm.LLM as the engine uses."""

    made: list["PretendedLLM"] = []  # noqa: RUF012  (shared by all)

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.pretended = PretendedModel(settings["model"])
        self.resets = 0
        PretendedLLM.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        self.pretended.load_weights(kwargs["weights_iterator"])
        return [None]

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    @torch.no_grad()
    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[Any], use_tqdm: bool
    ) -> list[Any]:
        assert not use_tqdm
        return [
            self._one(prompt["prompt_token_ids"], how)
            for prompt, how in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, ids: list[int], how: Any) -> Any:
        generator, drawn, known = torch.Generator().manual_seed(how.seed), [], []
        while len(drawn) < how.max_tokens and not (drawn and drawn[-1] in how.stop_token_ids):
            logits = (
                self.pretended.model(torch.tensor([ids + drawn])).logits[0, -1] / how.temperature
            )
            logp = logits.log_softmax(-1)
            token = int(torch.multinomial(logp.exp(), 1, generator=generator))
            likeliest = int(
                logp.argmax()
            )  # the likeliest tokens are listed beside the one that was drawn
            known.append(
                {i: types.SimpleNamespace(logprob=logp[i].item()) for i in {likeliest, token}}
            )
            drawn.append(token)
        return types.SimpleNamespace(
            outputs=[types.SimpleNamespace(token_ids=tuple(drawn), logprobs=known)]
        )


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("vllm")
    module.LLM = PretendedLLM
    module.SamplingParams = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(PretendedLLM, "made", [])


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    save_llama(transformers, tmp_path / "parent", seed=0)
    return tmp_path / "parent"


def prompts() -> Prompts:
    data = Prompts()
    data.contract = data.contract._replace(vocab_size=V, token_bytes=tuple(range(V)), seq_len=T)
    return data


def three_steps(parent: Path, net: ModelConfig, adapter: LoRA | None) -> list[list[PolicyBatch]]:
    """Trains three steps with VLLM; what it returns after them must be what the network says, to
    the rounding of another implementation.

    The check of the first step has compared the same before any update.
    """
    seen = Seen()
    engine = VLLM(str(parent), options={"dtype": "float32", "enforce_eager": True})
    rollout = Rollout(
        rewards={"even": Reward(path="tests.stage.test_rollout.even")},
        max_completion_tokens=8,
        temperature=0.9,
        engine=engine,
    )
    found = run(
        prompts(),
        steps=3,
        objective=GRPO(),
        rollout=rollout,
        callbacks=[seen],
        net=net,
        init_from=str(parent),
        adapter=adapter,
    )
    from lit_pretrain.stage.reference import label_logp

    with torch.no_grad():
        engine.take(found.stage.net)
        again = engine.generate(
            [[5, 6, 7]], sampling=CompletionSampling(6, frozenset({STOP}), 0.9), seeds=[3]
        )
    ids = [5, 6, 7, *again.tokens_BN[0][again.mask_BN[0]].tolist()]
    labels = torch.tensor([[-100, -100, *ids[3:], -100]])
    found.stage.net.eval()
    own = label_logp(
        found.stage.net,
        torch.tensor([ids]),
        torch.zeros(1, len(ids), dtype=torch.int32),
        labels,
        0.9,
    )
    torch.testing.assert_close(own[0, 2:-1], again.logp_BN[0][again.mask_BN[0]], atol=1e-4, rtol=0)
    return seen.steps


ADAPTERS = pytest.mark.parametrize(
    "adapter", [None, LoRA(rank=4, alpha=32.0)], ids=["full", "lora"]
)


@pytest.mark.usefixtures("pretended")
@ADAPTERS
def test_it_samples_from_the_weights_of_each_step(parent: Path, adapter: LoRA | None) -> None:
    steps = three_steps(parent, NET, adapter)
    (llm,) = PretendedLLM.made
    assert llm.settings["model"] == str(parent)
    assert llm.settings["logprobs_mode"] == "processed_logprobs"
    assert llm.settings["dtype"] == "float32"
    assert (
        "distributed_executor_backend" not in llm.settings
    )  # without torchrun there is nobody to launch it
    assert llm.pretended.loads == llm.resets == 4
    for step in steps:  # never on-policy by definition: another engine sampled
        assert all(batch.old_logp_BT is not None for batch in step)
    assert steps[2][0].labels_BT.shape == steps[2][0].tokens_BT.shape


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@ADAPTERS
def test_the_real_one_does(
    tmp_path: Path, adapter: LoRA | None, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="needs the vllm extra")
    monkeypatch.setenv(
        "VLLM_CPU_KVCACHE_SPACE", "1"
    )  # GiB, in place of a share of what earlier engines of this process have left
    net = dataclasses.replace(
        NET, n_head=2, n_kv_head=1, head_dim=32, tie_embeddings=tied
    )  # its kernels have no smaller heads
    save_llama(
        transformers,
        tmp_path / "parent",
        seed=0,
        tie_word_embeddings=tied,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    three_steps(tmp_path / "parent", net, adapter)


@pytest.mark.usefixtures("pretended")
def test_filters_are_refused(parent: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"model\.rollout\.top_p is set, and the log-probabilities of vLLM are those after it",
    ):
        VLLM(str(parent)).generate(
            [[1]], sampling=CompletionSampling(6, frozenset(), top_p=0.9), seeds=[0]
        )


def test_without_vllm_it_is_said_what_to_install(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it fails
    rollout = Rollout(
        rewards={"even": Reward(path="tests.stage.test_rollout.even")},
        max_completion_tokens=8,
        engine=VLLM(str(parent)),
    )
    with pytest.raises(UserError, match=r"needs vLLM .*pip install 'lit_pretrain\[vllm\]'"):
        run(prompts(), rollout=rollout, net=NET, init_from=str(parent))
    with pytest.raises(UserError, match=r"memory=1\.5 is a share"):
        VLLM(str(parent), memory=1.5)
