#!/usr/bin/env bash
# The whole chain on a CPU, from YAML files:  bash scripts/chain.sh
# prepare → pretrain → sft → dpo → lora → merge → export → evaluate → chat, with what each stage changed, measured before and after it.
# Safe to run twice, and after a run that was killed: what is finished is skipped, and a stage that was cut off goes on.
# Settings, from the environment:
#   VENV, PYTHON  as for scripts/setup.sh
#   CHAIN_RUNS    folder of the runs (default runs/chain)
#   CHAIN_BASE    a finished run to begin with, in place of pretraining one (the network of the quickstart has parts that no Hugging Face
#                 model has: it goes through all but the export)
#   CHAIN_DATA    folder of public rows (default ../shared/data); without it rows are made
#   CHAIN_FIT     more options for the pretraining, as in CHAIN_FIT="--max_tokens 2e5"
#   CHAIN_STEPS   more options for the stages after it, as in CHAIN_STEPS="--max_epochs null --max_steps 2"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin="${VENV:-.venv}/bin"
[ -x "$bin/lit_pretrain" ] || bash scripts/setup.sh
runs="${CHAIN_RUNS:-runs/chain}"
base="${CHAIN_BASE:-$runs/base}"
measured="$runs/measured"
began=$SECONDS

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
lit() { run "$bin/lit_pretrain" "$@"; }
# stage NAME VERB ...: a run of its own; what is complete has a summary
stage() {
  local name="$1" verb="$2"
  shift 2
  if [ -f "$runs/$name/summary.md" ]; then
    printf '\n%s is complete\n' "$runs/$name"
  else
    lit "$verb" "$@" --runs "$runs" --name "$name" --resume auto
  fi
}
# measure NAME RUN ...: what validate finds, kept as a file
measure() {
  local name="$1" of="$2"
  shift 2
  if [ -f "$measured/$name.json" ]; then
    printf '\n%s is measured\n' "$name"
  else
    lit validate --run "$of" "$@" --trainer.precision 32-true --json "$measured/.$name.json"
    mv "$measured/.$name.json" "$measured/$name.json"
  fi
}
# evaluate NAME RUN: held-out text of pretraining, and questions with two answers
evaluate() {
  if [ -f "$measured/$1-evaluated.json" ]; then
    printf '\n%s is evaluated\n' "$2"
  else
    lit evaluate "$2" --data data/chain/text --tasks '[configs/chain/choices.yaml]' --limit 200 --report "$measured/$1-evaluated.json"
  fi
}

mkdir -p "$measured"
[ -f data/chain/text/manifest.json ] || lit prepare --config configs/prepare/embedded.yaml --tokenizer.vocab_size 8192 --out data/chain/text
[ -f data/chain/origin.txt ] || run "$bin/python" scripts/chain_data.py data/chain "${CHAIN_DATA:-../shared/data}"
# ------------------------------------------------------------------ a base model
[ -n "${CHAIN_BASE:-}" ] || stage base fit --config configs/chain/pretrain.yaml ${CHAIN_FIT:-}
# ------------------------------------------------------------------ instructions, preferences, a task
measure instructions-before "$base" --config configs/chain/instructions.yaml
stage sft posttrain --from "$base" --config configs/chain/instructions.yaml --config configs/chain/sft.yaml ${CHAIN_STEPS:-}
measure instructions-after "$runs/sft" --config configs/chain/instructions.yaml
measure ranking-before "$runs/sft" --config configs/chain/preferences.yaml --config configs/chain/ranking.yaml
stage dpo posttrain --from "$runs/sft" --config configs/chain/preferences.yaml --config configs/chain/dpo.yaml ${CHAIN_STEPS:-}
measure ranking-after "$runs/dpo" --config configs/chain/preferences.yaml --config configs/chain/ranking.yaml
measure preferences-after "$runs/dpo"
measure problems-before "$runs/dpo" --config configs/chain/problems.yaml
stage lora finetune --from "$runs/dpo" --config configs/chain/problems.yaml --config configs/chain/lora.yaml ${CHAIN_STEPS:-}
measure problems-after "$runs/lora" --config configs/chain/problems.yaml
# ------------------------------------------------------------------ one network again, for others too
[ -d "$runs/merged" ] || lit merge "$runs/lora" "$runs/merged"
measure problems-merged "$runs/merged" --config configs/chain/problems.yaml
[ -d "$runs/exported" ] || lit export --to hf "$runs/merged" "$runs/exported"
# ------------------------------------------------------------------ what it is worth, on text of the beginning and on questions
evaluate base "$base"
evaluate merged "$runs/merged"
# ------------------------------------------------------------------ a talk
answers="$runs/talk.txt"
printf '%s\n' "What is the capital of France?" "Rewrite the sentence in the past tense: I walk to school." |
  run "$bin/lit_pretrain" chat --run "$runs/dpo" --temperature 0 --max_new_tokens 48 2>&1 | tee "$answers"
printf '\n'
run "$bin/python" scripts/chain_table.py "$measured"
printf '\nThe chain took %d:%02d. All curves: %s/tensorboard --logdir %s, then open %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$bin" "$runs" \
  'http://localhost:6006/?smoothing=0#custom_scalars&_smoothingWeight=0'
