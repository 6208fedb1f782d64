"""Adapter reference: what peft and bitsandbytes compute, for the tests of ours to agree with.

Losses and gradients of LoRA and DoRA in peft, and NF4 bytes of bitsandbytes, on networks that can
be made anywhere.

    python scripts/adapter_reference.py tests/adapter/reference.json     # needs peft (and
    accelerate, psutil), transformers, bitsandbytes

Weights are hashes of their names and places, so that no generator of random numbers stands between
the two libraries. Tests compute the same with ours and compare; where peft is installed they
compare directly besides.
"""

import hashlib
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.adapter import LoRA, is_adapter_tensor
from lit_pretrain.checkpoint.peft_format import PEFT_CONFIG, PEFT_WEIGHTS, to_peft
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer

VOCAB, WIDTH, HEADS, FFN, LENGTH = 48, 16, 4, 24, 12
SHAPES = {
    "llama": ModelConfig(
        vocab_size=VOCAB, n_layer=2, width=WIDTH, n_head=HEADS, n_kv_head=2, ffn_width=FFN,
        max_seq_len=32,
    ),
    "qwen3": ModelConfig(
        vocab_size=VOCAB, n_layer=2, width=WIDTH, n_head=HEADS, n_kv_head=2, head_dim=8,
        ffn_width=FFN, max_seq_len=32, norm_eps=1e-6,
        qk_norm=True, tie_embeddings=True,
    ),
    "gpt2": ModelConfig(
        vocab_size=VOCAB, n_layer=2, width=WIDTH, n_head=HEADS, ffn_width=FFN, max_seq_len=32,
        norm="layernorm", norm_bias=True,
        position="learned", activation="gelu_tanh", qkv_bias=True, attn_out_bias=True,
        ffn_bias=True, tie_embeddings=True,
    ),
}  # fmt: skip
ADAPTERS = {
    "lora": LoRA(rank=3, alpha=5.0),
    "rslora": LoRA(rank=3, alpha=5.0, rslora=True, targets=(r"(q|v)_proj$",)),
    "dora": LoRA(rank=2, alpha=3.0, dora=True),
    "one_layer": LoRA(
        rank=2, alpha=4.0, targets=(r"blocks\.1\.attention", r"blocks\.0\..*down_proj")
    ),
}


def made(name: str, shape: tuple[int, ...]) -> Tensor:
    """Make numbers in [-0.5, 0.5) that depend on a name and their places alone (SplitMix64)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = (
            np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
        ) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (
        torch.from_numpy((x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5).float().view(shape)
    )


def network(kind: str) -> Transformer:
    """Make a network of ours with seeded weights."""
    net = Transformer(SHAPES[kind])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            values = made(name, tuple(parameter.shape))
            parameter.copy_(1 + 0.4 * values if name.endswith("norm.weight") else 0.8 * values)
    return net


def adapted(kind: str, how: str) -> Transformer:
    """Make the same network with an adapter of seeded weights."""
    net = network(kind)
    ADAPTERS[how].apply(net)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("lora_magnitude"):
                parameter.mul_(1 + 0.6 * made(name, tuple(parameter.shape)))
            elif is_adapter_tensor(name):
                parameter.copy_(made(name, tuple(parameter.shape)))
    return net


def tokens() -> Tensor:
    """Make three rows of tokens."""
    return ((made("tokens", (3, LENGTH)) + 0.5) * VOCAB).long()


def loss_of(logits_BTV: Tensor) -> Tensor:
    """Compute the mean cross-entropy of each next token."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())


def ours(kind: str, how: str) -> tuple[float, dict[str, Tensor]]:
    """Compute loss and gradients of our adapter."""
    net = adapted(kind, how)
    loss = loss_of(net.logits(net(tokens())))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def transformers_model(net: Transformer, kind: str) -> Any:
    """Make the same network in transformers."""
    import transformers

    c = net.config
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "tie_word_embeddings": c.tie_embeddings,
        "attn_implementation": "eager",
    }
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            n_positions=32,
            n_embd=WIDTH,
            n_layer=2,
            n_head=HEADS,
            n_inner=FFN,
            attn_pdrop=0,
            embd_pdrop=0,
            resid_pdrop=0,
            **common,
        )
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        sizes: dict[str, Any] = {
            "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "num_key_value_heads": 2, "intermediate_size": FFN,
            "max_position_embeddings": 32, "rms_norm_eps": c.norm_eps, "head_dim": c.head_size,
        }  # fmt: skip
        llama = kind == "llama"
        config = (transformers.LlamaConfig if llama else transformers.Qwen3Config)(
            **sizes, **common
        )
        model = (transformers.LlamaForCausalLM if llama else transformers.Qwen3ForCausalLM)(config)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    theirs = {
        key: _their_value(key, state)
        for key in model.state_dict()
        if not (key == "lm_head.weight" and c.tie_embeddings)
    }
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    return model.eval()


def _their_value(key: str, state: dict[str, Tensor]) -> Tensor:
    """Take a tensor of transformers from ours, by the import's own table of names."""
    from lit_pretrain.checkpoint import hf_import

    if key.startswith("transformer."):
        if ".attn.c_attn." in key:
            parts = [
                state[
                    hf_import.rename_tensor(
                        key.replace(".attn.c_attn.", f".attention.{x}_proj."), hf_import._GPT2_NAMES
                    )
                ]
                for x in "qkv"
            ]
            whole = torch.cat(parts)
            return whole.T.contiguous() if whole.ndim == 2 else whole
        value = state[hf_import.rename_tensor(key, hf_import._GPT2_NAMES)]
        return value.T.contiguous() if ".c_" in key and value.ndim == 2 else value
    return state[hf_import.rename_tensor(key, hf_import._LLAMA_NAMES)]


def save_peft(net: Transformer, adapter: LoRA, folder: Path) -> None:
    """Write an adapter of ours as peft's files."""
    from safetensors.torch import save_file

    own = {name: value for name, value in net.state_dict().items() if is_adapter_tensor(name)}
    config, tensors = to_peft(net.config, adapter, own, base=None)
    (folder / PEFT_CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / PEFT_WEIGHTS)


def theirs(kind: str, how: str) -> tuple[float, dict[str, Tensor]]:
    """Compute loss and gradients in peft, which reads our export; gradients by our names."""
    import peft

    net = adapted(kind, how)
    with tempfile.TemporaryDirectory() as scratch:
        save_peft(net, ADAPTERS[how], Path(scratch))
        model = peft.PeftModel.from_pretrained(
            transformers_model(network(kind), kind), scratch, is_trainable=True
        )
    loss = loss_of(model(tokens()).logits)
    loss.backward()
    found = {
        key.replace("base_model.model.", "")
        .replace(".default", "")
        .replace("lora_magnitude_vector", "lora_magnitude")
        .removesuffix(".weight"): p.grad
        for key, p in model.named_parameters()
        if p.grad is not None
    }
    return loss.item(), {
        name: _their_gradient(name, kind, ADAPTERS[how], net, found)
        for name, p in net.named_parameters()
        if p.requires_grad
    }


def _their_gradient(
    name: str, kind: str, adapter: LoRA, net: Transformer, found: dict[str, Tensor]
) -> Tensor:
    prefix, _, tensor = name.rpartition(".")
    _, layer, matrix = prefix.split(".", 2)
    if kind != "gpt2":
        hf = (
            matrix.replace("attention.out_proj", "self_attn.o_proj")
            .replace("attention.", "self_attn.")
            .replace("feed_forward.", "mlp.")
        )
        return found[f"model.layers.{layer}.{hf}.{tensor}"]
    if not matrix.endswith(("q_proj", "k_proj", "v_proj")):
        hf = {
            "attention.out_proj": "attn.c_proj",
            "feed_forward.up_proj": "mlp.c_fc",
            "feed_forward.down_proj": "mlp.c_proj",
        }[matrix]
        return found[f"transformer.h.{layer}.{hf}.{tensor}"]
    whole = found[f"transformer.h.{layer}.attn.c_attn.{tensor}"]
    adapted_parts = [
        x for x in "qkv" if f"blocks.{layer}.attention.{x}_proj.lora_A" in net.state_dict()
    ]
    row, column = "qkv".index(matrix[-6]), adapted_parts.index(matrix[-6]) * adapter.rank
    rows, columns = slice(row * WIDTH, (row + 1) * WIDTH), slice(column, column + adapter.rank)
    return (
        whole[columns]
        if tensor == "lora_A"
        else whole[rows]
        if tensor == "lora_magnitude"
        else whole[rows, columns]
    )


def figures(gradients: dict[str, Tensor]) -> dict[str, list[float]]:
    """Describe a gradient by its norm, and its products with two fixed directions."""
    found = {}
    for name, gradient in sorted(gradients.items()):
        g = gradient.double()
        directions = [made(f"{name} {i}", tuple(g.shape)).double() for i in (1, 2)]
        found[name] = [g.norm().item(), *((g * d).sum().item() for d in directions)]
    return found


def nf4_inputs() -> dict[str, Tensor]:
    """Make matrices to quantise.

    Their sizes, odd ones too, scales over many magnitudes, and zeros.
    """
    shapes = {
        "small": (8, 8),
        "odd": (7, 9),
        "ragged": (33, 129),
        "large": (512, 257),
        "square": (128, 96),
    }
    found = {name: made(name, shape) * 0.1 for name, shape in shapes.items()}
    found["scales"] = made("scales", (256, 64)) * torch.exp2(torch.arange(256) % 17 - 8.0)[:, None]
    found["zeros"] = torch.zeros(64, 64)
    return found


def digest(tensor: Tensor) -> str:
    """Hash a tensor's bytes (sha256)."""
    return hashlib.sha256(
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()


def nf4_digests() -> dict[str, list[str]]:
    """Hash what bitsandbytes' CPU kernels return.

    Packed weights, codes and scales of the scales, their offset, and the matrix again in three
    dtypes.
    """
    import bitsandbytes.functional as bnb

    found = {}
    for name, matrix in nf4_inputs().items():
        packed, state = bnb.quantize_4bit(
            matrix, quant_type="nf4", compress_statistics=True, blocksize=64
        )
        again = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            state.dtype = dtype
            again.append(digest(bnb.dequantize_4bit(packed, state)))
        found[name] = [
            digest(packed),
            digest(state.absmax),
            digest(state.state2.absmax),
            digest(state.offset),
            *again,
        ]
    return found


def main() -> None:
    """Compute everything and write it."""
    import bitsandbytes
    import peft
    import transformers

    cases = {}
    for kind in SHAPES:
        for how in ADAPTERS:
            loss, gradients = theirs(kind, how)
            own_loss, own = ours(kind, how)
            worst = max(((own[n] - g).norm() / g.norm()).item() for n, g in gradients.items())
            print(
                f"{kind} {how}: loss {loss:.6f}, ours differs by {abs(own_loss - loss) / loss:.1e},"
                f" gradients by {worst:.1e} (relative)"
            )
            cases[f"{kind}/{how}"] = {"loss": loss, "gradients": figures(gradients)}
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes)}
    content = {
        "made by": "scripts/adapter_reference.py",
        "versions": versions,
        "peft": cases,
        "nf4": nf4_digests(),
    }
    Path(sys.argv[1]).write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    main()
