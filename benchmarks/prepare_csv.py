"""Preparation of synthetic raw CSV: rows/s and peak memory of `tesserec data synth` and `data prepare`.

    python benchmarks/prepare_csv.py --rows 10000000

Each command runs in a process of its own; memory is its largest resident set. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measured(*arguments: str) -> tuple[float, float]:
    """Run a `tesserec` command -> (seconds, peak resident bytes)."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tesserec", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"tesserec {' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--max-ids", type=int, default=100_000, help="cap on the ids of a column")
    parser.add_argument("--min-count", type=int, help="instead of the schema's")
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        raw, schema, out = (Path(name) / part for part in ("clicks.csv", "clicks.schema.yaml", "prepared"))
        commands = {
            "synth": ["data", "synth", str(raw), "--rows", str(args.rows), "--max-ids", str(args.max_ids)],
            "prepare": ["data", "prepare", str(raw), "--schema", str(schema), "-o", str(out)],
        }
        if args.min_count:
            commands["prepare"] += ["--set", f"sparse.0.min_count={args.min_count}"]
        for case, command in commands.items():
            seconds, peak = measured(*command)
            line = {"case": case, "rows": args.rows, "csv_GB": round(raw.stat().st_size / 1e9, 2)}
            line |= {"seconds": round(seconds, 1), "rows_per_s": round(args.rows / seconds)}
            print(json.dumps(line | {"peak_GB": round(peak / 1e9, 2)}), flush=True)


if __name__ == "__main__":
    main()
