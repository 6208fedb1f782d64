#!/usr/bin/env bash
# Make or refresh .venv: bash scripts/setup.sh [extra ...]   (e.g. dev). Safe to run twice; sourced by nothing.
#
# Two traps are handled here (docs/design.md, "Install"):
#   1. litdata asks for an unpinned torchvision, which would pull another torch: torch and litdata are pinned in ONE resolve.
#   2. PyPI's torchvision does not match a CPU-only torch and then `import lightning` dies: it is removed, nothing here needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"
EXTRAS="$*"

command -v "$PYTHON" >/dev/null || { echo "setup: no '$PYTHON' on PATH; install Python 3.10-3.13 or set PYTHON=/path/to/python" >&2; exit 1; }
"$PYTHON" - <<'PY' || exit 1
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"setup: Python {sys.version.split()[0]} is not supported; use 3.10-3.13 (set PYTHON=/path/to/python)")
PY

if [ ! -x "$VENV/bin/python" ]; then
  echo "setup: creating $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv "$VENV" || { echo "setup: python -m venv failed; on Debian install the package python3-venv" >&2; exit 1; }
fi
PY="$VENV/bin/python"

# The stamp names what was installed: a second run with the same inputs does nothing.
want="$(cat pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1) ${EXTRAS}"
stamp="$VENV/.lit_pretrain_stamp"
verify() { "$PY" -W ignore -c 'import torch, lightning, litdata' 2>"$VENV/.verify.log"; }

if [ -f "$stamp" ] && grep -qxF "$want" "$stamp" && verify; then
  echo "setup: $VENV is up to date"
  exit 0
fi

target="."
[ -z "$EXTRAS" ] || target=".[${EXTRAS// /,}]"
echo "setup: installing lit_pretrain${EXTRAS:+ with $EXTRAS} into $VENV (a few minutes the first time)"
"$PY" -m pip install --quiet --disable-pip-version-check -e "$target"

if ! verify && grep -q torchvision "$VENV/.verify.log"; then
  echo "setup: torchvision does not match this torch build; removing it (text needs none)"
  "$PY" -m pip uninstall --quiet --yes torchvision
fi
if ! verify; then
  echo "setup: FAILED: 'import torch, lightning, litdata' does not work: $(tail -n 1 "$VENV/.verify.log")" >&2
  echo "setup: remove $VENV and run again; if it persists, run '$VENV/bin/python -m lit_pretrain doctor' and report what it prints" >&2
  exit 1
fi
echo "$want" >>"$stamp"
"$PY" -W ignore -c 'import torch, lightning, litdata; print(f"setup: ready: torch {torch.__version__}, lightning {lightning.__version__}, litdata {litdata.__version__}")'
