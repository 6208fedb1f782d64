"""`parallel: auto`: `fit` divides its devices as `plan --layout auto` says."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.train import auto_parallel
from lit_pretrain.cli.train.train_cli import TrainCLI
from lit_pretrain.errors import UserError

SMALL = (
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=64", "--data.seq_len=32", "--data.global_batch_tokens=512",
    "--model.compile=off", "--trainer.accelerator=cpu", "--trainer.precision=bf16-mixed",
)  # fmt: skip


@pytest.fixture
def on_h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let runs take this machine's devices for H100s."""
    monkeypatch.setattr(auto_parallel, "gpu_name", lambda accelerator: "NVIDIA H100 80GB HBM3")
    monkeypatch.chdir(tmp_path)


def chosen(dataset: Path, *options: str) -> TrainCLI:
    cli = TrainCLI.__new__(TrainCLI)
    with pytest.MonkeyPatch.context() as patch:
        # Of the resolved config alone; a Trainer of eight devices would look for them.
        patch.setattr(TrainCLI, "instantiate_classes", lambda self: None)
        cli.__init__("fit", [f"--data.path={dataset}", "--max_steps=4", *SMALL, *options])  # type: ignore[misc]
    cli.lock.release()
    return cli


@pytest.mark.usefixtures("on_h100")
def test_it_is_the_layout_of_the_plan(dataset: Path) -> None:
    cli = chosen(dataset, "--parallel=auto", "--trainer.devices=8")
    sizes = cli.config.parallel
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([
            "plan", f"--data.path={dataset}", "--max_steps=4", *SMALL, "--devices=8",
            "--device=H100", "--layout=auto", "--json",
        ]) == 0  # fmt: skip
    best = json.loads(out.getvalue())["layouts"]["best"][0]
    assert {axis: sizes[axis] for axis in best["parallel"]} == best["parallel"]
    assert cli.config.data.micro_batch_size == best["micro_batch_size"]
    assert cli.config.model.activation_checkpointing == best["activation_checkpointing"]
    assert cli.chosen is not None
    assert best["mesh"] in cli.chosen
    # The saved config says the sizes, so that whoever runs it again needs no such GPU.
    assert cli.plain_config()["parallel"]["dp_shard"] == best["parallel"]["dp_shard"]


@pytest.mark.usefixtures("on_h100")
def test_a_config_that_says_auto_is_planned_with_the_search(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "auto.yaml").write_text("parallel: auto\n")
    common = [f"--data.path={dataset}", "--max_steps=4", *SMALL, "--devices=8", "--device=H100"]
    found: list[dict[str, Any]] = []
    for options in (["--config=auto.yaml"], ["--layout=auto"]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["plan", *options, *common, "--json"]) == 0
        found.append(json.loads(out.getvalue()))
    assert found[0]["layouts"] == found[1]["layouts"]


@pytest.mark.usefixtures("on_h100")
def test_one_device_gets_a_micro_batch_and_trains(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", f"--data.path={dataset}", "--max_steps=2", *SMALL, "--parallel=auto"]
    assert main([*arguments, "--trainer.devices=1", "--sample_prompts=[]", "--name=a"]) == 0
    said = capsys.readouterr()
    assert "parallel=auto: 16 rows a device" in f"{said.out}{said.err}"
    config = yaml.safe_load((tmp_path / "runs" / "a" / "config.yaml").read_text())
    assert config["parallel"] is None
    assert config["data"]["micro_batch_size"] == 16


@pytest.mark.usefixtures("on_h100")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.strategy=ddp"], "both say how devices divide the work"),
        (["--trainer.devices=3"], "cannot be divided over 3 devices"),
        (["--model.objective=DPO"], "knows the time of a step of pretraining alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_chosen(options: list[str], message: str, dataset: Path) -> None:
    with pytest.raises(UserError, match=message):
        chosen(dataset, "--parallel=auto", *options)


def test_without_a_gpu_sizes_are_asked_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"trains on none: .* --parallel\.dp_shard auto"):
        chosen(dataset, "--parallel=auto")
    monkeypatch.setattr(auto_parallel, "gpu_name", lambda accelerator: "Some GPU 9000")
    with pytest.raises(UserError, match="trains on Some GPU 9000"):
        chosen(dataset, "--parallel=auto")
