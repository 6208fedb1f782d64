"""Every shipped config parses and runs through the real command line, shrunk to a toy where it
is large.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.optim.schedule import Schedule
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.scaling.memory import Layout

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "configs" / "model").glob("*.yaml"))
CHAIN = ROOT / "configs" / "chain"
RUNS = [*sorted((ROOT / "configs" / "pretrain").glob("*.yaml")), CHAIN / "pretrain.yaml"]
FINETUNE = ROOT / "configs" / "finetune"
ADAPTERS = [FINETUNE / "lora.yaml", FINETUNE / "qlora.yaml"]
"""They name no data: prepared text by default, or the rows of another config."""
POSTTRAIN = sorted((ROOT / "configs" / "posttrain").glob("*.yaml"))
TINY = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.n_kv_head=null", "--model.net.head_dim=null",
    "--model.net.ffn_width=64", "--model.net.vocab_size=512", "--model.net.max_seq_len=64",
    "--model.compile=off",
]  # fmt: skip
SHORT = [
    "--data.seq_len=32", "--data.micro_batch_size=2", "--data.global_batch_tokens=128",
    "--data.val_tokens=256", "--max_steps=2",
    "--max_tokens=null", "--max_flops=null", "--log_every=1", "--validate_every=0",
    "--checkpoint_every=0", "--sample_tokens=2",
    "--sample_prompts=['']",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto",
]  # fmt: skip


def shrink(config: Path) -> list[str]:
    """Options that make any of our shapes a toy of the same kind."""
    net = (yaml.safe_load(config.read_text()).get("model") or {}).get("net") or {}
    window = ["--model.net.sliding_window=16"] if net.get("sliding_window") else []
    scaling = (
        ["--model.net.rope_scaling.original_max_seq_len=32"] if net.get("rope_scaling") else []
    )
    return TINY + window + scaling


@pytest.fixture(scope="module")
def corpus(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset under the names of the embedded corpus, which configs may give weights
    to.
    """
    names = {"code": "code", "story": "prose", "sums": "tests"}
    path = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("corpus") / "embedded"))
    for split in SPLITS:
        for old, new in names.items():
            if old != new and (path / split / old).exists():
                (path / split / old).rename(path / split / new)
    manifest = Manifest.load(path)
    manifest = dataclasses.replace(
        manifest, sources={names[name]: source for name, source in manifest.sources.items()}
    )
    (path / "manifest.json").write_text(manifest.dump(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def parent(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that others can start from."""
    runs = tmp_path_factory.mktemp("parents")
    assert (
        main(["fit", *TINY, *SHORT, f"--data.path={corpus}", f"--runs={runs}", "--name=parent"])
        == 0
    )
    return runs / "parent"


@pytest.mark.parametrize("config", RUNS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_run_configs_train(config: Path, corpus: Path, tmp_path: Path) -> None:
    options = [*shrink(config), *SHORT, f"--data.path={corpus}", f"--runs={tmp_path}", "--name=run"]
    code = main(["fit", "--config", str(config), *options])
    assert code == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert lines[-1]["val/loss"] > 0


def laid_out(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Layout of a run that goes no further."""
    seen: list[Layout] = []

    def stop(net: ModelConfig, layout: Layout, **_: object) -> None:
        seen.append(layout)
        raise UserError("laid out")

    monkeypatch.setattr("lit_pretrain.cli.train.train_cli.check_memory", stop)
    assert main([*arguments, "--trainer.accelerator=cpu", "--trainer.precision=32-true"]) == 2
    return seen.pop()


@pytest.mark.parametrize("config", [*RUNS, *ADAPTERS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_plan_and_fit_divide_a_step_alike(
    config: Path,
    corpus: Path,
    parent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ("global_batch_tokens", "micro_batch_size")
    data = {name: getattr(TextData(), name) for name in sizes}
    data |= yaml.safe_load(config.read_text()).get("data", {})
    data_options = [f"--data.path={corpus}", "--max_tokens=null", "--max_steps=2"]
    for devices in (1, 2, 4, 8):
        options = ["--config", str(config), *data_options, f"--trainer.devices={devices}"]
        assert main(["plan", *options, "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)["memory"]["layout"]
        begin = ["finetune", "--from", str(parent), "--data.seq_len=64"]
        begin = begin if config in ADAPTERS else ["fit"]
        layout = laid_out([*begin, *options, f"--runs={tmp_path}", "--name=run"], monkeypatch)
        capsys.readouterr()
        if config not in ADAPTERS:  # the toy's rows are shorter, so it has more of them
            assert layout.rows == planned["rows"]
            assert layout.micro_batches == planned["micro_batches"]
        for rows, count, tokens in (
            (planned["rows"], planned["micro_batches"], planned["seq_len"]),
            (layout.rows, layout.micro_batches, layout.seq_len),
        ):
            assert devices * rows * count * tokens == data["global_batch_tokens"]
            assert rows <= data["micro_batch_size"]
            assert devices > 1 or rows == data["micro_batch_size"]


ROWS = {
    "alpaca": [
        {"instruction": f"Say {i}", "input": "", "output": f"It is {i}."}
        for i in range(60)
    ],
    "alpaca_preference": [
        {"instruction": f"Say {i}", "input": "", "chosen": f"It is {i}.", "rejected": "No."}
        for i in range(60)
    ],
    "gsm8k": [
        {"question": f"{i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}
        for i in range(60)
    ],
}  # fmt: skip
"""Rows by the format that a config asks for."""


def with_rows(config: Path, folder: Path) -> str:
    """Option that gives a config rows of its format."""
    data = yaml.safe_load(config.read_text())["data"]["init_args"]
    ((name, content),) = data["sources"].items()
    if "task" in content:
        return f"--data.init_args.sources={{{name}: {{task: {{name: addition, rows: 60}}}}}}"
    rows, file = ROWS[content["format"]], folder / Path(content["path"]).name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(json.dumps(rows) if file.suffix == ".json" else lines)
    return f"--data.init_args.sources={{{name}: {{path: {file}, format: {content['format']}}}}}"


def beginning(config: Path, base: Path) -> list[str]:
    """Verb of a config, with its parent where it brings no network of its own."""
    if "net" not in (yaml.safe_load(config.read_text()).get("model") or {}):
        return ["posttrain", "--from", str(base)]
    return ["fit", f"--data.init_args.tokenizer={base}", "--model.net.max_seq_len=128"]


@pytest.fixture(scope="module")
def base(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent for post-training."""
    runs = tmp_path_factory.mktemp("base")
    net = [
        option for option in TINY if "vocab_size" not in option and "max_seq_len" not in option
    ] + ["--model.net.max_seq_len=128"]
    assert (
        main(["fit", *net, *SHORT, f"--data.path={dataset}", f"--runs={runs}", "--name=base"]) == 0
    )
    return runs / "base"


@pytest.mark.parametrize("config", POSTTRAIN, ids=lambda p: p.stem)
def test_posttrain_configs_train(config: Path, base: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(config.read_text())["data"]
    name = data["class_path"].rsplit(".", 1)[1]
    size = "global_batch_tokens=512" if name == "ChatData" else "global_batch_rows=4"
    options = [
        f"--data.init_args.{size}", with_rows(config, tmp_path),
        "--data.init_args.seq_len=128", "--data.init_args.micro_batch_size=2",
        "--data.init_args.validation=0.2", "--max_steps=2",
        "--max_epochs=null", "--model.compile=off", "--log_every=1", "--validate_every=0",
        "--sample_tokens=2", "--sample_prompts=['']",
        "--trainer.accelerator=cpu", f"--runs={tmp_path}", "--name=run",
    ]  # fmt: skip
    if name == "PromptData":
        options.append("--data.init_args.max_prompt_tokens=null")
    begin = beginning(config, base)
    assert main([begin[0], "--config", str(config), *begin[1:], *options]) == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert lines[-1]["val/loss"] > 0 if name != "PromptData" else "val/reward" in lines[-1]
    assert (tmp_path / "run" / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    "names",
    [["lora", "rows"], ["rows", "lora"], ["qlora", "rows"], ["lora_dpo"]],
    ids=" and ".join,
)
def test_adapters_train_on_rows_of_a_file(
    names: list[str], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [FINETUNE / f"{name}.yaml" for name in names]
    (rows,) = [config for config in configs if "data:" in config.read_text()]
    pairs = names == ["lora_dpo"]
    size = "global_batch_rows=4" if pairs else "global_batch_tokens=512"
    assert main([
        "finetune", "--from", str(base), *(part for c in configs for part in ("--config", str(c))),
        with_rows(rows, tmp_path), f"--data.init_args.{size}", "--data.init_args.seq_len=128",
        "--data.init_args.micro_batch_size=2", "--data.init_args.validation=0.2",
        "--max_epochs=null", "--max_steps=2", "--log_every=1", "--model.compile=off",
        "--sample_prompts=[]", "--trainer.accelerator=cpu", f"--runs={tmp_path}", "--name=run",
    ]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert ("LoRA on NF4, rank 16" if "qlora" in names else "LoRA, rank 16") in printed
    assert ("reference: adapter switched off" in printed) == pairs
    assert read_metrics(tmp_path / "run")[-1]["val/loss"] > 0


def test_every_config_of_an_adapter_is_tried() -> None:
    tried = {"lora", "qlora", "rows", "lora_dpo"}
    assert {config.stem for config in FINETUNE.glob("*.yaml")} == tried


@pytest.mark.parametrize(
    ("config", "stage"),
    [
        *((config, None) for config in POSTTRAIN),
        (CHAIN / "instructions.yaml", "sft"),
        (CHAIN / "preferences.yaml", "dpo"),
        (CHAIN / "problems.yaml", "lora"),
    ],
    ids=lambda value: getattr(value, "stem", value),
)
def test_posttrain_divides_a_step(
    config: Path,
    stage: str | None,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = yaml.safe_load(config.read_text())["data"]["init_args"]
    verb, *more = beginning(config, base)
    options = [verb, "--config", str(config), *more, with_rows(config, tmp_path)]
    options += [] if stage is None else ["--config", str(CHAIN / f"{stage}.yaml")]
    tokens = data.get("global_batch_tokens")
    seq_len = 128 if tokens is None else min(128, data["seq_len"])
    rows = data["global_batch_rows"] if tokens is None else tokens // seq_len
    options += [f"--data.init_args.tokenizer={base}", f"--data.init_args.seq_len={seq_len}"]
    options += ["--max_epochs=null", "--max_steps=2", f"--runs={tmp_path}", "--name=run"]
    options += ["--data.init_args.max_prompt_tokens=null"] if "max_prompt_tokens" in data else []
    for devices in (1, 2, 4, 8):
        layout = laid_out([*options, f"--trainer.devices={devices}"], monkeypatch)
        assert layout.micro_batches is not None
        micro = layout.rows // layout.group
        assert devices * micro * layout.micro_batches == rows == layout.step_rows
        assert micro <= data["micro_batch_size"]
        assert devices > 1 or micro == data["micro_batch_size"]


@pytest.mark.parametrize(
    ("verb", "rows", "stage", "size"),
    [
        ("posttrain", "instructions", "sft", "global_batch_tokens=512"),
        ("posttrain", "preferences", "dpo", "global_batch_rows=4"),
        ("finetune", "problems", "lora", "global_batch_tokens=512"),
    ],
)
def test_the_chain_s_configs_train(
    verb: str,
    rows: str,
    stage: str,
    size: str,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        with_rows(CHAIN / f"{rows}.yaml", tmp_path), f"--data.init_args.tokenizer={base}",
        f"--data.init_args.{size}", "--data.init_args.seq_len=128",
        "--data.init_args.micro_batch_size=2",
        "--data.init_args.validation=0.2",
    ]  # fmt: skip
    steps = [
        "--max_epochs=null",
        "--max_steps=2",
        "--log_every=1",
        "--trainer.accelerator=cpu",
        f"--runs={tmp_path}",
        "--name=run",
    ]
    configs = ["--config", str(CHAIN / f"{rows}.yaml")]
    assert (
        main(
            [
                verb,
                "--from",
                str(base),
                *configs,
                "--config",
                str(CHAIN / f"{stage}.yaml"),
                *options,
                *steps,
            ]
        )
        == 0
    )
    assert read_metrics(tmp_path / "run")[-1]["val/loss"] > 0
    # The rows alone are a config of validate, also for a run that was trained on rows of another
    # kind.
    asked = ["validate", "--run", str(tmp_path / "run"), *configs, *options]
    assert main(asked) == 0
    capsys.readouterr()
    if rows == "preferences":
        return  # their step has rows only
    assert (
        main([*asked, "--data.init_args.global_batch_rows=4"]) == 2
    )  # a mistake in the data is said without a traceback
    assert (
        "either as data.global_batch_tokens or as data.global_batch_rows, not both"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("config", MODELS, ids=lambda p: p.stem)
def test_model_shapes_train_when_shrunk(config: Path, dataset: Path, tmp_path: Path) -> None:
    base = ROOT / "configs" / "pretrain" / "llama_adamw.yaml"
    configs = ["--config", str(base), "--config", str(config)]
    code = main(
        [
            "fit",
            *configs,
            *shrink(config),
            *SHORT,
            f"--data.path={dataset}",
            f"--runs={tmp_path}",
            "--name=run",
        ]
    )
    assert code == 0
    assert (tmp_path / "run" / "summary.md").is_file()


@pytest.mark.parametrize("config", MODELS, ids=lambda p: p.stem)
def test_model_shapes_are_whole(config: Path) -> None:
    model_config(yaml.safe_load(config.read_text())["model"]["net"])


def test_the_annealing_mix_begins_with_the_decay() -> None:
    config = yaml.safe_load((ROOT / "configs" / "pretrain" / "annealing.yaml").read_text())
    data, steps, schedule = config["data"], config["max_steps"], config["model"]["schedule"]
    tokens = data["global_batch_tokens"]
    factor = Schedule(**schedule).in_steps(steps, BatchSizes.one(tokens))
    begin = data["phases"][1]["from_tokens"] // tokens
    assert (factor(begin), factor(begin + 1) < 1) == (1.0, True)
    rows = tokens // data["seq_len"]
    assert [begin * rows % data["cycle"], (steps - begin) * rows % data["cycle"]] == [
        0,
        0,
    ]  # whole cycles, as its comment says
    assert all(sum(phase["weights"].values()) == pytest.approx(1) for phase in data["phases"])


def test_there_are_configs() -> None:
    assert len(MODELS) >= 8
    assert len(RUNS) >= 3
    assert len(POSTTRAIN) >= 2
