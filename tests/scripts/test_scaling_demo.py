"""The scaling demonstration: the real script and configs; runs come from a law instead of hours
of training.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the sweep is told to put before the command of every run: it makes the run folder in its
# place.
LAUNCHER = """
import json, sys
from pathlib import Path
import yaml
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.forecast import expected
from lit_pretrain.scaling.flops import flops_per_token
config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
net = {**config["model"]["net"], "vocab_size": 1024}
run = Path(config["runs"]) / config["name"]
run.mkdir()
kept = {"model": {"net": net}, "max_steps": config["max_steps"]}
(run / "config.yaml").write_text(yaml.safe_dump(kept))
counts = count_parameters(ModelConfig(**net))
n, d = counts.total, config["max_steps"] * config["data"]["global_batch_tokens"]
loss = (1.5 + 37.6 / n**0.35 + 144 / d**0.35) * (1 + 0.001 * ((n + d) % 7 - 3) / 3)
flops = d * flops_per_token(ModelConfig(**net), 128).training
line = {
    "step": config["max_steps"], "val/loss": loss, "val/bits_per_byte": loss / 2,
    "progress/tokens": d, "progress/flops": flops,
}
(run / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
(run / "provenance.json").write_text(json.dumps({"unique_tokens": d}))
summary = "plan: no forecast"
if config.get("forecast"):
    forecast = expected(counts, d, given=config["forecast"]).text
    summary = f"| forecast | {forecast}; actual {loss:.4f} |"
(run / "summary.md").write_text(summary + "\\n")
print(f"done: {run}: val loss {loss:.4f}")
"""


def demo(checkout: Path) -> "subprocess.CompletedProcess[str]":
    launcher = f"{sys.executable} {checkout / 'launcher.py'}"
    environment = os.environ | {"VENV": "env", "OMP_NUM_THREADS": "1", "SCALING_LAUNCHER": launcher}
    script = str(checkout / "scripts" / "scaling_demo.sh")
    return subprocess.run(
        ["bash", script],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.mark.slow
def test_from_nothing_to_a_forecast_and_what_came_of_it(
    small_library: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "scaling_demo.sh", checkout / "scripts")
    (checkout / "scripts" / "setup.sh").write_text('echo "setup: ready"\n')
    (checkout / "launcher.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{LAUNCHER}"
    )
    shutil.copytree(ROOT / "configs", checkout / "configs")
    (checkout / "env" / "bin").mkdir(parents=True)
    program = checkout / "env" / "bin" / "lit_pretrain"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore "{small_library}" "$@"\n')
    program.chmod(0o755)

    first = demo(checkout)
    assert first.returncode == 0, first.stdout + first.stderr
    runs = checkout / "runs"
    assert len(list((runs / "scaling").glob("*/summary.md"))) == 15
    assert (
        sorted(path.name for path in (runs / "scaling" / "figures").iterdir())[0] == "bootstrap.png"
    )
    assert (runs / "scaling" / "runs.csv").read_text().count("\n") == 16
    assert "a (N* ~ C^a)" in first.stdout
    assert "by law.json; actual" in first.stdout.split("what came of it:")[1]

    again = demo(checkout)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "val loss" not in again.stdout.split("forecast before")[0]  # nothing is made twice
