"""`lit_pretrain plan` through the command line: what it reads, what it refuses, and that `fit`
says and keeps the same.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.plan import PlanSettings
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.scaling.published import published_law

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SEVEN_B = [
    "--config",
    str(ROOT / "configs/model/llama2_7b.yaml"),
    "--max_tokens",
    "2e12",
    "--device",
    "NVIDIA H100 80GB HBM3",
]
QUICK = ["--config", str(ROOT / "configs/pretrain/muon.yaml"), "--data.path", "nowhere"]


def plan(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["plan", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with contextlib.suppress(SystemExit):
        assert main(["plan", *arguments]) == 2
    return capsys.readouterr().err


def test_a_mesh(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = [*SEVEN_B, "--devices", "16", "--parallel.dp_replicate", "2", "--parallel.tp"]
    layout = plan(*mesh, "2")["memory"]["layout"]
    assert [layout[name] for name in ("sharding", "copies", "cp", "tp")] == ["fsdp", 2, 1, 2]
    told = fails(capsys, *mesh, "3")
    assert "parallel: dp_replicate 2 × tp 3 = 6 must divide the number of devices, 16" in told


def test_a_bare_shape() -> None:
    found = plan(
        *SEVEN_B,
        "--devices",
        "256",
        "--trainer.strategy",
        "fsdp",
        "--price",
        "2.5",
        "--inference_tokens",
        "2e12",
        "--law",
        "besiroglu",
    )
    assert found["parameters"]["total"] == 6_738_415_616
    assert found["length"]["flops_6nd"] == pytest.approx(8.09e22, rel=1e-3)
    assert found["length"]["tokens_per_parameter"] == pytest.approx(297, abs=0.5)
    assert (
        found["memory"]["layout"]["seq_len"] == 4096
    )  # its own positions, not the default of `fit`
    assert found["memory"]["fits"] is True
    assert found["money"]["dollars"] == pytest.approx(2.5 * found["time"]["device_hours"])
    low, high = found["loss"]["here"]["ci95"]
    assert low < found["loss"]["here"]["loss"] < high
    assert found["loss"]["lifetime"]["saved"] > 0
    assert any("tokens" in text or "D " in text for text in found["loss"]["outside"])
    assert all(assumption["source"] for assumption in found["assumptions"])


def test_the_config_of_a_run() -> None:
    found = plan(*QUICK)
    assert found["length"]["tokens"] == 120 * 4096
    assert found["length"]["steps"] == 120
    assert found["memory"]["layout"]["rows"] == 8
    later = plan(
        *QUICK,
        "--config",
        str(ROOT / "configs/model/llama_60m.yaml"),
        "--max_steps",
        "7",
        "--model.schedule.warmup",
        "2%",
    )
    assert (
        later["length"]["steps"],
        later["parameters"]["total"] > found["parameters"]["total"],
    ) == (7, True)


def test_muon_has_fewer_moments_wherever_it_is_named(tmp_path: Path) -> None:
    muon = plan(*QUICK)["memory"]["states"]["moments"]
    for way in (
        ["--model.optimizer", "lit_pretrain.optim.AdamW"],
        ["--model.optimizer.class_path=AdamW"],
    ):
        assert plan(*QUICK, *way)["memory"]["states"]["moments"] > muon
    layer = tmp_path / "lr.yaml"
    layer.write_text(
        "model:\n  optimizer:\n    init_args: {matrix_lr: 0.01}\n"
    )  # says nothing of the class
    assert plan(*QUICK, "--config", str(layer))["memory"]["states"]["moments"] == muon


@pytest.mark.parametrize(
    ("options", "kind", "option"),
    [
        ([], "Muon", "model.optimizer.matrix_lr"),
        (["--model.optimizer=AdamW"], "AdamW", "model.optimizer.lr"),
        (["--model.optimizer=torch.optim.AdamW"], "AdamW", "model.optimizer.lr"),
        (["--model.optimizer=torch.optim.SGD"], "AdamW", None),
    ],
    ids=["muon", "adamw", "torch's adamw", "sgd"],
)
def test_one_batch_and_rate_are_recommended(
    options: list[str], kind: str, option: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(*QUICK, *options)["recommended"]
    assert found["optimizer"] == kind
    if option is None:
        assert found["chosen"] is None
        assert main(["plan", *QUICK, *options]) == 0
        assert "recommended             nothing: the rules are for" in capsys.readouterr().out
        return
    chosen = found["chosen"]
    rule = next(rule for rule in found["rules"] if rule["name"] == chosen["rule"])
    assert chosen["option"] == option
    assert chosen["batch_tokens"] % 512 == 0
    assert chosen["lr_here"] == pytest.approx(rule["lr"] * (4096 / rule["batch_tokens"]) ** 0.5)
    assert main(["plan", *QUICK, *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"--data.global_batch_tokens {chosen['batch_tokens']} --{option} " in said
    assert f"{rule['name']} was tuned nearest" in said or "least regret on the Step Law's" in said


def test_the_saved_config_of_a_run_is_read(dataset: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "lit_pretrain", "fit", *QUICK, "--data.path", str(dataset),
            "--print_config",
        ],
        capture_output=True, text=True, check=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    saved = tmp_path / "config.yaml"
    saved.write_text(done.stdout)
    found = plan("--config", str(saved), "--law", "besiroglu")
    train = sum(source.splits["train"].tokens for source in Manifest.load(dataset).sources.values())
    assert found["length"]["unique_tokens"] == train
    assert found["length"]["epochs"] == pytest.approx(120 * 4096 / train)
    assert found["loss"]["repetition"]["loss_added"] > 0


@pytest.mark.parametrize(
    ("asked", "solved"),
    [
        (["--max_flops", "1e21", "--devices", "8"], "time and money"),
        (["--dollars", "1000", "--price", "2", "--devices", "8"], "tokens"),
        (["--hours", "10", "--devices", "8"], "tokens"),
        (["--max_tokens", "2e12", "--days", "30"], "devices"),
        (["--max_tokens", "1e9", "--days", "30", "--devices", "8"], "goodput"),
    ],
)
def test_what_is_missing_is_solved_for(asked: list[str], solved: str) -> None:
    found = plan("--config", str(ROOT / "configs/model/llama2_7b.yaml"), "--device", "H100", *asked)
    assert found["solved_for"] == solved
    assert found["length"]["flops"] == pytest.approx(
        found["length"]["tokens"] * found["flops_per_token"]["exact"]
    )
    if solved == "devices":
        assert found["memory"]["layout"]["devices"] == found["time"]["devices"] > 8


def test_devices_that_are_solved_for_divide_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*QUICK, "--tokens_per_second", "1000", "--goodput", "1"]  # 491.52 s on one device
    found = plan(*asked, "--hours", "0.05")  # 180 s: three would do, but a step has 8 rows
    layout = found["memory"]["layout"]
    assert found["solved_for"] == "devices"
    assert found["time"]["devices"] == layout["devices"] == 4
    assert (layout["rows"], layout["micro_batches"]) == (2, 1)
    assert found["time"]["days"] * 24 == pytest.approx(491.52 / 4 / 3600)
    (why,) = (a for a in found["assumptions"] if a["what"] == "micro-batch")
    assert "leaves 2 to each of 4 devices" in why["source"]
    error = fails(capsys, *asked, "--hours", "0.01")
    assert "asks for 14 devices, but a step has only 8 rows" in error


def test_an_adapter_on_four_bits_is_planned_without_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "--config",
        str(ROOT / "configs/model/llama2_7b.yaml"),
        "--max_tokens",
        "1e8",
        "--model.activation_checkpointing",
        "true",
    ]
    asked += [
        "--trainer.precision",
        "bf16-true",
        "--memory_gib",
        "24",
        "--device",
        "H100",
        "--data.seq_len",
        "2048",
    ]
    sft, lora, qlora = (
        plan(*asked, "--stage", stage)["memory"] for stage in ("sft", "lora", "qlora")
    )
    assert [memory["fits"] for memory in (sft, lora, qlora)] == [False, True, True]
    assert (
        0.25 < qlora["states"]["parameters"] / sft["states"]["parameters"] < 0.35
    )  # a quarter, and embedding, head and adapter whole
    assert plan(*asked, "--stage", "qlora")["loss"] is None
    assert main(["plan", *asked, "--stage", "qlora", "--png", str(tmp_path / "plan.png")]) == 0
    assert "not forecast" in capsys.readouterr().out
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_it_says_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SEVEN_B, "--data.micro_batch_size", "1"]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "would fit with" in text
    assert "FSDP" in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--data.seq_length", "512"], "data.seq_len"),
        (["--model.net.n_layers", "2"], "model.net.n_layer"),
        (["--model.schedule.warmups", "2%"], "warmup"),
        (["--model.optimizr", "AdamW"], "model.optimizer"),
        (["--trainer.device", "2"], "trainer.devices"),
        (["--goodputt", "0.5"], "goodput"),
        (["--goodput", "1.5"], "goodput"),
        (["--mfu", "40"], "share of the peak"),
        (["--law", "besiroglo"], "besiroglu"),
        (["--max_flops", "1e20"], "max_tokens and max_flops"),
        (["--data.seq_len", "9999"], "longer than the network's positions"),
        (["--png", "plan.pdf"], ".png"),
        (["--trainer.precision", "fp7"], "bf16-mixed"),
    ],
)
def test_mistakes_are_named(
    wrong: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, *SEVEN_B, *wrong)


def test_unknown_keys_of_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, says in (
        ({"data": {"micro_batchsize": 4}}, "micro_batch_size"),
        ({"model": {"schedule": {"knd": "wsd"}}}, "kind"),
        ({"trainer": {"strateg": "fsdp"}}, "strategy"),
        ({"modl": {}}, "model"),
    ):
        file = tmp_path / "wrong.yaml"
        file.write_text(yaml.safe_dump(content))
        assert says in fails(capsys, *SEVEN_B, "--config", str(file)), content


def test_an_unknown_device_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SEVEN_B[:4], "--device", "Abacus 3000"]) == 0
    found = capsys.readouterr()
    assert "'Abacus 3000' is not known" in found.err
    assert "not known" in found.out


def test_the_picture(tmp_path: Path) -> None:
    target = tmp_path / "new" / "plan.png"
    plan(*SEVEN_B, "--png", str(target))
    assert target.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in target.parent.iterdir()] == ["plan.png"]


def test_help_lists_the_options_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in PlanSettings.__dataclass_fields__:
        assert f"--{name} " in shown, name


PRETRAINED = [*sorted(CONFIGS.glob("pretrain/*.yaml")), CONFIGS / "chain/pretrain.yaml"]
NAMES = {"dpo": "dpo", "lora": "lora", "qlora": "qlora", "lora_dpo": "lora"}
POST_TRAINED = sorted(CONFIGS.glob("posttrain/*.yaml")) + sorted(CONFIGS.glob("finetune/*.yaml"))


@pytest.mark.parametrize("config", PRETRAINED, ids=lambda path: path.stem)
def test_a_plan_shows_no_loss_that_fit_does_not_forecast(config: Path) -> None:
    found = plan("--config", str(config), "--data.path", "nowhere")
    tokens, shown = found["length"]["tokens"], found["loss"]
    law = published_law("besiroglu")
    outside = law.outside(found["parameters"]["total"], tokens)
    assert (shown is None) == bool(outside)
    assert all(reason in found["no_loss"] for reason in outside)
    named = plan("--config", str(config), "--data.path", "nowhere", "--law", "besiroglu")
    assert named["loss"]["here"]["loss"] > 0
    assert named["no_loss"] is None


def test_among_the_runs_of_the_law_a_loss_is_shown() -> None:
    shape = str(CONFIGS / "model/llama_350m.yaml")
    found = plan("--config", shape, "--max_tokens", "7e9")
    assert 2 < found["loss"]["here"]["loss"] < 4


@pytest.mark.parametrize("config", POST_TRAINED, ids=lambda path: path.stem)
def test_configs_of_post_training_are_planned(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no rows
    configs = [config]
    if config.stem in ("lora", "qlora"):  # which name no data
        configs.append(CONFIGS / "finetune/rows.yaml")
    found = plan(*(f"--config={path}" for path in configs))
    warned = capsys.readouterr().err
    content = {}
    for path in configs:
        content |= yaml.safe_load(path.read_text())
    data = content["data"].get("init_args", content["data"])
    assert found["stage"]["name"] == NAMES.get(config.stem, "sft")
    assert found["loss"] is None
    assert found["memory"]["layout"]["seq_len"] == data["seq_len"]
    if "max_epochs" in content and "task" not in str(data["sources"]):
        assert "does not exist" in warned
        assert found["length"]["steps"] == 100
    else:
        assert found["length"]["steps"] == pytest.approx(content["max_steps"])


def test_epochs_are_counted_where_rows_are_at_hand(dataset: Path, tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"{n}?", "chosen": "yes", "rejected": "no"}) + "\n"
            for n in range(40)
        )
    )
    found = plan(
        "--config", str(CONFIGS / "posttrain/dpo.yaml"), "--max_epochs", "2",
        f"--data.init_args.sources={{mine: {{path: {rows}, format: preference}}}}",
        f"--data.init_args.tokenizer={dataset}", "--data.init_args.global_batch_rows=4",
        "--data.init_args.micro_batch_size=4", "--devices=2",
    )  # fmt: skip
    assert 10 <= found["length"]["steps"] <= 20  # two epochs of at most 40 rows, by 4
    assert found["length"]["tokens_per_step"] == 4 * 2 * 512
    assert found["memory"]["layout"]["rows"] == 4  # 2 pairs to each device
    assert found["memory"]["states"]["reference"] > 0


def test_products_in_fp8_have_their_own_peak() -> None:
    bf16, fp8 = plan(*SEVEN_B)["time"], plan(*SEVEN_B, "--dtype", "fp8")["time"]
    assert fp8["dtype"] == "fp8"
    assert fp8["peak_flops"] == pytest.approx(2 * bf16["peak_flops"], rel=0.01)


def run_fit(dataset: Path, tmp_path: Path, *options: str) -> int:
    common = [
        f"--data.path={dataset}",
        f"--runs={tmp_path}",
        "--name=run",
        "--trainer.accelerator=cpu",
        "--model.compile=off",
    ]
    short = [
        "--data.seq_len=32",
        "--data.micro_batch_size=2",
        "--data.global_batch_tokens=128",
        "--data.val_tokens=256",
        "--max_steps=2",
    ]
    return main(["fit", *QUICK, *common, *short, "--sample_tokens=2", *options])


HUGE = ["--model.net.n_layer=120", "--model.net.width=8192", "--model.net.n_head=64"]


def test_fit_refuses_what_cannot_fit_before_weights_are_made(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_fit(dataset, tmp_path, *HUGE) == 2
    )  # 97 B parameters: making them would take minutes and the machine
    error = capsys.readouterr().err
    assert "GiB at the peak of a step" in error
    assert "--allow_oom true" in error
    assert not (tmp_path / "run").exists()


def test_fit_says_its_memory_and_can_be_overruled(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lit_pretrain.cli.train.fit_plan.device_memory", lambda device: 1000.0)
    small = [
        "--model.net.n_layer=2",
        "--model.net.width=32",
        "--model.net.n_head=2",
        "--model.net.ffn_width=64",
    ]
    assert run_fit(dataset, tmp_path, *small) == 2
    assert run_fit(dataset, tmp_path, *small, "--allow_oom=true") == 0
    found = capsys.readouterr()
    assert "may run out of memory" in found.err
    assert "| memory 0.0" in found.out
    assert "loss not forecast (besiroglu: N" in found.out
    assert "GiB a device" in (tmp_path / "run" / "summary.md").read_text()


def test_the_memory_of_fit_is_asked_of_the_system() -> None:
    from lit_pretrain.cli.train.fit_plan import check_memory, device_memory
    from lit_pretrain.model.config import ModelConfig
    from lit_pretrain.scaling.memory import Layout

    limit = device_memory("cpu")
    assert limit is not None
    assert 1e8 < limit < 1e14
    rows = int(limit / 4 / 1e4)
    with pytest.raises(UserError, match="for each of 4 processes"):
        check_memory(
            ModelConfig(),
            Layout(rows=rows, seq_len=2048, devices=4, sharding="ddp", device="cpu"),
            ranks_here=4,
            allow=False,
        )


LLAMA3 = ["--config", str(ROOT / "configs/model/llama3_8b.yaml"), "--max_tokens", "1e12"]
AUTO = ["--devices", "64", "--device", "H100", "--layout", "auto", "--data.global_batch_tokens"]


def test_a_layout_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """What is to be set gives a plan with the memory that the search has found."""
    found = plan(*LLAMA3, *AUTO, "4194304")
    best = found["layouts"]["best"]
    assert len(best) == 3
    assert [choice["mfu"] for choice in best] == sorted(
        (choice["mfu"] for choice in best), reverse=True
    )
    assert found["time"]["mfu"] == pytest.approx(best[0]["mfu"])
    assert all(other["relative"] < 1 and other["why"] for other in found["layouts"]["slower"])
    options = [f"--parallel.{axis}={size}" for axis, size in best[0]["parallel"].items()]
    again = plan(
        *LLAMA3, "--devices=64", "--device=H100", "--data.global_batch_tokens=4194304", *options,
        f"--data.micro_batch_size={best[0]['micro_batch_size']}",
        f"--model.activation_checkpointing={best[0]['activation_checkpointing']}",
    )["memory"]  # fmt: skip
    assert again["peak"] == found["memory"]["peak"]
    assert again["peak"] + again["overhead"] == pytest.approx(best[0]["bytes"])
    assert main(["plan", *LLAMA3, *AUTO, "4194304"]) == 0
    table = capsys.readouterr().out
    assert "to set" in table
    assert "because" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout=auto"], "the kind of the devices and their number"),
        ([*AUTO, "4194304", "--parallel.tp=2"], "leave them out"),
        ([*AUTO, "4194304", "--stage=dpo"], "a step of pretraining; the config plans dpo"),
        ([*AUTO, "4194304", "--device=TPU v5p"], "the links of TPU v5p are not known"),
        ([*AUTO, "4194304", "--memory_gib=4"], "no layout of 64 devices fits: the smallest"),
        ([*AUTO, "4194304", "--network_gbits=0"], "network_gbits=0 must be positive"),
        ([*AUTO, "4194304", "--machine_devices=0"], "machine_devices=0 must be at least 1"),
        (["--max_tokens=1e9", "--devices=0"], "devices=0 must be at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layout_that_cannot_be_chosen(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *LLAMA3, *options)
