#!/usr/bin/env bash
# The main job on this machine, without a download of data:  bash scripts/quickstart.sh
# Set-up, then prepare → fit → validate → generate. Safe to run twice, and after a run that was killed: it goes on where that ended.
# With --claim it also trains half the network and twice the network for the same time, and prints the three (scripts/claim.py).
# Settings, from the environment: VENV and PYTHON as for scripts/setup.sh, and more options for two of the verbs, for another size of the
# same job, as in QUICKSTART_FIT="--max_steps 20 --model.net.n_layer 2" and QUICKSTART_PREPARE="--tokenizer.vocab_size 4096".
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
run "$bin/lit_pretrain" prepare --config configs/prepare/embedded.yaml ${QUICKSTART_PREPARE:-}
if [ -f "$run_folder/summary.md" ]; then
  printf '\n%s is complete (see its summary.md; remove the folder to train again)\n' "$run_folder"
else
  run "$bin/lit_pretrain" fit --config configs/pretrain/quickstart.yaml --name quickstart --resume auto ${QUICKSTART_FIT:-}
fi
run "$bin/lit_pretrain" validate --run "$run_folder"
run "$bin/lit_pretrain" generate --run "$run_folder" --prompt "def "
if [ "${1:-}" = --claim ]; then
  run "$bin/python" scripts/claim.py --run "$run_folder" --train
elif [ -f configs/pretrain/quickstart_claim.json ]; then
  run "$bin/python" scripts/claim.py --run "$run_folder"
fi
printf '\nAll curves: %s/tensorboard --logdir runs, then open %s\nOne page with pictures: %s/summary.html\n' "$bin" \
  'http://localhost:6006/?smoothing=0#custom_scalars&_smoothingWeight=0' "$run_folder"
