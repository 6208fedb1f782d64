"""What is settled about a command line before it is parsed."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from lit_pretrain.cli.command.arguments import (
    Config,
    expand_home,
    mark_literal,
    name_run,
    read_configs,
    replaced_options,
    split_configs,
    unmark,
)
from lit_pretrain.errors import UserError

UNITS = ("max_steps", "max_epochs", "max_tokens")
SIZES = ("data.global_batch_tokens", "data.global_batch_rows")


def test_configs_are_told_from_options() -> None:
    args = ["-c", "a", "--seed", "3", "--config=b", "--config", "c", "--x"]
    assert split_configs(args) == (["a", "b", "c"], ["--seed", "3", "--x"])


def test_only_files_are_read_as_configs(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1")
    assert read_configs([f"--config={file}", "--config={b: 2}", f"--config={'x' * 999}"]) == [
        Config(str(file), {"a": 1})
    ]
    for content, said in (("", "holds nothing"), ("- 1", "holds list"), ("a", "holds str")):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            read_configs(["-c", str(file)])


@pytest.mark.parametrize(
    ("args", "as_option", "positional"),
    [
        (["--run", "r", "--seed", "3"], ["--run=r", "--seed", "3"], ["r", "--seed", "3"]),
        (["r", "--seed", "3"], ["--run=r", "--seed", "3"], ["r", "--seed", "3"]),
        (["--seed", "3", "r"], ["--run=r", "--seed", "3"], ["--seed", "3", "r"]),
        (["--print_config", "r"], ["--run=r", "--print_config"], ["--print_config", "r"]),
        (["--seed=3", "--run=r"], ["--run=r", "--seed=3"], ["r", "--seed=3"]),
        (["out", "--run", "r"], None, ["r", "out"]),
        (["--prompt", "--run"], ["--prompt", "--run"], ["--prompt", "--run"]),
        (["-h"], ["-h"], ["-h"]),
    ],
)
def test_a_run_is_named_by_option_and_by_place(
    args: list[str], as_option: list[str] | None, positional: list[str]
) -> None:
    assert name_run(args, as_option=False) == positional
    if as_option is not None:
        assert name_run(args, as_option=True) == as_option


def test_a_run_that_is_named_twice_or_by_nothing() -> None:
    with pytest.raises(UserError, match="given twice: out and --run r"):
        name_run(["out", "--run", "r"], as_option=True)
    with pytest.raises(UserError, match="--run is empty"):
        name_run(["--run="], as_option=False)


def test_a_tilde_in_a_config_is_the_home_directory_where_a_place_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/anybody")
    parsed = Namespace(
        runs="~/runs", name="~/x", sample_prompts=["~/x"],
        data=Namespace(path="~/data", system="~/", sources={"mine": {"path": "~/a", "text": "~/"}}),
    )  # fmt: skip
    assert expand_home(parsed) == Namespace(
        runs="/home/anybody/runs", name="~/x", sample_prompts=["~/x"],
        data=Namespace(
            path="/home/anybody/data", system="~/",
            sources={"mine": {"path": "/home/anybody/a", "text": "~/"}},
        ),
    )  # fmt: skip


def test_marks_come_off() -> None:
    value = ["${a}", {"${b}": ("$", "{", "${")}, 3, None]
    marked = mark_literal(value)
    assert "${" not in str(marked)
    assert unmark(marked) == value
    config = Namespace(a=Namespace(b=mark_literal(["${x}"])), c=[Namespace(d=mark_literal("${"))])
    assert unmark(config) == Namespace(a=Namespace(b=["${x}"]), c=[Namespace(d="${")])


@pytest.mark.parametrize(
    ("files", "args", "back"),
    [
        ([{"max_epochs": 1}], ["--max_steps", "5"], ["--max_epochs=null"]),
        ([{"max_epochs": 1}], ["--max_epochs=2"], []),
        ([{"max_epochs": 1}], [], []),
        ([{"max_epochs": 1}], ["--max_steps=null"], []),
        ([{"max_epochs": 1}, {"max_tokens": 2e6}], [], ["--max_epochs=null"]),
        (
            [{"max_epochs": 1}, {"max_tokens": 2e6}],
            ["--max_steps=1"],
            ["--max_epochs=null", "--max_tokens=null"],
        ),
        ([{"max_epochs": 1, "max_steps": 2}], [], []),  # a file that says both is wrong
        (
            [{"data": {"class_path": "C", "init_args": {"global_batch_tokens": 64}}}],
            ["--data.global_batch_rows=4"],
            ["--data.init_args.global_batch_tokens=null"],
        ),
        (
            [{"data": {"global_batch_tokens": 64}}],
            ["--data", "{global_batch_rows: 4}"],
            ["--data.global_batch_tokens=null"],
        ),
        (  # what belongs to another class goes with it
            [{"data": {"class_path": "C", "init_args": {"global_batch_rows": 4}}}],
            ["--data=D", "--data.global_batch_tokens=64"],
            [],
        ),
    ],
)
def test_the_last_word_replaces_what_says_the_same_otherwise(
    files: list[dict[str, object]],
    args: list[str],
    back: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = [Config(f"{number}.yaml", content) for number, content in enumerate(files)]
    assert replaced_options(args, configs, [UNITS, SIZES]) == back
    assert capsys.readouterr().err.count("replaces") == len(back)


def test_a_replacement_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    replaced_options(["--max_steps", "5"], [Config("a.yaml", {"max_epochs": 1})], [UNITS])
    assert capsys.readouterr().err == (
        "max_steps: 5 of the command line replaces max_epochs: 1 of a.yaml\n"
    )
