"""Every shipped config parses and runs through the real command line, shrunk to a toy where it is large."""

from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.report.folder import read_metrics

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "configs" / "model").glob("*.yaml"))
RUNS = sorted(p for kind in ("pretrain", "posttrain", "finetune") for p in (ROOT / "configs" / kind).glob("*.yaml"))
TINY = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2", "--model.net.n_kv_head=null", "--model.net.head_dim=null",
    "--model.net.ffn_width=64", "--model.net.vocab_size=512", "--model.net.max_seq_len=64", "--model.compile=off",
]  # fmt: skip
SHORT = [
    "--data.seq_len=32", "--data.micro_batch_size=2", "--data.global_batch_tokens=128", "--data.val_tokens=256", "--max_steps=2",
    "--max_tokens=null", "--max_flops=null", "--log_every=1", "--validate_every=0", "--checkpoint_every=0", "--sample_tokens=2",
    "--sample_prompts=['']",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto",
]  # fmt: skip


def shrink(config: Path) -> list[str]:
    """Options that make any of our shapes a toy of the same kind."""
    net = (yaml.safe_load(config.read_text()).get("model") or {}).get("net") or {}
    window = ["--model.net.sliding_window=16"] if net.get("sliding_window") else []
    scaling = ["--model.net.rope_scaling.original_max_seq_len=32"] if net.get("rope_scaling") else []
    return TINY + window + scaling


@pytest.mark.parametrize("config", RUNS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_run_configs_train(config: Path, dataset: Path, tmp_path: Path) -> None:
    code = main(["fit", "--config", str(config), *shrink(config), *SHORT, f"--data.path={dataset}", f"--runs={tmp_path}", "--name=run"])
    assert code == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert lines[-1]["val/loss"] > 0


@pytest.mark.parametrize("config", MODELS, ids=lambda p: p.stem)
def test_model_shapes_train_when_shrunk(config: Path, dataset: Path, tmp_path: Path) -> None:
    base = ROOT / "configs" / "pretrain" / "llama_adamw.yaml"
    configs = ["--config", str(base), "--config", str(config)]
    code = main(["fit", *configs, *shrink(config), *SHORT, f"--data.path={dataset}", f"--runs={tmp_path}", "--name=run"])
    assert code == 0
    assert (tmp_path / "run" / "summary.md").is_file()


@pytest.mark.parametrize("config", MODELS, ids=lambda p: p.stem)
def test_model_shapes_are_whole(config: Path) -> None:
    model_config(yaml.safe_load(config.read_text())["model"]["net"])


def test_there_are_configs() -> None:
    assert len(MODELS) >= 8
    assert len(RUNS) >= 3
