#!/bin/sh
# Why does a sentiment steering of the embedded model work? All commands of docs/mechanism.md. Made for half an hour on two
# cores. Another model, one of its layers and a multiplier may be given: sh runs/mechanism.sh gemma3-270m 8 1
# What is done is kept, so that the same call goes on.
set -eu
model=${1:-smollm2-135m-instruct}
layer=${2:-14}
multiplier=${3:-1}
work=mechanism-$model
found=$work/mechanism/sentiment-$layer
system="You answer every question with one word."

mkdir -p "$work"
test -e "$work/sentiment.safetensors" ||
  vsteer vectors extract "$model" sentiment --token last --dtype float32 --eager -o "$work/sentiment.safetensors"
vsteer mechanism attribute "$model" "$work/sentiment.safetensors" --layer "$layer" --multiplier "$multiplier" sentiment \
  --limit 8 --max-tokens 32 --exact 200 --out "$found"
vsteer mechanism circuit "$found"
vsteer mechanism freeze "$found" --questions sentiment --limit 24 --system "$system"
vsteer mechanism values "$found"
vsteer mechanism sparsify "$found" --limit 24 --system "$system" --grid "$work.yaml"
vsteer run "$work.yaml"
for query in edges_by_kind circuit_faithfulness freezing_costs sparsity_curves; do
  vsteer sql "$query" "$work"
done
vsteer report "$work"
