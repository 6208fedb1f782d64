"""Raw arguments: what must be known before the parser can be built."""

from pathlib import Path
from typing import Optional

import yaml


def raw_option(args: list[str], name: str) -> Optional[str]:
    """The value of an option in raw arguments, the last one winning."""
    found = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(name + "="):
            found = arg.split("=", 1)[1]
    return found


def raw_parent(args: list[str]) -> Optional[str]:
    """The parent named in raw arguments: by --from, or by `from` in one of the files given with --config."""
    parent = None
    for i, arg in enumerate(args):
        file = args[i + 1] if arg in ("-c", "--config") and i + 1 < len(args) else arg[9:] if arg.startswith("--config=") else None
        if file is not None and Path(file).is_file():
            try:
                content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # the parser reads the file, too, and says what is wrong with it
            parent = content.get("from") or parent if isinstance(content, dict) else parent
    return raw_option(args, "--from") or parent


def asks_only(args: list[str]) -> bool:
    """Whether the arguments ask for help or for the config, and nothing is to be run."""
    return any(arg in ("-h", "--help") or arg.startswith("--print_config") for arg in args)
