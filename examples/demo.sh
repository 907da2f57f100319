#!/usr/bin/env bash
# The main path in five commands: make raw logs, prepare, train, evaluate, predict. Everything stays in demo/.
set -euo pipefail
rows=${ROWS:-1200000}

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf demo && mkdir demo
step tesserec data synth demo/clicks.csv --rows "$rows"
step tesserec data prepare demo/clicks.csv --schema demo/clicks.schema.yaml -o demo/prepared
step tesserec train examples/dlrm.yaml
step tesserec evaluate demo/run --split test --compare-column p_true
step tesserec predict demo/run demo/prepared/test.parquet -o demo/scores.parquet
