"""Completion on Tab, in a real bash."""

import shlex
import shutil
import subprocess

import pytest

from lit_pretrain.cli.completion import completion_script, declared_verbs
from tests.test_cli import COMMANDS, here

bash = shutil.which("bash")
pytestmark = pytest.mark.skipif(bash is None, reason="there is no bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """What `lit_pretrain completion bash` prints, in a file."""
    path = tmp_path_factory.mktemp("completion") / "lit_pretrain.bash"
    result = here("completion", "bash")
    assert (result.code, result.err) == (0, "")
    path.write_text(result.out)
    return path


def completed(script, *words):
    """What bash offers on Tab after these words."""
    code = (
        f"source {script}\n"
        "[[ $(complete -p lit_pretrain) =~ -F\\ ([^ ]+) ]] && complete_with=${BASH_REMATCH[1]}\n"
        f"COMP_WORDS=({shlex.join(['lit_pretrain', *words])})\n"
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
        '"$complete_with"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    run = subprocess.run(
        [bash, "--norc", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stderr == ""
    return run.stdout.split()


def test_every_verb_and_every_part_is_completed(script):
    offered = set(completed(script, ""))
    assert {command for command in COMMANDS if " " not in command} <= offered
    assert completed(script, "fi") == ["finetune", "fit"]
    assert completed(script, "scaling", "fo") == ["forecast"]
    assert set(completed(script, "inspect", "")) >= {"order", "data", "run", "batch"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["fit", "--model.net.n_"], ["--model.net.n_layer", "--model.net.n_head"]),
        (["fit", "--model.optimizer.l"], ["--model.optimizer.lr", "--model.optimizer.lr_scaling"]),
        (["finetune", "--from", "runs/x", "--max_s"], ["--max_steps"]),
        (["fit", "--max_steps", "3", "--trainer.prec"], ["--trainer.precision"]),
        (["scaling", "sweep", "--dry"], ["--dry_run"]),
        (["inspect", "batch", "--st"], ["--step"]),
        (["fit", "--model.schedule.kind", "c"], ["constant", "cosine"]),
        (["fit", "--model.compile", ""], ["auto", "on", "off"]),
        (["fit", "--model.optimizer", "lit_pretrain.optim.A"], ["lit_pretrain.optim.AdamW"]),
        (["doctor", "--ver"], ["--verify"]),
    ],
    ids=" ".join,
)
def test_options_and_values_are_completed(script, words, offered):
    assert set(offered) <= set(completed(script, *words))


def test_options_that_are_refused_are_not_offered(script):
    assert completed(script, "fit", "--trainer.gradient_clip") == []


def test_files_are_completed_where_a_file_may_stand(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shape.yaml").touch()
    (tmp_path / "runs").mkdir()
    assert completed(script, "fit", "--config", "sha") == ["shape.yaml"]
    assert completed(script, "inspect", "run", "ru") == ["runs"]


def test_completing_starts_no_other_program(script, tmp_path, monkeypatch):
    """A Python that imports this package would take a second for every Tab."""
    monkeypatch.setenv("PATH", str(tmp_path))
    options = completed(script, "fit", "--config", "a.yaml", "--max_steps", "3", "--model.net.n_")
    assert "--model.net.n_layer" in options


def test_a_shell_must_be_named():
    result = here("completion", "csh")
    assert result.code == 2
    assert "bash" in result.err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_for_other_shells_can_be_written(shell):
    verbs = {"runs": declared_verbs()["runs"]}
    script = completion_script(verbs, shell)
    assert "--sort" in script or "-l sort" in script
