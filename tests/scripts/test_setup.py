"""Set-up: one resolve, torchvision mended, one clear line where nothing can be mended, and safe to
run twice.

The real script runs in a checkout of its own, with a Python in place that makes an environment
without packages and records what pip is asked.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for `python3`, and, once `-m venv` has been asked for, for the environment's own. What
# cannot be imported is listed in $BROKEN.
PYTHON = """#!{python}
import os, pathlib, subprocess, sys
argv, state = sys.argv[1:], pathlib.Path(os.environ["STATE"])
broken = state / "broken"
with (state / "calls").open("a") as calls:
    calls.write(" ".join(argv).split("\\n")[0] + "\\n")
if argv[:2] == ["-m", "venv"]:
    venv = pathlib.Path(argv[-1])
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "site").mkdir(exist_ok=True)
    (venv / "pyvenv.cfg").write_text("")
    (venv / "bin" / "activate").write_text("")
    (venv / "bin" / "python").write_text(pathlib.Path(__file__).read_text())
    (venv / "bin" / "python").chmod(0o755)
elif argv[:2] == ["-m", "pip"]:
    if "install" in argv:
        sys.exit(int(os.environ.get("PIP_FAILS", "0")))
    if "uninstall" in argv and broken.exists() and "MENDABLE" in os.environ:
        broken.unlink()
elif "import torch, lightning, litdata" in " ".join(argv):
    if broken.exists():
        print(broken.read_text())
        sys.exit(1)
    print("torch 2.13.0+cpu, lightning 2.6.6, litdata 0.2.76")
elif "torch.compile" in " ".join(argv):
    if "COMPILER" in os.environ:
        print(os.environ["COMPILER"])
        sys.exit(1)
elif "purelib" in " ".join(argv):
    print(pathlib.Path(sys.argv[0]).parent.parent / "site")
elif argv == ["--version"]:
    print("Python 3.11.7")
else:
    sys.exit(subprocess.call(["{python}", *argv]))
"""
OPERATORS = "RuntimeError: operator torchvision::nms does not exist"


class Checkout:
    """A copy of what set-up reads, and a machine whose only Python is the one above."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder / "checkout", folder / "state"
        (self.folder / "scripts").mkdir(parents=True)
        self.state.mkdir()
        shutil.copy(ROOT / "scripts" / "setup.sh", self.folder / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.python = self.state / "python3"
        self.python.write_text(PYTHON.format(python=sys.executable))
        self.python.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        ours = ("VENV", "PYTHONPATH", "TORCH_INDEX_URL")
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in ours and not key.startswith("PIP_")
        }
        settings = inherited | {"STATE": str(self.state), "PYTHON": str(self.python)} | environment
        command = ["bash", "scripts/setup.sh", *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def installs(self) -> list[str]:
        return [line for line in self.calls() if line.startswith("-m pip install")]

    def calls(self) -> list[str]:
        file = self.state / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_it_installs_once_and_twice_is_nothing_to_do(checkout: Checkout) -> None:
    first = checkout.run("dev")
    assert first.returncode == 0, first.stderr
    assert (
        first.stdout.splitlines()[-1]
        == "setup: ready: torch 2.13.0+cpu, lightning 2.6.6, litdata 0.2.76"
    )
    assert len(checkout.installs()) == 1  # one resolve for all
    assert checkout.installs()[0].endswith("-e .[dev]")
    second = checkout.run()
    assert second.stdout.splitlines() == [
        "setup: .venv is up to date: torch 2.13.0+cpu, lightning 2.6.6, litdata 0.2.76"
    ]
    assert len(checkout.installs()) == 1
    with (checkout.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert checkout.run().returncode == 0
    assert len(checkout.installs()) == 2
    assert checkout.installs()[1].endswith("-e .[dev]")  # an extra that was asked for stays


def test_torch_and_litdata_are_named_in_one_resolve() -> None:
    (block,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.S | re.M
    )
    names = re.findall(r'^\s*"([\w-]+)', block, flags=re.M)
    assert {"torch", "litdata", "lightning"} <= set(names)
    assert "torchvision" not in names


def test_a_torchvision_that_does_not_match_is_removed(checkout: Checkout) -> None:
    (checkout.state / "broken").write_text(OPERATORS)
    done = checkout.run(MENDABLE="1")
    assert done.returncode == 0, done.stderr
    assert "torchvision does not match this torch build; removing it" in done.stdout
    assert "-m pip uninstall -qq --yes torchvision" in checkout.calls()
    assert done.stdout.splitlines()[-1].startswith("setup: ready: torch")


def test_what_cannot_be_mended_is_said_and_tried_again_next_time(checkout: Checkout) -> None:
    (checkout.state / "broken").write_text(
        "ImportError: libgomp.so.1: cannot open shared object file"
    )
    done = checkout.run()
    assert done.returncode == 1
    error = done.stderr.splitlines()
    assert (
        error[0] == "setup: FAILED: 'import torch, lightning, litdata' does not work: ImportError:"
        " libgomp.so.1: cannot open shared object file"
    )
    assert len(error) == 2  # what failed, and what to do
    assert not any("uninstall" in call for call in checkout.calls())
    (checkout.state / "broken").unlink()
    assert checkout.run().returncode == 0
    assert len(checkout.installs()) == 2  # nothing was taken for whole


def test_a_compiler_that_does_not_work_is_said_and_does_not_stop_it(checkout: Checkout) -> None:
    done = checkout.run(COMPILER="InvalidCxxCompiler: No working C++ compiler found")
    assert done.returncode == 0, done.stderr
    said, ready = done.stdout.splitlines()[-2:]
    assert said.startswith(
        "setup: torch.compile does not work here: InvalidCxxCompiler: No working C++ compiler"
        " found; training works without"
    )
    assert ready.startswith("setup: ready: torch")


def test_an_install_that_fails_stops_with_one_line(checkout: Checkout) -> None:
    done = checkout.run(PIP_FAILS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "setup: pip could not install the packages (see above); check the network or the package"
        " index, and run again"
    ]
    assert not (checkout.folder / ".venv" / ".lit_pretrain_stamp").exists()


def test_what_a_killed_pip_left_is_swept_up(checkout: Checkout) -> None:
    assert checkout.run().returncode == 0
    site = checkout.folder / ".venv" / "site"
    (site / "~orch").mkdir()
    (site / "half-1.0.dist-info").mkdir()
    (site / "whole-1.0.dist-info").mkdir()
    (site / "whole-1.0.dist-info" / "RECORD").write_text("")
    (checkout.folder / ".venv" / ".lit_pretrain_stamp").unlink()
    assert checkout.run().returncode == 0
    assert [path.name for path in site.iterdir()] == ["whole-1.0.dist-info"]


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (
            ["devel"],
            {},
            (
                "setup: there is no extra 'devel'; pyproject.toml lists them under"
                " optional-dependencies"
            ),
        ),
        (
            [],
            {"PYTHON": "/nowhere/python3"},
            "setup: no Python 3.10-3.13 found (looked for: /nowhere/python3)",
        ),
        (
            [],
            {"VENV": "scripts"},
            (
                "setup: scripts is there but is not a virtual environment; remove it, or set VENV"
                " to another place"
            ),
        ),
    ],
)
def test_mistakes_are_one_line(
    checkout: Checkout, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    done = checkout.run(*arguments, **environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(says)
    assert checkout.installs() == []


def test_another_index_for_torch_goes_to_the_same_resolve(checkout: Checkout) -> None:
    assert checkout.run(TORCH_INDEX_URL="http://127.0.0.1:9/cpu").returncode == 0
    (install,) = checkout.installs()
    assert "--extra-index-url http://127.0.0.1:9/cpu" in install
    assert install.endswith("-e .")


@pytest.mark.slow
def test_the_trial_of_the_compiler_makes_what_a_run_needs(dataset: Path, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++ on this machine")
    (trial,) = re.findall(
        r"-c '(import torch\ntorch\.set_num_threads.*?)'",
        (ROOT / "scripts" / "setup.sh").read_text(),
        flags=re.S,
    )
    (cache := tmp_path / "cache").mkdir()
    inherited = {
        key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"
    }
    environment = inherited | {
        "TMPDIR": str(cache),
        "OMP_NUM_THREADS": "1",
    }  # the header lies in the default place whatever the setting says
    subprocess.run([sys.executable, "-c", trial], env=environment, check=True, timeout=240)
    headers = {file: file.stat().st_mtime_ns for file in cache.rglob("*.gch")}
    assert headers
    sizes = [
        "--model.net.n_layer=1",
        "--model.net.width=32",
        "--model.net.n_head=2",
        "--model.net.ffn_width=64",
        "--data.seq_len=32",
    ]
    steps = [
        "--max_steps=1",
        "--data.micro_batch_size=4",
        "--data.global_batch_tokens=128",
        "--data.val_tokens=128",
        "--sample_prompts=[]",
    ]
    command = [
        sys.executable,
        "-m",
        "lit_pretrain",
        "fit",
        *sizes,
        *steps,
        "--model.compile=on",
        "--trainer.accelerator=cpu",
    ]
    places = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=run"]
    subprocess.run([*command, *places], cwd=ROOT, env=environment, check=True, timeout=240)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.gch")} == headers
