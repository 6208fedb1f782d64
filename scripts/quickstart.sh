#!/usr/bin/env bash
# The main job on this machine, without a download of data:  bash scripts/quickstart.sh
# Set-up, then prepare → fit → validate → generate. Safe to run twice, and after a run that was killed: it goes on where that ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
bin="${VENV:-.venv}/bin"
run_folder=runs/quickstart

run() {
  printf '\n$'
  for word in "$@"; do
    case "$word" in
      *" "*) printf ' "%s"' "$word" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
  printf '\n'
  "$@"
}
run "$bin/lit_pretrain" prepare --config configs/prepare/embedded.yaml
if [ -f "$run_folder/summary.md" ]; then
  printf '\n%s is complete (see its summary.md; remove the folder to train again)\n' "$run_folder"
else
  run "$bin/lit_pretrain" fit --config configs/pretrain/quickstart.yaml --name quickstart --resume auto
fi
run "$bin/lit_pretrain" validate --run "$run_folder"
run "$bin/lit_pretrain" generate --run "$run_folder" --prompt "def "
printf '\nAll curves: %s/tensorboard --logdir runs, then open http://localhost:6006\n' "$bin"
