"""Slurm script: the lines of a script that `sbatch` itself reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lit_pretrain.errors import UserError


def slurm_directives(options: Mapping[str, str]) -> list[str]:
    """Write options of `sbatch` as the lines of a script, which no shell reads.

    Args:
        options: Name -> value.

    Raises:
        UserError: A name or a value would end its line or its option.
    """
    lines = []
    for name, value in options.items():
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or not str(value).isprintable():
            raise UserError(
                f"the option --{name}={value!r} of sbatch cannot stand in one line of a script"
            )
        shown = str(value)
        if not re.fullmatch(r"[\w@%+=:,./-]*", shown):
            # `sbatch` reads quotes and backslashes in these lines.
            shown = '"' + re.sub(r'(["\\])', r"\\\1", shown) + '"'
        lines.append(f"#SBATCH --{name}={shown}" if shown else f"#SBATCH --{name}")
    return lines
