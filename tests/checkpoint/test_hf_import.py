"""Hugging Face folders, saved by transformers itself, become networks of ours that compute the
same logits.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lit_pretrain.__main__ import main
from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.checkpoint.hf_import import read_shape, weight_files
from lit_pretrain.checkpoint.layout import is_hf_folder
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.checkpoint.weights import load_weights
from lit_pretrain.data.batches import Collate, OrderedRows
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.report.run_folder import read_metrics

transformers = pytest.importorskip("transformers", reason="needs the dev extra (transformers)")

COMMON = {
    "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**COMMON, **changes}))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-3": lambda: llama(
        rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, head_dim=12
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**COMMON, sliding_window=7)
    ),
    "mistral-full": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**COMMON, sliding_window=None)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**COMMON)),
    "qwen2-windows": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **COMMON, use_sliding_window=True, sliding_window=7, max_window_layers=2
        )
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**COMMON, head_dim=20, tie_word_embeddings=True)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=512, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2
        )
    ),
}


def save(name: str, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for key, parameter in model.named_parameters():
        if (
            parameter.ndim == 1
        ):  # gains and biases that are not one and zero, so that a forgotten one shows
            nn.init.normal_(parameter, 1.0 if "norm" in key or "ln_" in key else 0.0, 0.2)
    model.save_pretrained(folder, **options)
    return model


def assert_same_logits(model: Any, folder: Path) -> None:
    ours = Transformer(model_config(read_shape(folder)))
    load_weights(ours, str(folder))
    tokens_BT = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BTV = model(tokens_BT).logits
        logits_BTV = ours.logits(ours(tokens_BT))
    assert expected_BTV.std() > 0.3
    # fp32 on both sides; tests/model/test_parity.py compares the formulas to 1e-10
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path)
    assert is_hf_folder(tmp_path)
    assert_same_logits(model, tmp_path)


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = save("llama", tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_logits(model, tmp_path)


def test_names_of_older_releases(tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta beside rope_scaling; OpenAI's GPT-2 has no prefix, and
    its masks are among the weights.
    """
    model = save("llama-3", tmp_path / "llama")
    file = tmp_path / "llama" / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters", LLAMA3)
    file.write_text(
        json.dumps(
            config
            | {
                "rope_theta": rope["rope_theta"],
                "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"},
            }
        )
    )
    assert_same_logits(model, tmp_path / "llama")

    model = save("gpt2", tmp_path / "gpt2")
    weights = tmp_path / "gpt2" / "model.safetensors"
    old = {
        key.removeprefix("transformer."): value.clone() for key, value in load_file(weights).items()
    }
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(3)}
    save_file(old, weights)
    assert_same_logits(model, tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mamba"},
            "model_type='mamba' cannot be imported; known are llama, mistral, qwen2, qwen3, gpt2",
        ),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not one of ours"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope type 'yarn' is not one of ours",
        ),
        ({"pretraining_tp": 2}, "pretraining_tp=2 is not one of ours"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        (
            {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}},
            r"quantization_config \(fp8\) says that the weights are quantised",
        ),
    ],
)
def test_what_is_not_ours_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save("llama", tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=message):
        read_shape(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_weights_of_a_quantised_dtype_are_never_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    save("llama", tmp_path)
    net = Transformer(model_config(read_shape(tmp_path)))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(dtype)}, file)
    with pytest.raises(UserError, match=rf"the tensor {name} is of {str(dtype)[6:]}, as quantised"):
        load_weights(net, str(tmp_path))


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    save("llama", tmp_path, max_shard_size="40KB")
    net = Transformer(model_config(read_shape(tmp_path)))
    part = sorted(tmp_path.glob("*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{part.name} is missing or damaged"):
        load_weights(net, str(tmp_path))
    part.unlink()
    with pytest.raises(UserError, match=f"names {part.name}, which is not there"):
        load_weights(net, str(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="holds neither model"):
        load_weights(net, str(tmp_path))


def test_finetune_from_a_folder(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hf"
    model = save("llama-tied", folder)
    for file in dataset.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    options = [
        "finetune", f"--from={folder}", f"--data.path={dataset}", f"--runs={tmp_path}",
        "--name=child", "--max_steps=2",
        "--data.seq_len=32", "--data.global_batch_tokens=256", "--data.micro_batch_size=8",
        "--data.val_tokens=256", "--log_every=1",
        "--model.compile=off", "--sample_prompts=[]", "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
    ]  # fmt: skip
    assert main(options) == 0
    first = read_metrics(tmp_path / "child")[0]
    # The loss of transformers' own model over the documents of the first step, one by one.
    data = TextData(path=str(dataset), seq_len=32, global_batch_tokens=256, micro_batch_size=8)
    rows = OrderedRows(data.order(), data.readers("train"))
    (batch,) = Collate(
        micro_batch_size=8, eos_id=data.manifest.tokenizer.eos_id, cross_documents=False
    )([rows[n] for n in range(8)])
    nll, count = 0.0, 0
    for tokens_T, labels_T, doc_T in zip(
        batch.tokens_BT, batch.labels_BT.long(), batch.doc_BT, strict=True
    ):
        for number in doc_T.unique():
            here = doc_T == number
            with torch.no_grad():
                logits_LV = model(tokens_T[None, here]).logits[0]
            nll += nn.functional.cross_entropy(
                logits_LV, labels_T[here], reduction="sum", ignore_index=IGNORE_INDEX
            ).item()
            count += int((labels_T[here] != IGNORE_INDEX).sum())
    assert first["train/loss"] == pytest.approx(nll / count, rel=1e-4)
    # The saved config runs again as it is, with its parent.
    saved = tmp_path / "child" / "config.yaml"
    assert main(["finetune", f"--config={saved}", "--name=again"]) == 0
    assert read_metrics(tmp_path / "again")[0]["train/loss"] == first["train/loss"]
    capsys.readouterr()
    tokenizer = folder / "tokenizer.json"
    spec = json.loads(tokenizer.read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    tokenizer.write_text(json.dumps(spec))
    assert main([*options, "--name=other"]) == 2
    assert "tokenizer (sha256 of tokenizer.json): expected" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    tokenizer.unlink()
    assert main([*options, "--name=unchecked"]) == 0
    assert "cannot be checked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "here.safetensors", "b": "gone.safetensors"}}, "names gone.safeten"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "is not the plain name of a file"),
        ({"weight_map": ["here.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_name_files_that_are_there(
    index: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "here.safetensors").write_bytes(b"")
    (tmp_path.parent / "secret.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=said):
        weight_files(tmp_path)
