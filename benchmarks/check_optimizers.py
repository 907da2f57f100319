"""Our row optimizers beside torch's and FBGEMM's: rows after a few steps, from the same rows and gradients.

    python -m benchmarks.check_optimizers --peer-python /path/to/peer/.venv/bin/python [--write]

Prints a JSON line per case with the largest difference. --write keeps the peers' results in
tests/embeddings/golden_optimizers.json, against which the tests check us without them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.embeddings.golden import GOLDEN, TOLERANCE, our_rows

ROOT = Path(__file__).parent.parent


def peers(python: str) -> dict[str, Any]:
    """{case: rows after the last step}."""
    command = [python, "-W", "ignore", "-m", "benchmarks.peers.optimizers"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    theirs = peers(args.peer_python)
    worst = 0.0
    for case, rows in theirs.items():
        difference = float(np.abs(our_rows(case) - np.array(rows)).max())
        worst = max(worst, difference)
        print(json.dumps({"case": case, "difference": difference, "agrees": difference <= TOLERANCE}))
    if args.write:
        lines = (f'"{case}": {json.dumps(np.round(rows, 7).tolist())}' for case, rows in theirs.items())
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
