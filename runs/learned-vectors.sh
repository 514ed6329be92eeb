#!/usr/bin/env bash
# Do learned vectors of sentiment steer the embedded model more than the mean difference does, at equal length?
#   bash runs/learned-vectors.sh
# They are learned through the model in bfloat16, as the sweep's engine has it, and in 5 epochs instead of ten. All goes
# to learned-vectors beside this script, whose grid sweeps the vectors. What is done is kept.
set -euo pipefail
cd "$(dirname "$0")"
model=smollm2-135m-instruct
made=learned-vectors/made
mkdir -p "$made"
test -e "$made/sentiment.safetensors" ||
  vsteer vectors extract "$model" sentiment --token last --dtype float32 --eager -o "$made/sentiment.safetensors"

learned() {
  test -e "$made/$1.safetensors" ||
    vsteer vectors train "$model" sentiment --layer 14 --mean-difference "$made/sentiment.safetensors" --epochs 5 \
      --dtype bfloat16 --name "$1" -o "$made/$1.safetensors" "${@:2}"
}
learned ntp --method ntp
learned reps --method reps
# the control for learning itself: in half of the pairs the responses change places
learned reps-shuffled --method reps --shuffle-labels 0

vsteer run learned-vectors.yaml
vsteer stats learned-vectors
for query in multiplier_curves controls; do
  vsteer sql "$query" learned-vectors
done
