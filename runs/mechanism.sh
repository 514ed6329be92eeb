#!/bin/sh
# Why does a sentiment steering of the embedded model work? All commands of docs/mechanism.md in a row.
#   sh runs/mechanism.sh [MODEL [LAYER [MULTIPLIER [PROMPTS]]]], such as: sh runs/mechanism.sh google/gemma-3-270m-it 8 1
# Everything goes to the folder mechanism-MODEL, with the seconds of each command in seconds.txt. What is done is kept, so
# that the same call goes on where it was interrupted.
set -eu
model=${1:-smollm2-135m-instruct}
layer=${2:-14}
multiplier=${3:-1}
prompts=${4:-8}
run=mechanism-$(basename "$model")
found=$run/mechanism/sentiment-$layer
system="You answer every question with one word."

vector() {
  test -e "$run/sentiment.safetensors" ||
    vsteer vectors extract "$model" sentiment --token last --dtype float32 --eager -o "$run/sentiment.safetensors"
}
queries() {
  for query in edges_by_kind circuit_faithfulness freezing_costs sparsity_curves controls; do
    vsteer sql "$query" "$run"
  done
}
timed() {
  begun=$(date +%s)
  "$@"
  echo "$(($(date +%s) - begun)) $*" >> "$run/seconds.txt"
}

mkdir -p "$run"
timed vector
timed vsteer mechanism attribute "$model" "$run/sentiment.safetensors" --layer "$layer" --multiplier "$multiplier" sentiment \
  --limit "$prompts" --max-tokens 32 --exact 200 --out "$found"
timed vsteer mechanism circuit "$found" --sizes 100,200,400,800,1500,2000,2500,3000,3500,4000
timed vsteer mechanism freeze "$found" --questions sentiment --limit 24 --system "$system"
timed vsteer mechanism values "$found"
timed vsteer mechanism sparsify "$found" --limit 24 --system "$system" --grid "$run.yaml"
timed vsteer run "$run.yaml"
timed queries
timed vsteer report "$run"
