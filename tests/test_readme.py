"""Every command that the README shows in a `bash` block runs, in order, on a small dataset and
with a short run.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from lit_pretrain.__main__ import main
from lit_pretrain.prepare.prepare_config import TokenizerConfig
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.ffn_width=64", "--model.compile=off",
    "--data.seq_len=32", "--data.global_batch_tokens=256", "--data.val_tokens=256", "--log_every=1",
    "--sample_tokens=2", "--trainer.accelerator=cpu",
]  # fmt: skip
WHOLE_SCRIPTS = {"bash scripts/quickstart.sh", "bash scripts/test.sh", "bash scripts/corpus.sh"}
"""The first is run by tests/scripts/test_quickstart.py, the second contains this test, and the
third fetches 60 MB of packages: a small corpus is laid in its place.
"""
POST_TRAINING = [
    "--max_steps=2",
    "--max_epochs=null",
    "--log_every=1",
    "--data.init_args.micro_batch_size=2",
    "--data.init_args.validation=0.02",
    "--trainer.accelerator=cpu",
]


def commands() -> list[str]:
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S):
        joined = block.replace("\\\n", " ")
        found += [
            line.split("  #")[0].strip()
            for line in joined.splitlines()
            if line.strip() and not line.startswith("#")
        ]
    return found


def test_the_readme_opens_with_the_two_commands() -> None:
    assert commands()[:2] == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    for command in WHOLE_SCRIPTS:
        script = ROOT / command.split()[1]
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_every_other_command_runs(
    small_library: Path,
    make_corpus: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "texts").mkdir()
    make_corpus(tmp_path / "corpus")
    for i in range(40):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"The story of number {i}. " * 40)
    LlamaForCausalLM(  # what the README calls models/base
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    ).save_pretrained(tmp_path / "models/base")
    train_bpe(["The story of number 12. " * 40] * 2, TokenizerConfig(vocab_size=270)).save(
        tmp_path / "models/base"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    monkeypatch.chdir(tmp_path)
    ran = 0
    for command in commands():
        if command in WHOLE_SCRIPTS:
            continue
        words = [w.replace(".venv/bin/", "") for w in shlex.split(command)]
        if (
            words[0] == "tensorboard"
        ):  # a server: tests/scripts/test_picture.py starts it and looks at it
            continue
        if words[:2] == ["lit_pretrain", "serve"]:  # another: tests/cli/serving
            continue
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
            continue
        assert words[0] == "lit_pretrain", f"do not know how to test {command!r}"
        if words[1] == "posttrain" or "configs/finetune/rows.yaml" in words:
            words += POST_TRAINING
        elif words[1] in ("fit", "finetune"):
            # A later option wins over an earlier one; the shape of a child is its parent's.
            words += [
                option
                for option in SHORT
                if words[1] == "fit" or not option.startswith("--model.net")
            ]
            words += ["--max_steps=2"]
        if words[1] in ("generate", "chat"):
            words += ["--max_new_tokens=4"]
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        embedded = words[1:3] == ["prepare", "--config"] and (
            "embedded" in words[3] or "open_100mb" in words[3]
        )
        if embedded:
            words += ["--tokenizer.vocab_size=512"]
        if (
            embedded or "--trainer.devices" in words
        ):  # another standard library, or more processes that are copies of this one
            program = [str(small_library)] if embedded else ["-m", "lit_pretrain"]
            done = subprocess.run(
                [sys.executable, "-W", "ignore", *program, *words[1:]], env=environment,
                capture_output=True, text=True,
                timeout=300, check=False,
            )  # fmt: skip
            code, output = done.returncode, f"{done.stdout}\n{done.stderr}"
        else:  # within this process, which saves the imports of each
            code, output = main(words[1:]), "".join(capsys.readouterr())
        assert code == 0, f"{command}\n{output}"
        ran += 1
    assert ran >= 20


def test_it_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists(), path
