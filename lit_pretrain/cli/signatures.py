"""Signatures: the parameters of a class, read from its source: so a verb without torch knows
the options of those with it.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
UNKNOWN = object()
"""A default that is not a literal."""


@cache
def parameters(file: Path, name: str) -> dict[str, Any]:
    """Parameters of a class with their defaults: those of `__init__`, or the fields of a dataclass.

    Args:
        file: The source.
        name: The class.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args
            positional = arguments.args[1:]
            defaults = [None] * (len(positional) - len(arguments.defaults)) + list(
                arguments.defaults
            )
            pairs = [
                *zip(positional, defaults, strict=True),
                *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
            ]
            return {argument.arg: _literal(default) for argument, default in pairs}
    return {
        node.target.id: _literal(node.value)
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def stage_parameters() -> dict[str, Any]:
    """Options below `model`."""
    return parameters(PACKAGE / "stage" / "stage.py", "Stage")


def data_parameters() -> dict[str, Any]:
    """Options below `data`."""
    return parameters(PACKAGE / "data" / "text" / "text_data.py", "TextData")


def trainer_parameters() -> dict[str, Any]:
    """Options below `trainer`."""
    spec = importlib.util.find_spec("lightning")  # finds the folder, and imports nothing
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return parameters(
        Path(spec.submodule_search_locations[0]) / "pytorch" / "trainer" / "trainer.py", "Trainer"
    )


def schedule_parameters() -> dict[str, Any]:
    """Options below `model.schedule`."""
    return parameters(PACKAGE / "optim" / "schedule.py", "Schedule")


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return UNKNOWN
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN
