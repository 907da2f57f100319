#!/usr/bin/env bash
# The demo's model behind REST: export, serve, rank, and training that publishes while it is served.
set -euo pipefail

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf demo/models demo/online
step tesserec export demo/run -o demo/models/clicks/1
tesserec serve demo/models --port 8099 &
service=$!
trap 'kill $service 2>/dev/null || true' EXIT
python - <<'EOF'
import time

from tesserec.serve import Client

with Client("http://127.0.0.1:8099") as client:
    while not client.ready():
        time.sleep(0.5)
    example = client.model("clicks").input_example
    ranking = client.rank("clicks", example["context"], example["candidates"])
    print(f"version {ranking.version}:", *(f"{result.index}: {result.score:.4f}" for result in ranking.results))
EOF
step tesserec train examples/dlrm.yaml --publish demo/models/clicks --set output=demo/online --set train.max_steps=60
python - <<'EOF'
import time

from tesserec.serve import Client

with Client("http://127.0.0.1:8099") as client:
    until = time.monotonic() + 60
    while (live := client.model("clicks")).live != "2":
        assert time.monotonic() < until, live
        time.sleep(0.2)
    version = next(version for version in live.versions if version.version == "2")
    print(f"version 2 is live, {version.delta_sequence} deltas of its training are in it")
EOF
kill -TERM $service
wait $service
