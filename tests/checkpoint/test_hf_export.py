"""Networks of ours, written as Hugging Face folders: transformers computes the same logits from
them, and we read them back bit for bit.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.checkpoint.hf_export import architecture, to_config, to_tensors, write_tensors
from lit_pretrain.checkpoint.hf_import import read_shape, read_tensors
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.transformer import Transformer

LLAMA = ModelConfig(
    vocab_size=96,
    n_layer=3,
    width=32,
    n_head=4,
    n_kv_head=2,
    ffn_width=48,
    max_seq_len=64,
    init_std=0.2,
)
GPT2 = ModelConfig(
    vocab_size=96, n_layer=3, width=32, n_head=4, max_seq_len=64, init_std=0.2, norm="layernorm",
    norm_bias=True, position="learned",
    activation="gelu_tanh", qkv_bias=True, attn_out_bias=True, ffn_bias=True, tie_embeddings=True,
)  # fmt: skip
STRETCHED = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=16
)
SHAPES: dict[str, tuple[str, ModelConfig]] = {
    "llama": ("llama", LLAMA),
    "llama-3": (
        "llama",
        replace(
            LLAMA,
            rope_theta=500.0,
            rope_scaling=STRETCHED,
            head_dim=12,
            qkv_bias=True,
            attn_out_bias=True,
            ffn_bias=True,
        ),
    ),
    "llama-tied-without-gains": (
        "llama",
        replace(LLAMA, tie_embeddings=True, norm_weight=False, norm_eps=1e-3),
    ),
    "mistral": ("mistral", replace(LLAMA, sliding_window=7, window_pattern="S")),
    "qwen2": ("qwen2", replace(LLAMA, qkv_bias=True)),
    "qwen2-windows-without-bias": ("qwen2", replace(LLAMA, sliding_window=7, window_pattern="LSS")),
    "qwen3": (
        "qwen3",
        replace(LLAMA, qk_norm=True, head_dim=20, tie_embeddings=True, rope_theta=1e6),
    ),
    "qwen3-windows": ("qwen3", replace(LLAMA, qk_norm=True, sliding_window=7, window_pattern="SL")),
    "gpt2": ("gpt2", GPT2),
    "gpt2-without-biases": (
        "gpt2",
        replace(
            GPT2,
            norm_bias=False,
            qkv_bias=False,
            attn_out_bias=False,
            ffn_bias=False,
            activation="gelu",
            tie_embeddings=False,
            ffn_width=40,
        ),
    ),
}


def network(shape: ModelConfig) -> Transformer:
    """Seeded, with gains and biases that are not their first values."""
    torch.manual_seed(0)
    net = Transformer(shape).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def write(
    shape: ModelConfig,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 10**9,
) -> Transformer:
    folder.mkdir(parents=True, exist_ok=True)
    net = network(shape)
    config = to_config(shape, dtype="float32", bos_id=1, eos_id=2, pad_id=None)
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(
        to_tensors(shape, net.state_dict(), dtype), folder, max_shard_bytes=max_shard_bytes
    )
    return net


def tokens(shape: ModelConfig) -> torch.Tensor:
    return torch.randint(shape.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))


def logits(net: Transformer, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net.logits(net(tokens_BT))


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra (transformers)")
    kind, shape = SHAPES[name]
    net = write(shape, tmp_path)
    assert architecture(shape)[0] == kind
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    assert model.config.model_type == kind
    expected = logits(net.double(), tokens(shape))
    with torch.no_grad():
        found = model(tokens(shape)).logits
    # Norms and angles are fp32 in transformers whatever the weights are.
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["llama-tied-without-gains", "qwen3", "gpt2"])
def test_the_final_norm_takes_up_the_scale_of_the_logits(name: str, tmp_path: Path) -> None:
    shape = replace(SHAPES[name][1], logit_scale=0.3)
    net = write(shape, tmp_path)
    again = Transformer(model_config(read_shape(tmp_path))).eval()
    again.load_state_dict(read_tensors(tmp_path))
    assert again.config.logit_scale is None
    expected = logits(net, tokens(shape))
    assert (logits(again, tokens(shape)) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", SHAPES)
def test_our_own_reader_gives_the_weights_back(name: str, tmp_path: Path) -> None:
    _, shape = SHAPES[name]
    net = write(shape, tmp_path, max_shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    again = Transformer(model_config(read_shape(tmp_path))).eval()
    again.load_state_dict(read_tensors(tmp_path))
    own = again.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())
    assert torch.equal(logits(again, tokens(shape)), logits(net, tokens(shape)))


@pytest.mark.parametrize("norm_weight", [True, False])
def test_the_scale_of_queries_and_keys_goes_into_their_gains(
    tmp_path: Path, norm_weight: bool
) -> None:
    shape = replace(SHAPES["qwen3"][1], qk_scale=1.2, norm_weight=norm_weight)
    net = write(shape, tmp_path)
    again = Transformer(model_config(read_shape(tmp_path))).eval()
    again.load_state_dict(read_tensors(tmp_path))
    assert again.config.qk_scale is None
    expected = logits(net, tokens(shape))
    assert (logits(again, tokens(shape)) - expected).abs().max() < 1e-5 * expected.abs().max()
    plain = logits(network(replace(shape, qk_scale=None)), tokens(shape))
    assert (plain - expected).abs().max() > 0.01


def test_shards_are_as_large_as_asked_and_the_index_knows_them(tmp_path: Path) -> None:
    write(LLAMA, tmp_path, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("model-*"))
    assert sorted(set(index["weight_map"].values())) == files
    assert all(
        (tmp_path / file).stat().st_size < 22_000 for file in files
    )  # with the header of each
    assert index["metadata"]["total_size"] == 4 * sum(
        p.numel() for p in network(LLAMA).parameters()
    )


def test_old_and_new_keys_say_the_same() -> None:
    for name in ("llama", "llama-3", "qwen3"):
        shape = SHAPES[name][1]
        config = to_config(shape, dtype="bfloat16", bos_id=1, eos_id=2, pad_id=0)
        assert config["dtype"] == config["torch_dtype"] == "bfloat16"
        new = dict(config["rope_parameters"])
        assert new.pop("rope_theta") == config["rope_theta"] == shape.rope_theta
        assert config["rope_scaling"] == (None if shape.rope_scaling is None else new)
        assert config["head_dim"] == shape.head_size


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"activation": "relu2", "embed_norm": True}, ["embed_norm=True", "activation='relu2'"]),
        (
            {"value_embeddings": "alternate", "residual_scalars": True},
            ["value_embeddings='alternate'", "residual_scalars=True"],
        ),
        (
            {"attn_softcap": 50.0, "logit_softcap": 30.0, "attention": "matmul"},
            ["attn_softcap=50.0", "logit_softcap=30.0"],
        ),
        ({"position": "none"}, ["position='none'"]),
        ({"bigram_rows": 64}, ["bigram_rows=64"]),
        ({"smear": True}, ["smear=True"]),
        ({"norm": "layernorm"}, ["position='rope'", "activation='swiglu'", "n_kv_head=2"]),
        ({"qk_norm": True, "ffn_bias": True}, ["ffn_bias=True with qk_norm"]),
        (
            {"sliding_window": 4, "window_pattern": "SL", "attn_out_bias": True},
            ["attn_out_bias=True with sliding windows"],
        ),
    ],
)
def test_what_exists_nowhere_is_refused_by_name(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        architecture(replace(LLAMA, **changes))
    assert all(part in str(error.value) for part in parts)
    assert "configs/pretrain/llama_adamw.yaml" in str(error.value)


@pytest.mark.skipif(
    "OTHER_TRANSFORMERS" not in os.environ,
    reason="OTHER_TRANSFORMERS names no folder with another transformers",
)
def test_another_transformers_computes_the_same(tmp_path: Path) -> None:
    """The same folders under the other supported major version: `pip install --target FOLDER
    --no-deps transformers==...`.
    """
    expected = {}
    for name, (_, shape) in SHAPES.items():
        net = write(shape, tmp_path / name)
        expected[name] = logits(net, tokens(shape)).tolist()
    code = (
        "import json, sys, torch, transformers\ntokens = torch.randint(96, (3, 40),"
        " generator=torch.Generator().manual_seed(1))\nfound = {}\nfor name in sys.argv[2:]:\n   "
        " place, options = f'{sys.argv[1]}/{name}', {'dtype': torch.float32, 'attn_implementation':"
        " 'eager'}\n    model = transformers.AutoModelForCausalLM.from_pretrained(place,"
        " **options)\n    with torch.no_grad():\n        found[name] ="
        " model.eval()(tokens).logits.tolist()\nprint(json.dumps([transformers.__version__,"
        " found]))\n"
    )
    path = os.pathsep.join([os.environ["OTHER_TRANSFORMERS"], os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), *SHAPES],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    version, found = json.loads(run.stdout.splitlines()[-1])
    import transformers

    assert version.split(".")[0] != transformers.__version__.split(".")[0]
    for name, values in expected.items():
        difference = (torch.tensor(found[name]) - torch.tensor(values)).abs().max()
        assert difference < 1e-4 * torch.tensor(values).abs().max(), (name, version)
