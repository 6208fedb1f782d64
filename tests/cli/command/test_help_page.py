"""Help: one page for every verb, everything on request, and full names for short options."""

import dataclasses
import re
import shutil
from os import terminal_size

import pytest

from lit_pretrain.cli.command.help_page import (
    COLUMNS,
    LINES,
    first_sentence,
    help_page,
    list_options,
)
from lit_pretrain.cli.command.other_names import OTHER_NAMES, exactly_meant, meant_options
from lit_pretrain.cli.command.parser import VerbParser
from lit_pretrain.cli.command.verb import CLI, Verb, parser_of
from lit_pretrain.cli.train.trainer import OWNED
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.optim import MuonAdamW
from tests.test_cli import COMMANDS, EXAMPLES, here

TRAINING = ("fit", "posttrain", "finetune")


@pytest.fixture(scope="module")
def parsers():
    """The parser of every verb; making one takes longer than all of its pages."""
    return {
        command: parser_of(verb) for command, verb in COMMANDS.items() if isinstance(verb, Verb)
    }


def page(parser, topic, monkeypatch, columns=COLUMNS):
    """A page of a parser in a terminal of so many columns."""
    size = terminal_size((columns, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *fallback: size)
    if not isinstance(parser, VerbParser):  # doctor's, of the standard library
        return parser.format_help()
    return help_page(parser, topic, (), parser.first_page)


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_help_is_one_page_and_more_on_request(command, parsers, monkeypatch):
    options = re.compile(r"^  (?:-c, )?--([\w.]+)", re.MULTILINE)
    everything = page(parsers[command], "all", monkeypatch)
    assert max(map(len, everything.splitlines())) <= COLUMNS
    assert re.findall(r"<(?:[^<>]* )?at 0x[^>]*>|<(?:class|function|object)\b", everything) == []
    for columns in (80, 250):
        first = page(parsers[command], "", monkeypatch, columns)
        lines = first.splitlines()
        assert len([line for line in lines if line.startswith("usage")]) == 1
        assert lines[0].startswith(f"usage: lit_pretrain {command}")
        assert len(lines) <= LINES
        assert max(map(len, lines)) <= min(columns, COLUMNS)
        named = {name.rstrip(".") for name in options.findall(first)}
        assert named <= {*options.findall(everything), "model.net"}


def test_a_switch_is_shown_without_a_value_and_several_values_with_dots(parsers, monkeypatch):
    seen = set()
    for command, parser in parsers.items():
        if not isinstance(parser, VerbParser):
            continue
        text = page(parser, "all", monkeypatch)
        for action in parser._actions:
            flag = next(
                (flag for flag in action.option_strings if f"  {flag} " in f"{text} "), None
            )
            if flag is None or flag == "--help":
                continue
            shown = re.search(rf"^  (?:-\w, )?{flag}(.*?)(?:  |$)", text, re.MULTILINE)
            assert shown is not None, (command, flag)
            if action.nargs == 0:
                assert shown[1] == "", (command, flag)
            elif action.nargs in ("+", "*") and not action.default:
                assert shown[1].endswith(" ..."), (command, flag)
            seen.add(action.nargs)
    assert seen >= {0, "+", None}


def test_the_first_page_of_training_names_the_fields_of_network_and_optimizer(parsers, monkeypatch):
    text = " ".join(page(parsers["fit"], "", monkeypatch).split())
    for group, owner in (("model.net", ModelConfig), ("model.optimizer", MuonAdamW)):
        rest = re.search(re.escape(f"--{group}.{{") + "([^}]+)}", text)[1].split(", ")
        for field in dataclasses.fields(owner):
            assert f"--{group}.{field.name} " in text or field.name in rest, field.name


def test_first_pages_are_of_the_verb_with_its_own_defaults():
    assert "--model.optimizer.lr 2e-05 " in here("finetune", "--help").out
    assert "--model.optimizer.lr 0.0001 " in here("posttrain", "--help").out
    assert "--model.schedule.warmup 3% " in here("finetune", "--help").out


@pytest.mark.parametrize("verb", TRAINING)
def test_options_that_are_not_to_be_set_are_not_offered(verb, parsers, monkeypatch):
    everything = page(parsers[verb], "all", monkeypatch)
    assert [name for name in OWNED if f"--trainer.{name} " in everything] == []
    assert "--trainer.devices " in everything


def test_help_of_a_prefix_with_the_class_that_is_given():
    default = here("fit", "--help", "model.optimizer").out
    assert "--model.optimizer.matrix_lr 0.02 " in default
    assert "lit_pretrain.optim.AdamW" in default
    assert "--model.net" not in default
    given = here("fit", "--model.optimizer=lit_pretrain.optim.AdamW", "--help", "model.opt").out
    assert "--model.optimizer.lr 0.001 " in given
    assert "matrix_lr" not in given
    config = str(CLI.parents[1] / "configs/pretrain/llama_adamw.yaml")
    of_file = here("fit", "--config", config, "--help", "model.optimizer").out
    assert "--model.optimizer AdamW" in of_file
    assert here("fit", "--model.optimizer.help", "torch.optim.SGD").out.count("nesterov") == 1
    assert "params" not in re.findall(
        r"--[\w.]+", here("fit", "--model.optimizer.help", "torch.optim.SGD").out
    )
    assert "--model.adapter.rank 16" in here("fit", "-h", "model.adapter").out
    assert "data.phases: from_tokens" in here("fit", "--help", "data.phases").out
    assert "--sources.NAME.kind" in here("prepare", "--help", "sources").out
    assert "--model.optimizer.lr 2e-05 " in here("finetune", "--help", "lr").out


def test_help_of_what_is_no_option():
    result = here("fit", "--help", "nothing_like_it")
    assert (result.code, result.out) == (2, "")
    assert "has no option that begins with 'nothing_like_it'" in result.err
    result = here("fit", "--model.optimizer=lit_pretrain.optim.Nothing", "--help")
    assert result.code == 2
    assert "has no 'Nothing'" in result.err


@pytest.mark.parametrize(
    ("verb", "typed", "meant"),
    [
        ("fit", "--lr=3", "model.optimizer.lr model.optimizer.matrix_lr"),
        ("fit", "--learning_rate=3", "model.optimizer.lr model.optimizer.matrix_lr"),
        ("finetune", "--lr=3", "model.optimizer.lr"),
        ("posttrain", "--weight-decay=3", "model.optimizer.weight_decay"),
        ("fit", "--batch_size=8", "data.micro_batch_size data.global_batch_tokens"),
        ("fit", "--gradient_accumulation_steps=8", "data.global_batch_tokens"),
        ("fit", "--epochs=3", "max_epochs"),
        ("fit", "--seq_len=3", "data.seq_len"),
        ("fit", "--block-size=3", "data.seq_len"),
        ("fit", "--precision=3", "trainer.precision"),
        ("fit", "--bf16", "trainer.precision"),
        ("fit", "--devices=3", "trainer.devices"),
        ("fit", "--gpus=3", "trainer.devices"),
        ("fit", "--seed=3", "model.seed data.seed"),
        ("fit", "--gradient_clip_val=3", "model.clip_norm"),
        ("fit", "--warmup_steps=3", "model.schedule.warmup"),
        ("fit", "--n_embd=3", "model.net.width"),
        ("fit", "--out_dir=x", "runs"),
        ("fit", "--optimizer.lr=3", "model.optimizer.lr"),
        ("plan", "--n_layers=3", "model.net.n_layer"),
        ("validate", "--ckpt_path=x", "run"),
        ("generate", "--max_tokens=3", "max_new_tokens"),
        ("prepare", "--num_proc=3", "workers"),
        ("prepare", "--vocab_size=3", "tokenizer.vocab_size"),
        ("scaling sweep", "--dryrun=true", "dry_run"),
    ],
)
def test_a_short_option_is_answered_with_the_full_name(verb, typed, meant):
    result = here(*verb.split(), typed)
    assert (result.code, result.out) == (2, "")
    for name in meant.split():
        assert f"'--{name}'" in result.err
    assert len(result.err.splitlines()) <= 4


@pytest.mark.parametrize(
    "given", ["accelerator=cpu", "strategy=auto", "logger=wandb", "profiler=simple"]
)
def test_a_word_in_place_of_a_class_is_none(given):
    result = here("fit", f"--trainer.{given}", "--seed=8")
    assert result.code == 2
    assert "Unrecognized arguments: --seed=8" in result.err
    assert "'--model.seed'" in result.err


def test_an_option_of_another_class_names_the_class():
    result = here("fit", "--lr=3")
    assert "With --model.optimizer AdamW it is '--model.optimizer.lr'." in result.err
    result = here("fit", "--model.optimizer.learning_rate=3")
    assert result.err.startswith(
        "error: model.optimizer: option 'learning_rate' is not accepted by"
        " lit_pretrain.optim.MuonAdamW\n"
    )
    assert "'model.optimizer.matrix_lr'" in result.err


def test_other_names_lead_to_options_that_exist(parsers):
    """Each name of ours is one that some verb has."""
    known = {option.name for parser in parsers.values() for option in list_options(parser)}
    data = here("posttrain", "--data=lit_pretrain.data.ChatData", "--help", "data.").out
    known |= set(re.findall(r"^  --([\w.]+)", data, re.MULTILINE)) | {"model.optimizer.lr"}
    missing = [name for name in OTHER_NAMES if not exactly_meant(name, known)]
    assert missing == []


def test_meant_options():
    known = ["max_epochs", "data.max_epochs", "model.optimizer.lr", "data.seed", "model.seed"]
    assert meant_options("--epochs", known) == ["max_epochs", "data.max_epochs"]
    assert meant_options("optimizer.lr", known) == ["model.optimizer.lr"]
    assert meant_options("seed", known) == ["data.seed", "model.seed"]
    assert meant_options("learning_rat", known) == ["model.optimizer.lr"]
    assert meant_options("xyzzy", known) == []


def test_first_sentence():
    assert first_sentence("Files, e.g. `*.txt`. More.") == "Files, e.g. `*.txt`"
    assert first_sentence("Of 0.5 and more") == "Of 0.5 and more"
