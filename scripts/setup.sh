#!/usr/bin/env bash
# Make or refresh .venv:  bash scripts/setup.sh [extra ...]     (extra: dev)
#
# Safe to run twice, from any directory, and after a run that was killed. Settings, from the environment:
#   PYTHON  the Python to use (default: the first supported one of python3, python3.13 ... python3.10)
#   VENV    the environment, from the checkout (default .venv)
#   PIP_*   pip's own
#   TORCH_INDEX_URL  an index to look into besides pip's own: without an NVIDIA GPU, that of PyTorch's CPU builds (the install page of
#           PyTorch names it) saves gigabytes of CUDA libraries
#
# Two traps are handled here (docs/design.md, "Install"):
#   1. litdata asks for an unpinned torchvision, which would pull another torch: torch and litdata are pinned in ONE resolve.
#   2. PyPI's torchvision does not match a CPU-only torch and then `import lightning` dies: it is removed, nothing here needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV="${VENV:-.venv}"
PY="$VENV/bin/python"
stamp="$VENV/.lit_pretrain_stamp"
log="$VENV/.verify.log"

say() { echo "setup: $*"; }
die() {
  echo "setup: $*" >&2
  exit 1
}
supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
# `python -m venv` writes the activate script last.
complete() { [ -f "$VENV/bin/activate" ] && "$PY" -m pip --version >/dev/null 2>&1; }
# In a process of its own, because a mismatched build can end it; the last line of the log is the versions, or the error.
verify() {
  "$PY" -W ignore -c 'import torch, lightning, litdata
print(f"torch {torch.__version__}, lightning {lightning.__version__}, litdata {litdata.__version__}")' >"$log" 2>&1
}

for extra in "$@"; do
  grep -q "^$extra = \[" pyproject.toml || die "there is no extra '$extra'; pyproject.toml lists them under optional-dependencies"
done

# One set-up at a time: two pips in one environment ruin it. The lock is on the checkout itself and dies with this process.
if command -v flock >/dev/null && exec 9<.; then
  flock --nonblock 9 || {
    say "another set-up is at work here; waiting for it"
    flock 9
  }
fi

# ------------------------------------------------------------------ a Python and an environment
if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
  die "$VENV is there but is not a virtual environment; remove it, or set VENV to another place"
fi
if ! complete; then
  candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  found=""
  for candidate in "${candidates[@]}"; do
    if supported "$candidate"; then
      found="$candidate"
      break
    fi
  done
  [ -n "$found" ] || die "no Python 3.10-3.13 found (looked for: ${candidates[*]}); install one, or set PYTHON=/path/to/python"
  say "creating $VENV with $("$found" --version)"
  # A creation that was killed starts over; an environment that only lacks pip gets it.
  clear=""
  [ -f "$VENV/bin/activate" ] || clear="--clear"
  "$found" -m venv $clear "$VENV" || die "$found -m venv failed; on Debian install the package python3-venv"
  complete || die "$VENV has no working pip; remove it and run again"
fi
supported "$PY" || die "$VENV holds $("$PY" --version), which is not supported; remove it and run again with Python 3.10-3.13"

# ------------------------------------------------------------------ is there anything to do?
# The stamp names what was installed: the files that decide it, and the extras.
inputs="$(cat pyproject.toml scripts/setup.sh | cksum)"
stamped="" had=""
if [ -f "$stamp" ]; then
  { IFS= read -r stamped && IFS= read -r had; } <"$stamp" || true
fi
extras="$had" missing=""
for extra in "$@"; do
  case " $extras " in
    *" $extra "*) ;;
    *) extras="${extras:+$extras }$extra" missing="yes" ;;
  esac
done
if [ "$stamped" = "$inputs" ] && [ -z "$missing" ] && verify; then
  say "$VENV is up to date: $(tail -n 1 "$log")"
  exit 0
fi

# ------------------------------------------------------------------ install, verify, mend
rm -f "$stamp"
# A killed pip leaves packages it had set aside (~name), and records of packages it had not finished, which it would take for whole.
site="$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
rm -rf "$site"/~*
for info in "$site"/*.dist-info; do
  [ -f "$info/RECORD" ] || rm -rf "$info"
done
say "installing lit_pretrain${extras:+ with $extras} into $VENV (a few minutes the first time)"
# -qq: errors only; warnings about the machine's package indexes are noise here
"$PY" -m pip install -qq --disable-pip-version-check ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -e ".${extras:+[${extras// /,}]}" ||
  die "pip could not install the packages (see above); check the network or the package index, and run again"

if ! verify && grep -q torchvision "$log"; then
  say "torchvision does not match this torch build; removing it (text needs none)"
  "$PY" -m pip uninstall -qq --yes torchvision
fi
if ! verify; then
  die "FAILED: 'import torch, lightning, litdata' does not work: $(tail -n 1 "$log")
setup: remove $VENV and run again; if it stays so, '$PY -m lit_pretrain doctor' says more"
fi
found="$(tail -n 1 "$log")"
# Once per machine torch.compile probes the processor and precompiles a header of torch's: here, so that the first run need not wait for it.
say "trying torch.compile (seconds, once)"
"$PY" -W ignore -c 'import torch
torch.set_num_threads(1)
torch.compile(lambda x: x + 1)(torch.ones(8))' >"$log" 2>&1 ||
  say "torch.compile does not work here: $(tail -n 1 "$log"); training works without it, slower: '$PY -m lit_pretrain doctor' says more"
printf '%s\n%s\n' "$inputs" "$extras" >"$stamp"
say "ready: $found"
