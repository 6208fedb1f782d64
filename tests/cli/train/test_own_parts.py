"""Own parts: whatever is wrong with a class of the user's is one line that names the setting."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.cli.train.own_parts import PARTS, check_parts
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.prepare.filters.filter import load_filter
from lit_pretrain.prepare.filters.filter_spec import FilterSpec
from lit_pretrain.reward import Reward, Rewards

HEAD = """
import lightning, torch
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.profilers import Profiler, SimpleProfiler
from lit_pretrain.data import BaseData, ChatData
from lit_pretrain.model import Block
from lit_pretrain.objective import CrossEntropy, Objective
from lit_pretrain.optim import AdamW, OptimizerRecipe
from lit_pretrain.rollout import BuiltIn, RolloutEngine

class Plain:
    pass
"""
MINE: dict[str, tuple[str, str, str]] = {
    "model.objective": ("CrossEntropy", "forward(self, scores)", "Objective"),
    "model.optimizer": ("torch.optim.SGD", "step(self)", "torch.optim.Optimizer"),
    "trainer.callbacks": ("lightning.Callback", "on_train_batch_end(self, trainer)", ""),
    "trainer.logger": ("CSVLogger", "log_metrics(self, metrics)", "Logger"),
    "trainer.profiler": ("SimpleProfiler", "start(self)", "Profiler"),
    "data": ("ChatData", "describe(self)", "BaseData"),
    "model.rollout.engine": ("BuiltIn", "generate(self)", "RolloutEngine"),
    "model.net.block": ("Block", "transform(self, x_BTD)", ""),
    "filters": ("", "__call__(self, document)", ""),
    "model.rollout.rewards": ("", "__call__(self, prompt)", ""),
}
"""For each setting: a class that would do, a method of it with other arguments, and the base that
lacks a method.
"""


def name_it(setting: str, path: str) -> None:
    """Let a setting name a class path."""
    named: dict[str, Callable[[], object]] = {
        "model.net.block": lambda: Transformer(ModelConfig(n_layer=1, block=path)),
        "filters": lambda: load_filter(FilterSpec(class_path=path)),
        "model.rollout.rewards": lambda: Rewards({"mine": Reward(path=path)}),
    }
    with torch.device("meta"):
        named.get(setting, lambda: check_parts([f"--{setting}={path}"]))()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder, with modules that cannot be imported."""
    (tmp_path / "lacks.py").write_text("import no_such_package\n")
    (tmp_path / "unclosed.py").write_text("def f(:\n")
    (tmp_path / "divides.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("mine", "lacks", "unclosed", "divides"):
        sys.modules.pop(name, None)


def refusal(setting: str, path: str) -> str:
    with pytest.raises(UserError) as raised:
        name_it(setting, path)
    message = str(raised.value)
    assert "\n" not in message
    assert setting in message
    assert path in message
    return message


@pytest.mark.parametrize("setting", MINE)
def test_a_part_that_is_not_there(setting: str, here: Path) -> None:
    (here / "mine.py").write_text("class Thing:\n    pass\n")
    assert "there is no module 'absent'" in refusal(setting, "absent.Thing")
    assert "Did you mean 'Thing'?" in refusal(setting, "mine.Thimg")
    for module, reason in {
        "lacks": "ModuleNotFoundError: No module named 'no_such_package' (",
        "unclosed": "SyntaxError: invalid syntax (",
        "divides": "ZeroDivisionError: division by zero (",
    }.items():
        message = refusal(setting, f"{module}.Thing")
        assert f"the module {module} cannot be imported: {reason}" in message
        assert f"{here / module}.py, line 1)" in message
    if setting in PARTS:
        assert "is unknown." in refusal(setting, "Thimg")


@pytest.mark.parametrize("setting", MINE)
def test_a_part_of_another_kind(setting: str, here: Path) -> None:
    parent, method, base = MINE[setting]
    (here / "mine.py").write_text(
        HEAD
        + f"class Wrong({parent}):\n    def {method}: pass\n"
        + f"class Lacking({base}):\n    pass\n"
        + "number = 3\n"
    )
    kind = "cannot be called" if not parent else "is not a subclass of"
    assert kind in refusal(setting, "mine.Plain")
    if setting == "model.rollout.engine":  # a protocol
        base = ""
        (here / "half.py").write_text("class Half:\n    def take(self, net): pass\n")
        assert "lacks the method generate(self, prompts, sampling, seeds)" in refusal(
            setting, "half.Half"
        )
    if setting not in ("filters", "model.rollout.rewards", "model.net.block"):
        assert "is a int, not a class" in refusal(setting, "mine.number")
    name, _, taken = method.partition("(")
    assert f"{name} is called with (" in (message := refusal(setting, "mine.Wrong"))
    assert taken.removeprefix("self").removeprefix(", ").rstrip(")") in message
    if base:
        assert " lacks the " in refusal(setting, "mine.Lacking")


@pytest.mark.parametrize("setting", ["model.net.block", "filters", "model.rollout.rewards"])
def test_a_constructor_that_raises_where_parts_are_made_at_once(setting: str, here: Path) -> None:
    parent = MINE[setting][0]
    (here / "mine.py").write_text(
        HEAD + f"class Raises({parent}):\n    def __init__(self, *_): raise KeyError('luck')\n"
    )
    message = refusal(setting, "mine.Raises")
    assert "could not be made" in message
    assert "KeyError: 'luck' (" in message


@pytest.mark.parametrize(
    "setting",
    ["model.objective", "model.optimizer", "trainer.callbacks", "trainer.logger",
     "trainer.profiler"],
)  # fmt: skip
def test_a_constructor_that_raises_ends_a_run_in_one_line(
    setting: str, here: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = MINE[setting][0]
    first = "self, params" if setting == "model.optimizer" else "self"
    (here / "mine.py").write_text(
        HEAD + f"class Raises({parent}):\n    def __init__({first}): raise KeyError('luck')\n"
    )
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=1",
        "--model.compile=off", "--data.seq_len=16", "--data.global_batch_tokens=64",
        f"--data.path={dataset}", "--max_steps=1", "--trainer.accelerator=cpu",
        f"--{setting}{'+' if setting == 'trainer.callbacks' else ''}=mine.Raises", "--name=run",
    ])  # fmt: skip
    error = capsys.readouterr().err
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert error.endswith(f"{line}\n")
    assert setting in line
    assert "mine.Raises" in line
    assert "KeyError: 'luck' (" in line
    assert not (here / "runs/run").exists()


def test_what_an_objective_returns_is_looked_at(
    here: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(
        HEAD
        + "class Mean(CrossEntropy):\n    def forward(self, scores, batch):\n"
        + "        return super().forward(scores, batch)[0]\n"
    )
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=16", "--model.net.n_head=1",
        "--model.compile=off", "--data.seq_len=16", "--data.global_batch_tokens=64",
        f"--data.path={dataset}", "--max_steps=1", "--trainer.accelerator=cpu",
        "--model.objective=mine.Mean", "--name=run",
    ])  # fmt: skip
    assert code == 2
    assert "Mean.forward returned Tensor; it must return" in capsys.readouterr().err


def test_options_of_a_part(here: Path) -> None:
    (here / "mine.py").write_text(
        HEAD + "class Focal(CrossEntropy):\n    def __init__(self, gamma: float): pass\n"
    )
    with pytest.raises(UserError, match=r"mine\.Focal' needs the options gamma"):
        check_parts(["--model.objective=mine.Focal"])
    for given in (
        ["--model.objective=mine.Focal", "--model.objective.gamma=2"],
        ["--model.objective", "{class_path: mine.Focal, init_args: {gamma: 2}}"],
    ):
        check_parts(given)
    config = here / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {"model": {"objective": {"class_path": "mine.Focal", "init_args": {"gamm": 1}}}}
        )
    )
    with pytest.raises(UserError, match=r"has no option 'gamm'\. Did you mean 'gamma'\?"):
        check_parts(["--config", str(config)])


def test_a_hook_that_lightning_never_calls(here: Path) -> None:
    (here / "mine.py").write_text(
        HEAD
        + "class Misspelt(lightning.Callback):\n"
        + "    def on_train_batch_ends(self, *rest): pass\n"
        + "class Fine(lightning.Callback):\n    def on_my_own_occasion(self): pass\n"
    )
    with pytest.raises(UserError, match=r"Did you mean 'on_train_batch_end'\?"):
        check_parts(["--trainer.callbacks=[{class_path: mine.Misspelt}]"])
    check_parts(["--trainer.callbacks+=mine.Fine"])


def test_every_part_is_tried_here() -> None:
    assert PARTS.keys() <= MINE.keys()
