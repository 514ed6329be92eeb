#!/usr/bin/env bash
# Why does a sentiment steering of the embedded model work? All commands of docs/mechanism.md in a row.
#   bash runs/mechanism.sh [MODEL [LAYER [MULTIPLIER [PROMPTS]]]]
# such as: bash runs/mechanism.sh gemma3-270m 8
# Everything goes to the folder runs/mechanism-MODEL, with each command's seconds by the clock and of processors in
# seconds.txt. What is done is kept, so that the same call goes on where it was interrupted.
set -euo pipefail
model=${1:-smollm2-135m-instruct}
layer=${2:-14}
multiplier=${3:-1}
prompts=${4:-6}
run=runs/mechanism-$(basename "$model")
found=$run/mechanism/sentiment-$layer
system="You answer every question with one word."
attribute=(vsteer mechanism attribute "$model" "$run/sentiment.safetensors" --layer "$layer" --multiplier "$multiplier")

timed() {
  { time "$@" 2>&3; } 3>&2 2>> "$run/seconds.txt"
  echo "$*" >> "$run/seconds.txt"
}
TIMEFORMAT="%R by the clock, %U + %S of processors:"

mkdir -p "$run"
test -e "$run/sentiment.safetensors" ||
  timed vsteer vectors extract "$model" sentiment --token last --dtype float32 --eager -o "$run/sentiment.safetensors"
timed "${attribute[@]}" sentiment --limit "$prompts" --max-tokens 32 --out "$found"
timed vsteer mechanism circuit "$found" --sizes 100,400,1000,2000,2500,3000,3500
timed vsteer mechanism freeze "$found" --questions sentiment --limit 16 --system "$system"
timed vsteer mechanism values "$found"
timed vsteer mechanism sparsify "$found" --limit 24 --system "$system" --grid "$run.yaml"
timed vsteer run "$run.yaml"
for query in edges_by_kind circuit_faithfulness freezing_costs sparsity_curves; do
  timed vsteer sql "$query" "$run"
done
timed vsteer report "$run"
# edges patched one by one, on the texts of two prompts; it stands outside of the run, which would count them twice
timed "${attribute[@]}" "$found/texts.jsonl" --limit 2 --exact 200 --out "$run/exact"
