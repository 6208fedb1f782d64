"""Evaluate: validate says what training said, for the last and the best checkpoint, and writes
it down where asked.
"""

import errno
import json
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.compile=off", "--data.seq_len=32",
        "--data.micro_batch_size=8", "--data.global_batch_tokens=256", "--data.val_tokens=1024",
        "--max_steps=4", "--validate_every=2",
        "--checkpoint_every=2", "--sample_prompts=[]", "--trainer.accelerator=cpu",
        f"--data.path={dataset}", f"--runs={runs}",
        "--name=run",
    ])  # fmt: skip
    assert code == 0
    return runs / "run"


def test_the_figures_are_those_of_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = {line["step"]: line for line in read_metrics(run) if "val/loss" in line}
    record = run / "checkpoints" / "best.json"
    record.write_text(
        json.dumps({"checkpoint": "step=00000002.ckpt", "loss": 0.0, "step": 2})
    )  # another one than the last
    for which, step in (("last", 4), ("best", 2)):
        capsys.readouterr()
        assert (
            main(
                [
                    "validate",
                    f"--run={run}",
                    f"--checkpoint={which}",
                    f"--json={tmp_path / which}.json",
                ]
            )
            == 0
        )
        figures = json.loads((tmp_path / f"{which}.json").read_text())
        for key in [key for key in trained[step] if key.startswith("val")]:
            assert figures[key] == pytest.approx(trained[step][key], rel=1e-5), key
        out = capsys.readouterr().out
        assert f"step={step:08d}.ckpt on the validation split" in out
        assert f"{figures['val/loss']:10.4f} {figures['val/bits_per_byte']:10.4f}" in out
    assert figures["val/loss"] != pytest.approx(
        trained[4]["val/loss"], rel=1e-4
    )  # the two can be told apart


def test_a_folder_of_hugging_face_is_sent_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["validate", f"--run={tmp_path}"]) == 2
    assert f"make a run of it: lit_pretrain import {tmp_path} runs/NAME" in capsys.readouterr().err


def test_neither_last_nor_best(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", f"--run={run}", "--checkpoint=newest"]) == 2
    assert "--checkpoint='newest' must be last or best" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "option"), [("validate", "--json"), ("test", "--json"), ("evaluate", "--report")]
)
def test_figures_that_cannot_be_written(
    verb: str, option: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, f"--run={run}", f"{option}=/dev/null/figures.json"]) == 2
    shown = capsys.readouterr()
    assert "/dev/null/figures.json cannot be written" in shown.err
    assert "bits" not in shown.out  # nothing was measured in vain


def test_events_that_cannot_be_written(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", refuse)
    assert main(["evaluate", str(run), f"--report={tmp_path / 'report.json'}"]) == 2
    assert "leave them out with --tensorboard=false" in capsys.readouterr().err
