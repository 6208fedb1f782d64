"""The commands of the guides, of the README and of the heads of configs: every one is accepted by
the parser of its verb, and, marked slow, those that can be run do run on what the quickstart left.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.network import find_parent
from lit_pretrain.cli.command.parser import VerbParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
HEADS = sorted((ROOT / "configs").rglob("*.yaml"))


def blocks(page: Path) -> Iterator[list[str]]:
    """The commands of each block of a page, without comments and what they print."""
    text = page.read_text(encoding="utf-8")
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M):
        if kind not in ("", "bash"):
            continue
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        starts = (
            "lit_pretrain ", "python ", "bash ", "printf ", "$ ", "srun ", "torchrun ", "TORCH_",
        )  # fmt: skip
        commands = [re.split(r"\s+#\s", line)[0] for line in lines if line.startswith(starts)]
        if commands:
            yield [command.removeprefix("$ ") for command in commands]


def of_ours(command: str) -> list[str] | None:
    """Arguments of `lit_pretrain` in a command, also behind a pipe or a launcher."""
    found = re.search(r"(?:^|\| |^srun |-m )lit_pretrain (.*)", command)
    return shlex.split(found[1]) if found else None


def own_files(page: Path) -> dict[str, str]:
    """The Python files of the user's that a page shows: blocks that begin with the file's name."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, flags=re.S | re.M)
    return dict(found)


def heads() -> Iterator[tuple[str, str]]:
    for config in HEADS:
        text = re.sub(r"\\\n#\s*", "", config.read_text(encoding="utf-8"))
        for line in text.splitlines():
            if re.match(r"#\s+lit_pretrain ", line):
                yield config.stem, re.split(r"\s{2,}", line.lstrip("# "))[0]


SAID = [
    *((page.stem, command) for page in PAGES for block in blocks(page) for command in block),
    *heads(),
]
OURS = list({command: where for where, command in SAID if of_ours(command)}.items())
NOT_PARSED = {
    "lit_pretrain doctor": "has no options here: tests/cli/test_doctor.py",
    "validate --run runs/grpo": "has the options of a run that only the slow test makes",
}


class Parsed(BaseException):
    """The arguments were accepted."""


def write_own_files(folder: Path) -> None:
    for page in PAGES:
        for name, text in own_files(page).items():
            (folder / name).write_text(text)


@pytest.fixture(scope="module")
def laid_out(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's folder, with the configs of a run and a law that commands name."""
    folder = tmp_path_factory.mktemp("guides")
    shutil.copytree(quickstart, folder, dirs_exist_ok=True)
    write_own_files(folder)
    return folder


@pytest.mark.parametrize(
    ("command", "where"), OURS, ids=[f"{i}-{where}" for i, (_, where) in enumerate(OURS)]
)
def test_the_parser_accepts_every_command(
    command: str,
    where: str,
    laid_out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for part, reason in NOT_PARSED.items():
        if part in command:
            pytest.skip(f"{part} {reason}")
    depth = 0
    parse_args = VerbParser.parse_args

    def parse_only(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal depth
        depth += 1
        parsed = parse_args(self, *args, **options)
        depth -= 1
        if depth == 0:
            raise Parsed
        return parsed

    def parent(where: str) -> Any:  # those that the commands before this one would have made
        return find_parent("runs/quickstart")

    monkeypatch.setattr(VerbParser, "parse_args", parse_only)
    monkeypatch.setattr("lit_pretrain.cli.train.train_cli.find_parent", parent)
    monkeypatch.chdir(laid_out)
    arguments = of_ours(command)
    assert arguments is not None
    try:
        code = main(arguments)
    except Parsed:
        return
    except SystemExit as stop:
        code = int(stop.code or 0)
    pytest.fail(f"{where}: {command}\nended with {code}: {capsys.readouterr().err}")


LAUNCHED = [
    command
    for command, _ in OURS
    if "--trainer.devices" in command and (of_ours(command) or [""])[0] == "fit"
]


@pytest.mark.parametrize("command", LAUNCHED, ids=range(len(LAUNCHED)))
def test_a_plan_divides_what_a_launch_line_starts(
    command: str, laid_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that a launcher starts are those that the run is divided over."""
    monkeypatch.chdir(laid_out)
    _, *options = of_ours(command) or []
    words = shlex.split(command)
    at_hand = {name: words[words.index(name) + 1] for name in words if name.startswith("--trainer")}
    if "torchrun" in command:
        own = words[words.index("torchrun") + 1 :]
        launcher = get_args_parser().parse_args(own)
        nodes = 1 if launcher.standalone else int(launcher.nnodes)
        assert launcher.nproc_per_node == at_hand["--trainer.devices"]
        assert nodes == int(at_hand.get("--trainer.num_nodes", 1))
        assert launcher.training_script == "lit_pretrain"
        assert launcher.module
    only_fit = {"--name": 1, "--resume": 1, "--max_restarts": 1}
    kept, skip = [], 0
    for option in options:
        skip = only_fit.get(option, 0) + 1 if option in only_fit else skip
        kept += [] if skip else [option]
        skip = max(0, skip - 1)
    assert main(["plan", *kept]) == 0


def test_there_are_commands() -> None:
    assert len(OURS) > 60
    assert {where for _, where in OURS} >= {page.stem for page in PAGES} - {
        "dedup_scale",
        "python",
        "quality",
        "tensorboard",
    }
    verbs = {(of_ours(command) or [""])[0] for command, _ in OURS}
    assert verbs >= {"fit", "posttrain", "finetune", "plan", "scaling", "prepare", "runs", "serve"}


# ------------------------------------------------------------------ running them

SHORT = {
    "fit": [
        "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.net.ffn_width=64", "--max_tokens=null", "--max_steps=2",
    ],
    "posttrain": ["--max_epochs=null", "--max_steps=1"],
    "finetune": ["--max_epochs=null", "--max_steps=1"],
    "chat": ["--max_new_tokens=2"],
    "generate": ["--max_new_tokens=2"],
    "evaluate": ["--limit=4"],
    "sweep": [
        "--set={model: {net: {n_layer: 1, width: 32, n_head: 2, ffn_width: 64}, compile: 'off'},"
        " data: {seq_len: 64, val_tokens: 512}, max_steps: 2, sample_prompts: [],"
        " trainer: {accelerator: cpu}}"
    ],
}  # fmt: skip
TRAINING = ["--model.compile=off", "--sample_prompts=[]", "--trainer.accelerator=cpu"]
TEXT = ["--data.seq_len=64", "--data.global_batch_tokens=512", "--data.val_tokens=512"]
ROWS = ["--data.init_args.micro_batch_size=2", "--data.init_args.validation=0.01"]
SMALLER = {
    "step=00000300": "step=00000001",
    "from_tokens: 245_760": "from_tokens: 512",
    "--model.ema_half_life 65536": "--model.ema_half_life 512",
    "--splits.validation 0.04 --splits.test 0.02": "--splits.validation 0.1 --splits.test 0.05",
}
"""What a command says of the quickstart's run and data, for the smaller ones of the fixture."""
NOT_RUN = {
    "serve": "a server: tests/cli/serve",
    "--engine": "needs a cluster: tests/prepare/engine",
    "chinchilla_epoch_245": "a table that is not here",
    "isoflops_cs336": "a table that is not here",
    "law.json": "made of a table that is not here",
    "open_100mb": "60 MB of packages: tests/test_readme.py",
    "--trainer.devices": "tests/test_readme.py",
    "models/base": "tests/test_readme.py",
    "texts": "tests/test_readme.py",
    "check-transfer": "minutes: tests/cli/test_check_transfer.py",
    "scripts/addition.py": "minutes: tests/scripts/test_addition.py",
    "convert_own.py": "needs llama.cpp",
    "--data.phases '[{from_tokens: 0": "20 million tokens",
    "embedded.yaml": "another standard library: tests/test_readme.py",
    "--skip_steps": "tests/test_skips.py",
    "--name gentler": "tests/test_resume.py",
    "average runs/big": "twelve checkpoints: tests/checkpoint/test_weighted_mean.py",
    "bash ": "a script with a test of its own",
}


def shortened(arguments: list[str]) -> list[str]:
    verb = arguments[0]
    short = [*arguments, *SHORT.get(verb, [])]
    if "--fork" in arguments:  # the network is that of the checkpoint
        short = [option for option in short if not option.startswith("--model.net")]
    batch = arguments[:2] == ["inspect", "batch"]
    if verb in ("fit", "posttrain", "finetune") or batch:
        given = " ".join(arguments)
        rows = re.search(r"posttrain/|rows\.yaml|lora_dpo", given)
        short += [] if batch else TRAINING
        short += ROWS if rows else TEXT
    return short


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_commands_of_a_guide_run_in_order(
    page: Path,
    quickstart: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(quickstart, tmp_path, dirs_exist_ok=True)
    for name in ("scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for command in (command for block in blocks(page) for command in block):
        if any(part in command for part in NOT_RUN):
            continue
        for large, small in SMALLER.items():
            command = command.replace(large, small)
        arguments = of_ours(command)
        if arguments is None:
            words = shlex.split(command)
            assert words[0] == "python", f"do not know how to run {command!r}"
            subprocess.run([sys.executable, *words[1:]], check=True, env=os.environ)
            continue
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        code = main(shortened(arguments))
        shown = capsys.readouterr()
        assert code == 0, f"{page.name}: {command}\n{shown.out}\n{shown.err}"
