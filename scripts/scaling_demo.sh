#!/usr/bin/env bash
# A scaling law from one's own runs, and a larger run forecast before it is made:  bash scripts/scaling_demo.sh
# Three FLOP budgets on the embedded corpus, each spent by models of different sizes; the best size of every budget, the law, its forecast
# for a fourth budget; then the fourth budget itself. docs/scaling.md holds what came of it. Safe to run again: what is there is kept.
# Settings, from the environment: VENV and PYTHON as for scripts/setup.sh; SCALING_PROCESSES, runs at a time, of one thread each (2);
# SCALING_LAUNCHER, words before the command of every run, as in SCALING_LAUNCHER="nice -n 10".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
bin="${VENV:-.venv}/bin"
sweep=(scaling sweep --config configs/scaling/embedded_cpu.yaml)
options=(--jobs "${SCALING_PROCESSES:-2}" --threads 1 --launcher "${SCALING_LAUNCHER:-}")

run() {
  printf '\n$ lit_pretrain %s\n' "$*"
  "$bin/lit_pretrain" "$@"
}

run prepare --config configs/prepare/embedded.yaml --tokenizer.vocab_size 1024 --out data/embedded_1024
run "${sweep[@]}" "${options[@]}"
run scaling isoflop runs/scaling --flops 1e13
run scaling fit runs/scaling --out runs/scaling/law.json --table runs/scaling/runs.csv
run scaling plot runs/scaling --out runs/scaling/figures --tensorboard runs/scaling/tensorboard
run "${sweep[@]}" --config configs/scaling/embedded_cpu_ahead.yaml "${options[@]}"
printf '\nforecast before the run, and what came of it:\n'
grep '^| forecast' runs/scaling_ahead/*/summary.md
