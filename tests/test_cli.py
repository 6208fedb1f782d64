"""The command line as a whole: quick help, hints for misspelt names, configs that layer, interpolate and come back as they went."""

import contextlib
import importlib
import inspect
import io
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

from lit_pretrain import __main__ as cli
from lit_pretrain.errors import DivergedError, UserError

TRAINER_VERBS = ("fit", "posttrain", "finetune", "validate", "test")
NOW = ("fit", "posttrain", "finetune", "validate", "test", "prepare", "generate", "inspect", "tokenizer", "doctor", "merge", "adapter")
HELP_SECONDS = 1.5
"""Processor time, three times what it takes, so that a busy machine does not fail the test; an import of torch takes longer."""


class Result(NamedTuple):
    code: int
    out: str
    err: str


def here(*arguments: str) -> Result:
    """The command line within this process: what a run costs beyond the imports, which are paid once."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
    return Result(code, out.getvalue(), err.getvalue())


def cpu_seconds(*arguments: str) -> float:
    """Processor time of a Python process."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


# ------------------------------------------------------------------ verbs


def test_verbs_are_there_and_listed_with_one_line_each():
    table = cli.verbs()
    assert set(NOW) <= set(table)
    listing = here("--help")
    assert listing.code == 0
    for name, line in table.items():
        assert line.endswith("."), f"{name}: the first line of the docstring is its help"
        assert f"{name} " in listing.out
        assert line in listing.out


@pytest.mark.parametrize("name", sorted(cli.verbs()))
def test_a_verb_is_one_small_file(name):
    module = importlib.import_module(f"lit_pretrain.cli.verbs.{name}")
    assert list(inspect.signature(module.main).parameters) == ["argv"]
    assert len(inspect.getsource(module).splitlines()) < 100


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in sorted(set(cli.verbs()) - set(TRAINER_VERBS)))], ids=" ".join
)
def test_help_is_quick_and_without_torch(arguments):
    code = (
        "import sys, time\n"
        "from lit_pretrain.__main__ import main\n"
        "try:\n"
        f"    code = main({arguments!r})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "heavy = {'torch', 'lightning', 'litdata', 'transformers'} & sys.modules.keys()\n"
        "print(code, sorted(heavy), time.process_time(), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    code, *heavy, seconds = run.stderr.splitlines()[-1].split(" ")
    assert (code, heavy) == ("0", ["[]"])
    assert float(seconds) < HELP_SECONDS
    assert run.stdout.startswith("usage: lit_pretrain")


def test_version_and_nothing():
    assert here("--version").out.startswith("lit_pretrain ")
    nothing = here()
    assert (nothing.code, nothing.out) == (2, here("--help").out)


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("prepair", "prepare"), ("post-train", "posttrain"), ("valdate", "validate")])
def test_misspelt_verb(typed, meant):
    result = here(typed)
    assert (result.code, result.out) == (2, "")
    assert f"did you mean {meant!r}" in result.err
    assert "did you mean" not in here("xyzzy").err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (UserError("the sky is too low; lift it"), 2, "error: the sky is too low; lift it\n"),
        (DivergedError("the loss is NaN at step 7", [1, 2]), 3, "error: the loss is NaN at step 7\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_verb_raises_becomes_one_message_and_a_code(raised, code, says, monkeypatch):
    def fail(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(cli, "verbs", lambda: {"boom": ""})
    monkeypatch.setitem(sys.modules, "lit_pretrain.cli.verbs.boom", SimpleNamespace(main=fail))
    assert here("boom") == Result(code, "", says)


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "verbs", lambda: {"boom": ""})
    monkeypatch.setitem(sys.modules, "lit_pretrain.cli.verbs.boom", SimpleNamespace(main=lambda argv: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        here("boom")


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_gets_no_traceback(arguments):
    """As in `lit_pretrain ... | head -n 1`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "lit_pretrain", *arguments]
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # or every print meets the closed pipe by itself
        run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False, env=buffered)
    finally:
        os.close(writer)
    assert run.stderr == ""


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["prepare", "--ouut", "x"], "out"),
        (["prepare", "--tokenizer.vocabsize=512"], "tokenizer.vocab_size"),
        (["fit", "--max_setps=3"], "max_steps"),
        (["fit", "--model.net.n_layers=3"], "model.net.n_layer"),
        (["fit", "--modle.net.n_head=3"], "model.net.n_head"),
        (["fit", "--data.micro_batchsize=3"], "data.micro_batch_size"),
        (["fit", "--trainer.acelerator=cpu"], "trainer.accelerator"),
        (["fit", "--micro_batch_size=3"], "data.micro_batch_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_misspelt_option(arguments, meant):
    result = here(*arguments)
    assert result.code == 2
    assert f"did you mean '{meant}'?" in result.err.lower()
    assert len(result.err.splitlines()) < 6, "hundreds of options of usage help nobody"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("max_setps: 3", "max_steps"),
        ("model: {net: {n_layers: 3}}", "model.net.n_layer"),
        ("data: {seqlen: 64}", "data.seq_len"),
        ("modell: {net: {n_layer: 3}}", "model.net.n_layer"),
        ("trainer: {acelerator: cpu}", "trainer.accelerator"),
    ],
)
def test_misspelt_key_of_a_config(text, meant, tmp_path):
    (tmp_path / "typo.yaml").write_text(text)
    result = here("fit", "--config", str(tmp_path / "typo.yaml"), "--print_config")
    assert (result.code, result.out) == (2, "")
    assert f"did you mean '{meant}'?" in result.err.lower()


def test_value_of_the_wrong_type_names_the_option():
    result = here("fit", "--data.seq_len=many")
    assert result.code == 2
    assert "data.seq_len" in result.err


def test_missing_config_names_the_file():
    for verb in ("fit", "prepare"):
        result = here(verb, "--config", "/nowhere/at/all.yaml")
        assert result.code == 2
        assert "/nowhere/at/all.yaml" in result.err


def test_help_of_every_field():
    text = here("fit", "--help").out
    for option, says in (
        ("--data.global_batch_tokens", "accumulated to reach it"),
        ("--max_tokens", "rounded up to whole steps"),
        ("--model.net.n_layer", None),
        ("--trainer.devices", None),
    ):
        assert option in text
        assert says is None or says in " ".join(text.split())


# ------------------------------------------------------------------ configs


def test_print_config_comes_back_as_it_went(tmp_path):
    arguments = ["--model.net.n_layer=3", "--data.weights={a: 0.25, b: 0.75}", "--max_tokens=1e6", "--trainer.accelerator=cpu"]
    first = here("fit", *arguments, "--print_config")
    assert first.code == 0
    assert yaml.safe_load(first.out)["model"]["net"]["n_layer"] == 3
    (tmp_path / "saved.yaml").write_text(first.out)
    assert here("fit", "--config", str(tmp_path / "saved.yaml"), "--print_config") == first


def test_later_files_win_and_the_command_line_wins_over_them(tmp_path):
    (tmp_path / "base.yaml").write_text("max_steps: 10\ndata: {seq_len: 128, seed: 1, micro_batch_size: 2}\n")
    (tmp_path / "more.yaml").write_text("data: {seq_len: 256, seed: 2}\n")
    files = ["--config", str(tmp_path / "base.yaml"), "--config", str(tmp_path / "more.yaml")]
    config = yaml.safe_load(here("fit", *files, "--data.seed=3", "--print_config").out)
    assert config["max_steps"] == 10
    assert [config["data"][key] for key in ("micro_batch_size", "seq_len", "seed")] == [2, 256, 3]


def test_interpolation_sees_the_final_values(tmp_path):
    (tmp_path / "shape.yaml").write_text(
        "data: {seq_len: 128, global_batch_tokens: 4096}\nname: t${data.seq_len}\nlog_every: ${validate_every}\n"
    )
    arguments = ["--config", str(tmp_path / "shape.yaml"), "--data.seq_len=64", "--validate_every=7"]
    config = yaml.safe_load(here("fit", *arguments, "--print_config").out)
    assert (config["name"], config["log_every"]) == ("t64", 7)


@pytest.mark.slow
def test_help_of_fit_costs_little_more_than_lightning_itself():
    pairs = [(cpu_seconds("-m", "lit_pretrain", "fit", "--help"), cpu_seconds("-c", "import lightning.pytorch.cli")) for _ in range(3)]
    ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    assert ours < 1.3 * theirs
