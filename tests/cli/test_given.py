"""What a user gives is what is done, whichever verb it is given to."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main, verbs
from lit_pretrain.cli.command.verb import Verb

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


def commands() -> Iterator[str]:
    """All verbs, and the parts of groups."""
    for name in verbs():
        verb = importlib.import_module(f"lit_pretrain.cli.{name}").VERB
        parts = [""] if isinstance(verb, Verb) else [f" {part}" for part in verb.parts]
        yield from (f"{name}{part}" for part in parts)


def call(*args: object) -> int:
    """Run the command line within this process; anything but an exit code is a traceback."""
    try:
        return main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.parametrize("command", [name for name in commands() if name != "doctor"])
def test_every_verb_refuses_a_config_that_is_not_strict(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    for content, said in (
        (b"seed: 1\nrun: x\nseed: 2\n", "given twice, in line 1 and in line 3"),
        (b"run: caf\xe9\n", "is not UTF-8: line 1 holds the byte 0xe9"),
        (b"a: &a [*a]\n", "an anchor contains itself"),
        (LAUGHS.encode(), "stand for more than"),
        (b"no: 1\n", "put the word in quotes"),
        (b"- 1\n", "holds list"),
        (b"x: [\n", "line 2"),
    ):
        bad.write_bytes(content)
        assert call(*command.split(), "--config", bad) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {bad}"), error
        assert said in error
        assert len(error.splitlines()) <= 4


REFERRING = {
    "fit": "name", "prepare": "out", "join": "out", "import": "out", "adapter import": "out",
    "inspect data": "path", "inspect batch": "name", "plan": "device", "scaling sweep": "out",
    "scaling plot": "out", "tokenizer report": "data",
}  # fmt: skip
"""A text option of the verbs that take no run."""
NEED_A_PARENT = {"posttrain", "finetune"}
NO_FILE_OF_TEXT = {"doctor", "scaling fit", "scaling isoflop", "scaling forecast"}


@pytest.mark.parametrize("command", sorted({*commands()} - NEED_A_PARENT - NO_FILE_OF_TEXT))
def test_every_verb_names_a_reference_that_leads_nowhere(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, name = tmp_path / "a.yaml", REFERRING.get(command, "run")
    for reference, said in (
        ("${oc.env:LIT_PRETRAIN_NOWHERE}", "LIT_PRETRAIN_NOWHERE is not set"),
        ("${nowhere}", "'nowhere' not found"),
        ("${", "cannot be resolved"),
        (f"${{{name}}}", "Recursive"),
    ):
        config.write_text(f"{name}: '{reference}'\n")
        assert call(*command.split(), "--config", config) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {config}: {name}: "), error
        assert said in error
