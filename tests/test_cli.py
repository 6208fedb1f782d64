"""The command line as a whole: quick help, hints for misspelt names, configs that layer,
interpolate and come back as they went.
"""

import contextlib
import importlib
import io
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml
from jsonargparse._actions import _ActionConfigLoad

from lit_pretrain import __main__ as cli
from lit_pretrain.__main__ import in_home
from lit_pretrain.cli.command.parser import VerbParser
from lit_pretrain.cli.command.verb import Group, Verb, parser_of
from lit_pretrain.errors import DivergedError, UserError

ROOT = Path(__file__).parents[1]
TRAINER_VERBS = ("fit", "posttrain", "finetune", "validate", "test")
NOW = (
    "fit", "posttrain", "finetune", "validate", "test", "prepare", "generate", "inspect",
    "tokenizer", "doctor", "plan",
    "scaling", "merge", "average", "adapter", "join", "compare", "sweep", "replay",
)  # fmt: skip


class Result(NamedTuple):
    code: int
    out: str
    err: str


def here(*arguments: str) -> Result:
    """The command line within this process: what a run costs beyond the imports, which are paid
    once.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
    return Result(code, out.getvalue(), err.getvalue())


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
def test_the_file_of_a_verb_declares_it(name):
    module = importlib.import_module(f"lit_pretrain.cli.{name}")
    assert isinstance(module.VERB, (Verb, Group))


def commands() -> Iterator[tuple[str, Verb | Group]]:
    """Every verb and every part of one, as the dispatcher finds them, with its declaration."""
    for name in cli.verbs():
        found = importlib.import_module(f"lit_pretrain.cli.{name}").VERB
        yield name, found
        if isinstance(found, Group):
            yield from ((f"{name} {part}", verb) for part, verb in found.parts.items())


COMMANDS = dict(commands())
EXAMPLES = {command: verb.example for command, verb in COMMANDS.items() if isinstance(verb, Verb)}
BARE = [command for command, example in EXAMPLES.items() if example == f"lit_pretrain {command}"]
"""Verbs that need no arguments."""


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - set(BARE)))
def test_without_arguments_a_verb_says_what_is_missing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = here(*command.split())
    assert (result.code, result.out) == (2, "")
    missing, *_, example = result.err.splitlines()
    assert len(result.err.splitlines()) <= 3
    assert missing.startswith("error: ")
    assert example.startswith(f"For example: lit_pretrain {command} ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", BARE)
def test_a_verb_that_needs_no_arguments_works_without(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = here(*command.split())
    assert result.code in (0, 1)
    assert result.out
    assert result.err == ""


class Parsed(Exception):
    """The options of an example were read, and nothing was done with them."""


@pytest.mark.parametrize("command", sorted(EXAMPLES.keys() - set(BARE)))
def test_examples_can_be_parsed(command, tmp_path, monkeypatch):
    """As far as that goes without runs: some verbs read the run before they parse."""
    parse = VerbParser.parse_args

    def parse_and_stop(self, *arguments, **options):
        parse(self, *arguments, **options)
        raise Parsed

    monkeypatch.setattr(VerbParser, "parse_args", parse_and_stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    program, *arguments = shlex.split(EXAMPLES[command])
    assert program == "lit_pretrain"
    assert arguments[: len(command.split())] == command.split()
    try:
        result = here(*arguments)
    except Parsed:
        return
    assert any(f"{argument} does not exist" in result.err for argument in arguments), result.err


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - EXAMPLES.keys()))
def test_a_group_lists_its_parts_and_hints_at_misspelt_ones(command):
    parts = COMMANDS[command].parts
    listing = here(command, "--help")
    assert (listing.code, listing.err) == (0, "")
    for name, part in parts.items():
        assert part.help.endswith(".")
        assert f"  {name} " in listing.out
        assert part.help in listing.out
    name = next(iter(parts))
    result = here(command, f"{name}x")
    assert (result.code, result.out) == (2, "")
    assert f"{command} has no part '{name}x'. Did you mean {name!r}?" in result.err


def test_a_required_option_is_named_as_it_is_typed():
    assert "are required: --run\n" in here("chat").err
    assert "are required: run, out\n" in here("merge").err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["inspect", "order", "--help"],
        *([verb, "--help"] for verb in sorted(set(cli.verbs()) - set(TRAINER_VERBS))),
    ],
    ids=" ".join,
)
def test_help_is_without_torch(arguments):
    code = (
        "import sys\n"
        "from lit_pretrain.__main__ import main\n"
        "try:\n"
        f"    code = main({arguments!r})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "heavy = {'torch', 'lightning', 'litdata', 'transformers'} & sys.modules.keys()\n"
        "print(code, sorted(heavy), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stderr.splitlines()[-1] == "0 []"
    assert run.stdout.startswith("usage: lit_pretrain")


def test_version_and_nothing():
    assert here("--version").out.startswith("lit_pretrain ")
    nothing = here()
    assert (nothing.code, nothing.out) == (2, here("--help").out)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fti", "fit"), ("prepair", "prepare"), ("post-train", "posttrain"), ("valdate", "validate")],
)
def test_misspelt_verb(typed, meant):
    result = here(typed)
    assert (result.code, result.out) == (2, "")
    assert f"Did you mean {meant!r}" in result.err
    assert "Did you mean" not in here("xyzzy").err


def declare(monkeypatch, run) -> None:
    """Let `lit_pretrain boom` be a verb."""
    verb = Verb(run, example="lit_pretrain boom 1")
    monkeypatch.setattr(cli, "verbs", lambda: {"boom": ""})
    monkeypatch.setitem(sys.modules, "lit_pretrain.cli.boom", SimpleNamespace(VERB=verb))


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (UserError("the sky is too low; lift it"), 2, "error: the sky is too low; lift it\n"),
        (
            DivergedError("the loss is NaN at step 7", [1, 2]),
            3,
            "error: the loss is NaN at step 7\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_verb_raises_becomes_one_message_and_a_code(raised, code, says, monkeypatch):
    def fail(argv: list[str]) -> int:
        raise raised

    declare(monkeypatch, fail)
    assert here("boom", "1") == Result(code, "", says)


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    declare(monkeypatch, lambda argv: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        here("boom")


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_gets_no_traceback(arguments):
    """As in `lit_pretrain ... | head -n 1`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "lit_pretrain", *arguments]
        buffered = os.environ | {
            "PYTHONUNBUFFERED": ""
        }  # or every print meets the closed pipe by itself
        run = subprocess.run(
            command,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
            env=buffered,
        )
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
    assert f"did you mean '--{meant}'?" in result.err.lower()
    assert len(result.err.splitlines()) < 6, "hundreds of options of usage help nobody"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("max_setps: 3", "max_steps"),
        ("model: {net: {n_layers: 3}}", "model.net.n_layer"),
        ("data: {seqlen: 64}", "data.seq_len"),
        ("modell: {net: {n_layer: 3}}", "model"),
        ("trainer: {acelerator: cpu}", "trainer.accelerator"),
    ],
)
def test_misspelt_key_of_a_config(text, meant, tmp_path):
    (tmp_path / "typo.yaml").write_text(text)
    result = here("fit", "--config", str(tmp_path / "typo.yaml"), "--print_config")
    assert (result.code, result.out) == (2, "")
    assert f"did you mean '{meant}'?" in result.err.lower()


@pytest.mark.parametrize("command", ["fit", "plan", "prepare", "inspect batch"])
def test_a_value_in_place_of_a_group_of_options(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actions = parser_of(COMMANDS[command])._actions
    groups = [action.dest for action in actions if isinstance(action, _ActionConfigLoad)]
    assert groups
    for group, value in zip(groups, itertools.cycle((0, [1], False)), strict=False):
        nested = value
        for key in reversed(group.split(".")):
            nested = {key: nested}
        needed = {"out": "a", "sources": {"a": {"kind": "text", "path": "."}}}
        content = nested | (needed if command == "prepare" else {})
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
        result = here(*command.split(), "--config", "a.yaml")
        assert result.code == 2, (group, value)
        assert f"error: {group} is {value!r}, but it holds options" in result.err
        assert "Traceback" not in result.err


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
    text = here("fit", "--help", "all").out
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
    arguments = [
        "--model.net.n_layer=3",
        "--data.weights={a: 0.25, b: 0.75}",
        "--max_tokens=1e6",
        "--trainer.accelerator=cpu",
    ]
    first = here("fit", *arguments, "--print_config")
    assert first.code == 0
    assert yaml.safe_load(first.out)["model"]["net"]["n_layer"] == 3
    (tmp_path / "saved.yaml").write_text(first.out)
    assert here("fit", "--config", str(tmp_path / "saved.yaml"), "--print_config") == first


def test_later_files_win_and_the_command_line_wins_over_them(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "max_steps: 10\ndata: {seq_len: 128, seed: 1, micro_batch_size: 2}\n"
    )
    (tmp_path / "more.yaml").write_text("data: {seq_len: 256, seed: 2}\n")
    files = ["--config", str(tmp_path / "base.yaml"), "--config", str(tmp_path / "more.yaml")]
    config = yaml.safe_load(here("fit", *files, "--data.seed=3", "--print_config").out)
    assert config["max_steps"] == 10
    assert [config["data"][key] for key in ("micro_batch_size", "seq_len", "seed")] == [2, 256, 3]


def test_interpolation_sees_the_final_values(tmp_path):
    (tmp_path / "shape.yaml").write_text(
        "data: {seq_len: 128, global_batch_tokens: 4096}\nname: t${data.seq_len}\nlog_every:"
        " ${validate_every}\n"
    )
    arguments = [
        "--config",
        str(tmp_path / "shape.yaml"),
        "--data.seq_len=64",
        "--validate_every=7",
    ]
    config = yaml.safe_load(here("fit", *arguments, "--print_config").out)
    assert (config["name"], config["log_every"]) == ("t64", 7)


@pytest.mark.parametrize("verb", ["chat", "generate", "serve"])
def test_decoding_does_not_spin_while_threads_wait(verb):
    """The other work of a machine would wait, and the thread that is waited for with it."""
    code = (
        "import os, sys\nfrom lit_pretrain.__main__ import command\nsys.argv[1:] ="
        f" [{verb!r}, '--help']\ntry: command()\nfinally: print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.splitlines()[-1] == "passive"


def loaded_by(code: str) -> set[str]:
    """Name the modules that a new Python has loaded after the code."""
    code = f"import sys\ntry:\n    {code}\nfinally:\n    print('LOADED', *sorted(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split("LOADED")[1].split())


def test_help_of_fit_loads_little_that_lightning_does_not():
    """What it costs beyond that is measured by scripts/bench_start.py."""
    ours = loaded_by("from lit_pretrain.__main__ import main; main(['fit', '--help'])")
    theirs = loaded_by("import lightning.pytorch.cli")
    packages = {name.partition(".")[0] for name in ours - theirs} - sys.stdlib_module_names
    assert packages <= {"lit_pretrain", "torch", "safetensors", "xxhash"}
    assert not {"litdata", "boto3", "omegaconf", "tiktoken"} & ours


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lit_pretrain.optim.Adamw", "AdamW"),
        ("lit_pretrain.optm.AdamW", "lit_pretrain.optim"),
        ("AdamWW", "AdamW"),
    ],
)
def test_misspelt_class_path(typed, meant):
    result = here("fit", f"--model.optimizer={typed}")
    assert result.code == 2
    assert f"Did you mean '{meant}'?" in result.err


def test_a_run_without_its_option():
    for args in (
        ["chat", "runs/none"],
        ["chat", "--run", "runs/none"],
        ["merge", "o", "--run=none"],
    ):
        result = here(*args)
        assert result.code == 2
        assert "none does not exist" in result.err


def test_a_typo_is_said_before_a_missing_run():
    for verb in ("validate", "test"):
        result = here(verb, "--run", "nowhere", "--chekpoint=best")
        assert (result.code, result.out) == (2, "")
        assert "--chekpoint=best" in result.err
        assert "Did you mean '--checkpoint'?" in result.err
        assert "nowhere" not in result.err
        missing = here(
            verb, "--run", "nowhere", "--model.clip_norm=2", "--checkpoint", "best"
        )  # known ones are not in the way
        assert "nowhere does not exist" in missing.err


def test_a_typo_is_said_before_a_missing_parent():
    result = here("posttrain", "--from", "nowhere", "--max_setps=3")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean '--max_steps'?" in result.err
    assert "nowhere does not exist" in here("posttrain", "--from", "nowhere", "--max_steps=3").err


def test_fp16_is_refused(tmp_path, dataset):
    result = here(
        "fit",
        f"--data.path={dataset}",
        "--max_steps=1",
        "--trainer.precision=16-mixed",
        f"--runs={tmp_path / 'runs'}",
    )
    assert result.code == 2
    assert "trainer.precision=16-mixed: fp16 is not supported" in result.err
    assert not (tmp_path / "runs").exists()


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anybody")
    for given, meant in {
        "--out=~/x": "--out=/home/anybody/x",
        "--sources.mine.path=~/texts/a.txt": "--sources.mine.path=/home/anybody/texts/a.txt",
        "--filters+=~/f.yaml": "--filters+=/home/anybody/f.yaml",
        "--data.weights=~": "--data.weights=~",
        "--prompt=~/bin is": "--prompt=~/bin is",
        "--data.system=~/": "--data.system=~/",
        "--out=~other/x": "--out=~other/x",
        "~/x": "~/x",
        "--out": "--out",
    }.items():
        assert in_home(given) == meant


def test_names_as_shells_have_them() -> None:
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("try")
    parser.add_argument("path", type=str)
    parser.add_argument("--keep_rejects", type=int, default=1)
    parser.add_argument("--verify", type=bool, default=False)
    parser.add_argument("--words", type=str, default="")
    for given, expected in (
        (["here", "--keep-rejects", "2"], (2, False, "")),
        (["here", "--keep-rejects=2", "--verify"], (2, True, "")),
        (["--verify", "here", "--words=--keep-rejects"], (1, True, "--keep-rejects")),
        (["here", "--verify", "false"], (1, False, "")),
        (["here", "--verify=true", "--words", "a-b"], (1, True, "a-b")),
    ):
        found = parser.parse_args(given)
        assert (found.path, found.keep_rejects, found.verify, found.words) == (
            "here",
            *expected,
        ), given
