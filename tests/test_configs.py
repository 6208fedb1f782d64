"""Every shipped config parses and runs through the real command line, shrunk to a toy where it is large."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.data.manifest import SPLITS, Manifest
from lit_pretrain.optim.schedule import Schedule
from lit_pretrain.report.folder import read_metrics

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "configs" / "model").glob("*.yaml"))
CHAIN = ROOT / "configs" / "chain"
RUNS = [*sorted((ROOT / "configs" / "pretrain").glob("*.yaml")), CHAIN / "pretrain.yaml"]
POSTTRAIN = sorted((ROOT / "configs" / "posttrain").glob("*.yaml"))
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


@pytest.fixture(scope="module")
def corpus(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset under the names of the embedded corpus, which configs may give weights to."""
    names = {"code": "code", "story": "prose", "sums": "tests"}
    path = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("corpus") / "embedded"))
    for split in SPLITS:
        for old, new in names.items():
            if old != new and (path / split / old).exists():
                (path / split / old).rename(path / split / new)
    manifest = Manifest.load(path)
    manifest = dataclasses.replace(manifest, sources={names[name]: source for name, source in manifest.sources.items()})
    (path / "manifest.json").write_text(manifest.dump(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def parent(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that others can start from."""
    runs = tmp_path_factory.mktemp("parents")
    assert main(["fit", *TINY, *SHORT, f"--data.path={corpus}", f"--runs={runs}", "--name=parent"]) == 0
    return runs / "parent"


@pytest.mark.parametrize("config", RUNS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_run_configs_train(config: Path, corpus: Path, tmp_path: Path) -> None:
    options = [*shrink(config), *SHORT, f"--data.path={corpus}", f"--runs={tmp_path}", "--name=run"]
    code = main(["fit", "--config", str(config), *options])
    assert code == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert lines[-1]["val/loss"] > 0


ROWS = {
    "ChatData": [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}."} for i in range(60)],
    "PreferenceData": [{"instruction": f"Say {i}", "input": "", "chosen": f"It is {i}.", "rejected": "No."} for i in range(60)],
}
"""Rows for the data class of each config, in the format that it asks for."""


@pytest.fixture(scope="module")
def base(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent for post-training."""
    runs = tmp_path_factory.mktemp("base")
    net = [option for option in TINY if "vocab_size" not in option and "max_seq_len" not in option] + ["--model.net.max_seq_len=128"]
    assert main(["fit", *net, *SHORT, f"--data.path={dataset}", f"--runs={runs}", "--name=base"]) == 0
    return runs / "base"


@pytest.mark.parametrize("config", POSTTRAIN, ids=lambda p: p.stem)
def test_posttrain_configs_train(config: Path, base: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(config.read_text())["data"]
    name = data["class_path"].rsplit(".", 1)[1]
    source, content = next(iter(data["init_args"]["sources"].items()))
    size = "global_batch_tokens=512" if name == "ChatData" else "global_batch_rows=4"
    if "task" in content:
        rows = f"--data.init_args.sources={{{source}: {{task: {{name: addition, rows: 60}}}}}}"
    else:
        (tmp_path / "rows.json").write_text(json.dumps(ROWS[name]))
        rows = f"--data.init_args.sources={{{source}: {{path: {tmp_path / 'rows.json'}, format: {content['format']}}}}}"
    options = [
        f"--data.init_args.{size}", rows,
        "--data.init_args.seq_len=128", "--data.init_args.micro_batch_size=2", "--data.init_args.validation=0.2", "--max_steps=2",
        "--max_epochs=null", "--model.compile=off", "--log_every=1", "--validate_every=0", "--sample_tokens=2", "--sample_prompts=['']",
        "--trainer.accelerator=cpu", f"--runs={tmp_path}", "--name=run",
    ]  # fmt: skip
    fresh = ["fit", f"--data.init_args.tokenizer={base}", "--model.net.max_seq_len=128"]  # a config that brings a network of its own
    if name == "PromptData":
        options.append("--data.init_args.max_prompt_tokens=null")
    begin = fresh if "net" in yaml.safe_load(config.read_text())["model"] else ["posttrain", "--from", str(base)]
    assert main([begin[0], "--config", str(config), *begin[1:], *options]) == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert lines[-1]["val/loss"] > 0 if name != "PromptData" else "val/reward" in lines[-1]
    assert (tmp_path / "run" / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("verb", "rows", "stage", "size"),
    [
        ("posttrain", "instructions", "sft", "global_batch_tokens=512"),
        ("posttrain", "preferences", "dpo", "global_batch_rows=4"),
        ("finetune", "problems", "lora", "global_batch_tokens=512"),
    ],
)
def test_the_chain_s_configs_train(
    verb: str, rows: str, stage: str, size: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {
        "instructions": ROWS["ChatData"],
        "preferences": ROWS["PreferenceData"],
        "problems": [{"question": f"{i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(60)],
    }[rows]
    ((name, content),) = yaml.safe_load((CHAIN / f"{rows}.yaml").read_text())["data"]["init_args"]["sources"].items()
    file = tmp_path / Path(content["path"]).name
    file.write_text(json.dumps(made) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in made))
    options = [
        f"--data.init_args.sources={{{name}: {{path: {file}, format: {content['format']}}}}}", f"--data.init_args.tokenizer={base}",
        f"--data.init_args.{size}", "--data.init_args.seq_len=128", "--data.init_args.micro_batch_size=2",
        "--data.init_args.validation=0.2",
    ]  # fmt: skip
    steps = ["--max_epochs=null", "--max_steps=2", "--log_every=1", "--trainer.accelerator=cpu", f"--runs={tmp_path}", "--name=run"]
    configs = ["--config", str(CHAIN / f"{rows}.yaml")]
    assert main([verb, "--from", str(base), *configs, "--config", str(CHAIN / f"{stage}.yaml"), *options, *steps]) == 0
    assert read_metrics(tmp_path / "run")[-1]["val/loss"] > 0
    # The rows alone are a config of validate, also for a run that was trained on rows of another kind.
    asked = ["validate", "--run", str(tmp_path / "run"), *configs, *options]
    assert main(asked) == 0
    capsys.readouterr()
    if rows == "preferences":
        return  # their step has rows only
    assert main([*asked, "--data.init_args.global_batch_rows=4"]) == 2  # a mistake in the data is said without a traceback
    assert "either as data.global_batch_tokens or as data.global_batch_rows, one of them" in capsys.readouterr().err


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


def test_the_annealing_mix_begins_with_the_decay() -> None:
    config = yaml.safe_load((ROOT / "configs" / "pretrain" / "annealing.yaml").read_text())
    data, steps, schedule = config["data"], config["max_steps"], config["model"]["schedule"]
    tokens = data["global_batch_tokens"]
    factor = Schedule(**schedule).in_steps(steps, tokens)
    begin = data["phases"][1]["from_tokens"] // tokens
    assert (factor(begin), factor(begin + 1) < 1) == (1.0, True)
    rows = tokens // data["seq_len"]
    assert [begin * rows % data["cycle"], (steps - begin) * rows % data["cycle"]] == [0, 0]  # whole cycles, as its comment says
    assert all(sum(phase["weights"].values()) == pytest.approx(1) for phase in data["phases"])


def test_there_are_configs() -> None:
    assert len(MODELS) >= 8
    assert len(RUNS) >= 3
    assert len(POSTTRAIN) >= 2
