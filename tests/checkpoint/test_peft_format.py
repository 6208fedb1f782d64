"""PEFT format: nothing is lost on the way there and back, peft reads ours with the same logits,
and what cannot be kept is refused.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_pretrain.adapter import LoRA, is_adapter_tensor
from lit_pretrain.checkpoint.peft_format import from_peft, to_peft
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "adapter_reference", ROOT / "scripts" / "adapter_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load()
CASES = [(kind, how) for kind in made.SHAPES for how in made.ADAPTERS]


def own(net: Transformer) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if is_adapter_tensor(name)}


def logits(net: Transformer) -> Tensor:
    with torch.no_grad():
        return net.logits(net(made.tokens()))


def imported(kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Transformer:
    adapter, ours = from_peft(made.SHAPES[kind], config, tensors, where="there")
    net = made.network(kind)
    adapter.apply(net)
    missing, unexpected = net.load_state_dict(ours, strict=False)
    assert not unexpected
    assert not any(is_adapter_tensor(name) for name in missing)
    return net


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_there_and_back_is_the_same_function(kind: str, how: str) -> None:
    net = made.adapted(kind, how)
    config, tensors = to_peft(net.config, made.ADAPTERS[how], own(net), base=None)
    back = imported(kind, json.loads(json.dumps(config)), tensors)
    torch.testing.assert_close(logits(back), logits(net), atol=1e-5, rtol=1e-5)
    assert (logits(back) - logits(made.network(kind))).abs().max() > 0.1
    if kind != "gpt2":  # three updates of GPT-2's parts are one of thrice the rank
        assert all(torch.equal(value, own(net)[key]) for key, value in own(back).items())


def test_pissa_goes_as_a_plain_update_of_the_unchanged_base() -> None:
    net, adapter = made.network("llama"), LoRA(rank=2, init="pissa")
    adapter.apply(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.3)
    config, tensors = to_peft(net.config, adapter, own(net), base=None)
    assert config["r"] == 4
    torch.testing.assert_close(
        logits(imported("llama", config, tensors)), logits(net), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_peft_reads_ours_with_the_same_logits(kind: str, how: str, tmp_path: Path) -> None:
    peft = pytest.importorskip(
        "peft", reason="compares with peft itself: pip install peft==0.21.2 accelerate"
    )
    net = made.adapted(kind, how)
    made.save_peft(net, made.ADAPTERS[how], tmp_path)
    model = peft.PeftModel.from_pretrained(
        made.transformers_model(made.network(kind), kind), str(tmp_path)
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(made.tokens()).logits, logits(net), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(made.SHAPES))
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 3, "lora_alpha": 6, "use_dora": True},
        {
            "r": 2,
            "lora_alpha": 6,
            "rank_pattern": {"c_proj": 5, "o_proj": 5, "layers.1.self_attn.q_proj": 3},
            "alpha_pattern": {"c_attn": 9, "v_proj": 9},
        },
    ],
    ids=["plain", "rslora", "dora", "patterns"],
)
def test_we_read_peft_s_with_the_same_logits(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    peft = pytest.importorskip(
        "peft", reason="compares with peft itself: pip install peft==0.21.2 accelerate"
    )
    from safetensors.torch import load_file

    targets = (
        ["c_attn", "c_fc", "c_proj"]
        if kind == "gpt2"
        else ["q_proj", "v_proj", "o_proj", "down_proj"]
    )
    model = peft.get_peft_model(
        made.transformers_model(made.network(kind), kind),
        peft.LoraConfig(target_modules=targets, **settings),
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.5 * made.made(name, tuple(parameter.shape)))
            elif "lora_" in name:
                parameter.copy_(made.made(name, tuple(parameter.shape)))
        expected = model(made.tokens()).logits
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    net = imported(kind, config, load_file(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(net), expected, atol=2e-5, rtol=1e-5)
    assert (expected - logits(made.network(kind))).abs().max() > 0.1


def test_targets_are_short_where_every_layer_has_the_same() -> None:
    for how, expected in (
        ("rslora", ["self_attn.q_proj", "self_attn.v_proj"]),
        ("one_layer", None),
    ):
        net = made.adapted("llama", how)
        config, _ = to_peft(net.config, made.ADAPTERS[how], own(net), base="a/b")
        names = config["target_modules"]
        assert (
            names == expected
            if expected
            else "model.layers.0.mlp.down_proj" in names and len(names) == 5
        )
        assert config["base_model_name_or_path"] == "a/b"
        adapter, _ = from_peft(
            net.config,
            config,
            to_peft(net.config, made.ADAPTERS[how], own(net), base=None)[1],
            where="there",
        )
        assert adapter.select(made.network("llama")) == made.ADAPTERS[how].select(
            made.network("llama")
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_what_cannot_be_kept_is_refused(change: dict[str, Any], says: str) -> None:
    net = made.adapted("llama", "lora")
    config, tensors = to_peft(net.config, made.ADAPTERS["lora"], own(net), base=None)
    with pytest.raises(UserError, match=says):
        from_peft(net.config, config | change, tensors, where="there")


def test_tensors_of_other_matrices_are_refused() -> None:
    net = made.adapted("llama", "lora")
    config, tensors = to_peft(net.config, made.ADAPTERS["lora"], own(net), base=None)
    extra = {"base_model.model.lm_head.lora_A.weight": torch.zeros(3, 16)}
    with pytest.raises(UserError, match="lm_head"):
        from_peft(net.config, config, tensors | extra, where="there")
    fewer = {
        key: value
        for key, value in tensors.items()
        if not key.endswith("layers.1.mlp.up_proj.lora_B.weight")
    }
    with pytest.raises(UserError, match="lacks lora_B"):
        from_peft(net.config, config, fewer, where="there")
    with pytest.raises(UserError, match="holds no adapter"):
        from_peft(net.config, config, {}, where="there")


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "relu2"},
        {"norm_weight": False},
        {"logit_softcap": 30.0},
        {"residual_scalars": True},
    ],
)
def test_networks_without_an_architecture_in_transformers_are_refused(
    change: dict[str, Any],
) -> None:
    shape = ModelConfig(vocab_size=64, n_layer=1, width=32, n_head=2, **change)
    with pytest.raises(UserError, match="no architecture"):
        to_peft(shape, LoRA(), {}, base=None)


def test_dora_of_a_part_of_what_gpt2_fuses_is_refused() -> None:
    net, adapter = made.network("gpt2"), LoRA(rank=2, dora=True, targets=("q_proj",))
    adapter.apply(net)
    with pytest.raises(UserError, match="one matrix for all three"):
        to_peft(net.config, adapter, own(net), base=None)
