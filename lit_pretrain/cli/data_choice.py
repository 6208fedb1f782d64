"""Data choice: which data module a command line names, and its settings, whichever way a config writes them.

`data` holds the settings of TextData directly, as it always has, or names another class by `class_path` and `init_args`.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Optional, Union

import yaml
from jsonargparse import Namespace

from lit_pretrain.cli.raw import raw_option
from lit_pretrain.data.datamodule import TextData
from lit_pretrain.data.post_training import PostTrainingData
from lit_pretrain.errors import UserError

Data = Union[TextData, PostTrainingData]


def names_class(args: list[str], saved: Optional[Mapping[str, Any]] = None) -> bool:
    """Whether raw arguments, a file among them, or a saved config name a class of data."""
    if saved is not None and "class_path" in saved.get("data", {}):
        return True
    for i, arg in enumerate(args):
        file = args[i + 1] if arg in ("-c", "--config") and i + 1 < len(args) else arg[9:] if arg.startswith("--config=") else None
        if file is None or not Path(file).is_file():
            continue
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue  # the parser reads the file, too, and says what is wrong with it
        data = content.get("data") if isinstance(content, dict) else None
        if isinstance(data, str) or (isinstance(data, dict) and "class_path" in data):
            return True
    return raw_option(args, "--data") is not None or raw_option(args, "--data.class_path") is not None


def settings_of(data: Any) -> Any:
    """The settings in the `data` of a config, parsed or plain."""
    return data["init_args"] if "class_path" in data else data


def build(data: Namespace) -> Data:
    """The data module of a parsed config.

    Raises:
        UserError: Its class is none of ours, or its settings contradict each other.
    """
    settings = settings_of(data)
    values = settings.as_dict() if isinstance(settings, Namespace) else dict(settings)
    if "class_path" not in data:
        return TextData(**values)
    module, _, name = data["class_path"].rpartition(".")
    cls = getattr(import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, (TextData, PostTrainingData))):
        raise UserError(f"data.class_path={data['class_path']!r} is not one of the data classes of lit_pretrain.data")
    made: Data = cls(**values)
    return made
