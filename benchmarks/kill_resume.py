"""Kill a training at random moments: does it always resume, and end with the bits of one that nobody touched?

    python benchmarks/kill_resume.py --kills 20

Makes small synthetic data, trains once undisturbed, then again and again: SIGKILL at a moment drawn
uniformly from the lifetime of the undisturbed process, `--resume` to the end, comparison of metrics.jsonl,
best metrics and every table and optimizer array of the last checkpoint. Checkpoints are frequent, so that
many kills fall into the writing of one. One JSON line per kill, then a summary; exit status 1 if any
differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = """
data: {path: prepared, batch_size: 512}
model: {name: dlrm, embedding_dim: 8, bottom: [32], top: [64], dropout: 0.1}
optimizer:
  dense: {name: adam, lr: 0.002}
  rows: {name: rowwise_adagrad, lr: 0.02}
schedule: {name: cosine, warmup: 20}
plateau: {gamma: 0.5, patience: 0}
train: {epochs: 2, log_every: 3, validate_every: 40, checkpoint_every: 10, early_stopping: {patience: 50}}
"""


def tesserec(folder: Path, *arguments: str) -> list[str]:
    """The command, run in `folder`."""
    return ["env", "-C", str(folder), sys.executable, "-m", "tesserec", *arguments]


def train(folder: Path, run: str) -> list[str]:
    """Starts the run, or goes on with it."""
    return tesserec(folder, "train", "config.yaml", "--resume", "--set", f"output={run}")


def make_data(folder: Path, rows: int) -> None:
    (folder / "config.yaml").write_text(CONFIG)
    commands = [["data", "synth", "clicks.csv", "--rows", str(rows)]]
    commands += [["data", "prepare", "clicks.csv", "--schema", "clicks.schema.yaml", "-o", "prepared"]]
    for command in commands:
        subprocess.run(tesserec(folder, *command), check=True, capture_output=True)


def killed_after(folder: Path, run: str, seconds: float) -> bool:
    """Start training and kill it; False if it had ended by then."""
    with subprocess.Popen(
        train(folder, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def found(run: Path) -> dict[str, Any]:
    """What a kill has left: steps of the checkpoints, and whether one was being written."""
    folder = run / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    steps = [int(name.removeprefix("step-")) for name in names if not name.startswith(".")]
    return {"checkpoints": steps, "torn_write": any(name.startswith(".") for name in names)}


def differences(run: Path, whole: Path) -> list[str]:
    """Files of two finished runs that differ in a byte; of state.json, in anything but the time it took."""
    wanted, got = ({p.relative_to(r) for p in r.rglob("checkpoints/*/**/*.*")} for r in (whole, run))
    same = wanted & got
    exact = {p for p in same if p.suffix in (".npy", ".safetensors")} | {Path("metrics.jsonl")}
    changed = {p for p in exact if (run / p).read_bytes() != (whole / p).read_bytes()}
    changed |= {p for p in same if p.name == "state.json" and state(run / p) != state(whole / p)}
    return sorted(map(str, (wanted ^ got) | changed))


def state(path: Path) -> Any:
    values = json.loads(path.read_text())
    values["progress"].pop("seconds")
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description="SIGKILL a training, resume it, compare")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.rows)
        subprocess.run(train(folder, "warm"), check=True, capture_output=True)  # compiles
        begun = time.perf_counter()
        subprocess.run(train(folder, "whole"), check=True, capture_output=True)
        lifetime = time.perf_counter() - begun
        kills = good = 0
        while kills < args.kills:
            run, seconds = folder / "run", rng.uniform(0, lifetime)
            shutil.rmtree(run, ignore_errors=True)
            if not killed_after(folder, run.name, seconds):
                continue
            kills += 1
            line: dict[str, Any] = {"case": "kill_resume", "kill": kills, "after_s": round(seconds, 2)}
            line |= found(run)
            resumed = subprocess.run(train(folder, run.name), capture_output=True, text=True)
            line["resumed"] = resumed.returncode == 0
            line["differ"] = (
                differences(run, folder / "whole")[:5] if line["resumed"] else resumed.stderr[-500:]
            )
            good += not line["differ"]
            print(json.dumps(line), flush=True)
    print(json.dumps({"case": "kill_resume", "kills": kills, "resumed_to_equal_bits": good}))
    sys.exit(good < kills)


if __name__ == "__main__":
    main()
