#!/usr/bin/env bash
# The screenshots of `tesserec plan` in docs/_static, taken of real plans in a headless Chromium.
# Run at the top of the repository: bash docs/pictures.sh   (PY=.venv/bin/python; RUN=runs/dlrm for compare;
# SERVICE=http://127.0.0.1:8080/ for those of `tesserec serve`, with the model of docs/serving.md and requests)
set -euo pipefail
PY=${PY:-.venv/bin/python}
pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT

plan() {  # name, then arguments of `tesserec plan`; where nothing fits it fails, and there is a page too
    "$PY" -m tesserec plan examples/workload.yaml --budget 15 --report "$pages/$1.html" "${@:2}" || test -s "$pages/$1.html"
}
shot() {  # page, picture, then options of tests/browser.py
    "$PY" -m tests.browser "$pages/$1.html" "docs/_static/plan-$2.png" "${@:3}"
}

plan cluster --topology cpu-cluster --set dense.flops=2000000    # a small dense model: placement matters
echo 'default: {tiers: [hbm]}' > "$pages/constraints.yaml"
plan small --topology h100x8 --ranks 1 --constraints "$pages/constraints.yaml"    # too little: exit status 1
shot cluster summary --height 1180
shot cluster places --at '#where-tables-lie' --height 1180
shot cluster alternatives --at '#hot-rows' --height 1230 \
    --run "document.querySelectorAll('.choices details')[1].open = true"
shot cluster what-if --at '#what-if' --height 520
shot cluster dark --at '#where-tables-lie' --height 640 --dark
shot cluster phone --width 390 --height 1100
shot cluster phone-places --width 390 --height 1100 --at '#where-tables-lie'
shot small lacking --height 840
if [ -n "${RUN:-}" ]; then
    "$PY" -m tesserec plan compare "$RUN" --report "$pages/run.html"
    shot run compare --height 1180
fi
if [ -n "${SERVICE:-}" ]; then
    "$PY" -m tests.browser "$SERVICE" docs/_static/serve-page.png --height 1180
    rank="document.querySelector('.parts').style.position = 'static';
        new Promise(done => setTimeout(done, 1500)).then(() => document.querySelector('#request .primary').click())"
    "$PY" -m tests.browser "$SERVICE" docs/_static/serve-playground.png --height 760 --at '#playground' --run "$rank"
fi
