"""Options of `fit` that the runs of a sweep share, and those in which one of them differs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import parse_yaml, read_yaml

if TYPE_CHECKING:
    from lit_pretrain.cli.plan.question import PlanCLI
    from lit_pretrain.cli.sweep.launch import LaunchSettings

FitOptions: TypeAlias = dict[str, Any]
"""Options of `fit`, nested as in a config file."""


def mapping(value: Any) -> FitOptions:
    """Parse the options of `fit` that a sweep is given as a plain mapping.

    With the type of its field jsonargparse would instantiate the classes that the mapping names,
    and import torch for them.
    """
    found = parse_yaml(value, "options of fit") if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError(f"a mapping of options of `fit` is needed, found {value!r}")
    return found


def shared_options(
    base: Sequence[str], run: Mapping[str, Any], ours: Mapping[str, str], *, where: str = "run"
) -> FitOptions:
    """Merge the options of `fit` that all runs share.

    Args:
        base: Config files; later ones win.
        run: More options, which override the files'.
        ours: Option that the sweep sets -> what to do instead. Those of `base` are left out, those
            of `run` refused.
        where: The option that holds `run`, for messages.

    Raises:
        UserError: A file cannot be read or holds no mapping, or `run` sets what the sweep sets.
    """
    found: FitOptions = {}
    for file in base:
        content = read_yaml(file, "base:")
        if not isinstance(content, dict):
            raise UserError(
                f"base: {file} holds no options of `fit`: a mapping was expected, found"
                f" {type(content).__name__}"
            )
        merge_options(found, content)
    merge_options(found, run)
    for name, instead in ours.items():
        if found.pop(name, None) is not None and name in run:
            raise UserError(f"{where}: {name} is for the sweep to set: {instead}")
    for group, name in ((found.get("model") or {}, "optimizer"), (found, "data")):
        if isinstance(group.get(name), str):  # a class by its name alone
            group[name] = {"class_path": group[name]}
    return found


def merge_options(into: FitOptions, more: Mapping[str, Any]) -> None:
    """Put options over others, group by group."""
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            merge_options(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def parse_as_plan(
    options: Mapping[str, Any], settings: LaunchSettings, arguments: Sequence[str] = ()
) -> PlanCLI:
    """Parse options of `fit` as `plan` does, so that every name is known and every value typed.

    Args:
        options: Those of a config file.
        settings: What the sweep says of devices and money.
        arguments: More of them, as a command line has them.
    """
    from lit_pretrain.cli.plan.question import PlanCLI

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "base.yaml"
        file.write_text(
            yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        cli = PlanCLI(["--config", str(file), *arguments])
    cli.settings.device, cli.settings.mfu = settings.device, settings.mfu
    cli.settings.price = settings.price
    return cli
