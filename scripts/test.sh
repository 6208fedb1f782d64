#!/usr/bin/env bash
# Set-up with the dev extra, then style, types and tests:  bash scripts/test.sh [pytest arguments]
# Without arguments the whole default suite runs; with them pytest gets them, as in: bash scripts/test.sh tests/data -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh dev
bin="${VENV:-.venv}/bin"
# Tiny networks lose more time to threads than they gain, and processes started by tests would fight for the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

run() {
  echo "\$ $*"
  "$@"
}
run "$bin/ruff" check .
run "$bin/ruff" format --check .
run "$bin/mypy"
if [ $# -eq 0 ]; then
  # One process a core, up to eight: 0.6 of the time on two cores. By file, so that the fixtures of
  # a file are made once, and in the order of tests/conftest.py, which begins with the longest.
  cores="$("$bin/python" -c 'import os; print(min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))')"
  set -- -n "$cores" --dist loadfile --no-loadscope-reorder
fi
echo "\$ pytest $*"
exec "$bin/python" -m pytest "$@"
