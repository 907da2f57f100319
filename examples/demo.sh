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

tesserec evaluate demo/run --split test --compare-column p_true --json >demo/test.json
python - <<'EOF'
import json

metrics, report = json.load(open("demo/test.json")), json.load(open("demo/run/report.json"))
reached, best = metrics["model"]["auc"], metrics["p_true"]["auc"]
print(f"\ntest AUC {reached:.4f}; best reachable {best:.4f}; gap {best - reached:.4f}")
print(f"{report['samples_per_second']:,.0f} samples/s in training; learning curve: demo/run/curve.png")
EOF
