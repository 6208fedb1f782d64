"""An option that names another class takes that class's own defaults."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import OptimizerCallable

import lit_pretrain.data
import lit_pretrain.objective
import lit_pretrain.optim
from lit_pretrain.__main__ import main
from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.objective import Objective
from lit_pretrain.optim import OptimizerRecipe, TorchOptimizer

OPTIMIZERS = [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam, torch.optim.Adafactor]


def classes(room: Any, base: type) -> list[type]:
    """Every class of a room that an option of this base class may name."""
    found = [getattr(room, name) for name in getattr(room, "_CLASSES", vars(room))]
    return [
        cls
        for cls in found
        if inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls)
        if cls not in (TorchOptimizer, BaseData)
    ]


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of a class, in lists as a config has them."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is not parameter.empty
    }
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.default_factory is not dataclasses.MISSING:
                found[field.name] = field.default_factory()
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in found.items()
    }


def written(value: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values of a config for these options, with lists as a file has them."""
    values = {name: value["init_args"].get(name) for name in given}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def test_every_class_takes_its_own_defaults() -> None:
    """All of them at once: one option for each class, whose default is another class."""
    rooms = {
        OptimizerRecipe | OptimizerCallable: (
            lit_pretrain.optim.MuonAdamW,
            classes(lit_pretrain.optim, OptimizerRecipe) + OPTIMIZERS,
        ),
        Objective: (lit_pretrain.objective.DPO, classes(lit_pretrain.objective, Objective)),
        BaseData: (lit_pretrain.data.ChatData, classes(lit_pretrain.data, BaseData)),
    }
    parser = make_parser("fit")
    named: dict[str, type] = {}
    for kind, (first, found) in rooms.items():
        assert len(found) > 3, kind
        for cls in found:
            option = cls.__qualname__ + str(len(named))
            default = {"class_path": f"{first.__module__}.{first.__name__}"}
            parser.add_argument(f"--{option}", type=kind, default=default)
            named[option] = cls
    parsed = parser.parse_args(
        [f"--{option}={cls.__module__}.{cls.__name__}" for option, cls in named.items()]
    )
    for option, cls in named.items():
        value = parsed[option].as_dict()
        assert value["class_path"].rpartition(".")[2] == cls.__name__
        assert written(value, defaults(cls)) == defaults(cls), cls


def test_a_class_takes_nothing_from_a_preset(
    chat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor from a file: what each says of a class holds for that class alone."""
    file = tmp_path / "chat.yaml"
    file.write_text(
        "data:\n  class_path: lit_pretrain.data.ChatData\n"
        "  init_args: {sources: {a: {path: a.jsonl}}, seq_len: 77}\n"
        "model:\n  objective: {class_path: lit_pretrain.objective.DPO, init_args: {beta: 0.7}}\n"
    )
    for optimizer, objective, data in (
        (torch.optim.AdamW, lit_pretrain.objective.SimPO, lit_pretrain.data.PreferenceData),
        (lit_pretrain.optim.AdamW, lit_pretrain.objective.DPO, lit_pretrain.data.ChatData),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main([
                "posttrain", f"--from={chat_run}", f"--config={file}", f"--data={data.__name__}",
                f"--model.optimizer={optimizer.__module__}.{optimizer.__name__}",
                f"--model.objective={objective.__name__}", "--print_config",
            ])  # fmt: skip
        out, err = capsys.readouterr()
        assert exit_info.value.code == 0, err
        config = yaml.safe_load(out)
        expected = [defaults(optimizer), defaults(objective), defaults(data)]
        if optimizer is lit_pretrain.optim.AdamW:  # the classes that preset and file speak of
            expected[0] |= {"lr": 1e-4, "betas": [0.8, 0.95], "eps": 1e-10, "weight_decay": 0.0}
            expected[1] |= {"beta": 0.7}
            expected[2] |= {"seq_len": 77}

        found = [config["model"]["optimizer"], config["model"]["objective"], config["data"]]
        for value, wanted in zip(found, expected, strict=True):
            assert written(value, wanted) == wanted


def test_the_options_given_with_a_class_win(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([
            "fit", "--model.optimizer.weight_decay=0.3",
            "--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=0.5",
            "--print_config",
        ])  # fmt: skip
    optimizer = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]
    assert optimizer["init_args"] == defaults(lit_pretrain.optim.AdamW) | {
        "lr": 0.5,
        "weight_decay": 0.3,
    }
