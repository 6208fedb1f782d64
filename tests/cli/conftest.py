"""A small run that can be talked with, and a stand-in for the runs of sweeps."""

import sys
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.cli.sweep import launch


@pytest.fixture(scope="session")
def chat_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, of a run over conversations in ChatML that learned next to nothing; not to be
    changed.
    """
    runs = tmp_path_factory.mktemp("runs")
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.net.max_seq_len=128",
        "--model.compile=off", "--data.class_path=lit_pretrain.data.ChatData",
        "--data.init_args.sources={sums: {task: {name: addition, digits: 1, rows: 40}}}",
        f"--data.init_args.tokenizer={dataset}", "--data.init_args.seq_len=64",
        "--data.init_args.global_batch_rows=4",
        "--data.init_args.validation=0.2", "--max_steps=1", "--sample_prompts=[]",
        "--trainer.accelerator=cpu", f"--runs={runs}",
        "--name=talker",
    ])  # fmt: skip
    assert code == 0
    return runs / "talker"


# A stand-in for `lit_pretrain fit`, which takes seconds to start: it reads the config and leaves
# what a run leaves.
PRETENDED = """
import json, signal, sys, time
from pathlib import Path
import yaml
config = yaml.safe_load(Path(sys.argv[1]).read_text())
run = Path(config["runs"]) / config["name"]
run.mkdir(exist_ok=True)
(run / "config.yaml").write_text("{}")
class Stop(Exception): pass
def stop(number, frame): raise Stop
signal.signal(signal.SIGTERM, stop)
with (run.parent / "made.txt").open("a") as file:
    file.write(config["name"] + "\\n")
try:
    seconds = run.parent / "seconds"
    time.sleep(float(seconds.read_text()) if seconds.exists() else 0)
except Stop:
    print("error: stopped by SIGTERM after step 3; saved")
    sys.exit(75)
codes = run.parent / "codes"
code = json.loads(codes.read_text()).get(config["name"], 0) if codes.exists() else 0
print("error: it went wrong" if code else f"done: {run}: val loss 3.0000", flush=True)
if not code:
    line = {"step": config["max_steps"], "throughput/flops_per_second": 1e9, "val/loss": 3.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
    (run / "summary.md").write_text("")
sys.exit(code)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let sweeps make their runs by the stand-in; its script, `pretended.py`."""
    script = tmp_path / "pretended.py"
    script.write_text(PRETENDED)
    monkeypatch.setattr(
        launch,
        "training_command",
        lambda config, devices, launched: [sys.executable, str(script), str(config)],
    )
    return script
