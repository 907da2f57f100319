"""Kill a training at random moments: does it always resume, and end with the bits of one that nobody touched?

    python benchmarks/kill_resume.py --kills 20
    python benchmarks/kill_resume.py --kills 50 --ranks 2

Makes small synthetic data, trains once undisturbed, then again and again: SIGKILL at a moment drawn
uniformly from what the undisturbed process took to start, for one in five, or else to train; `--resume` to
the end, comparison of metrics.jsonl, best metrics and every table and optimizer array of the last checkpoint.
Checkpoints are frequent, so that many kills fall into the writing of one. With several ranks one of them,
drawn at random, is killed (before they are there, what starts them), and `ended_s` is the time until nothing
is left of the others. One JSON line per kill, then a summary; exit status 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
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
sharding: {default: row_wise}
"""


def tesserec(folder: Path, *arguments: str) -> list[str]:
    """The command, run in `folder`."""
    return ["env", "-C", str(folder), sys.executable, "-m", "tesserec", *arguments]


def train(folder: Path, run: str, ranks: int) -> list[str]:
    """Starts the run, or goes on with it."""
    shared = ["--ranks", str(ranks)] if ranks > 1 else []
    return tesserec(folder, "train", "config.yaml", "--resume", "--set", f"output={run}", *shared)


def make_data(folder: Path, rows: int) -> None:
    (folder / "config.yaml").write_text(CONFIG)
    commands = [["data", "synth", "clicks.csv", "--rows", str(rows)]]
    commands += [["data", "prepare", "clicks.csv", "--schema", "clicks.schema.yaml", "-o", "prepared"]]
    for command in commands:
        subprocess.run(tesserec(folder, *command), check=True, capture_output=True)


def undisturbed(folder: Path, run: str, ranks: int) -> tuple[float, float]:
    """Train -> seconds until it had begun, and from then on."""
    start = time.perf_counter()
    with subprocess.Popen(
        train(folder, run, ranks), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_beginning(folder / run, process)
        begun = time.perf_counter()
        assert process.wait() == 0
    return begun - start, time.perf_counter() - begun


def wait_for_beginning(run: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.002)


def killed(
    folder: Path, run: str, ranks: int, times: tuple[float, float], rng: random.Random
) -> dict[str, Any]:
    """Start training and kill it -> what was killed, and when; {} if it had ended before.

    times: how long it takes to begin, and then.
    """
    training = rng.random() < 0.8
    seconds = rng.uniform(0, times[training])
    with subprocess.Popen(
        train(folder, run, ranks), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        if training:
            wait_for_beginning(folder / run, process)
        try:
            process.wait(seconds)
            return {}
        except subprocess.TimeoutExpired:
            there = rank_processes(folder)
            rank = rng.choice(sorted(there)) if there else None
            with suppress(ProcessLookupError):
                os.kill(process.pid if rank is None else there[rank], signal.SIGKILL)
        at = time.perf_counter()
        while process.poll() is None or rank_processes(folder):
            time.sleep(0.01)
        ended = round(time.perf_counter() - at, 2)
        return {"training": training, "after_s": round(seconds, 2), "killed_rank": rank, "ended_s": ended}


def rank_processes(folder: Path) -> dict[int, int]:
    """{rank: process id} of the ranks that work in `folder`."""
    processes = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            rank = next((int(v[9:]) for v in variables if v.startswith(b"PMI_RANK=")), None)
            if rank is not None and (process / "cwd").resolve() == folder.resolve():
                processes[rank] = int(process.name)
    return processes


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
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.rows)
        subprocess.run(train(folder, "warm", args.ranks), check=True, capture_output=True)  # compiles
        times = undisturbed(folder, "whole", args.ranks)
        kills = good = 0
        slowest = 0.0
        while kills < args.kills:
            run = folder / "run"
            shutil.rmtree(run, ignore_errors=True)
            what = killed(folder, run.name, args.ranks, times, rng)
            if not what:
                continue
            kills += 1
            slowest = max(slowest, what["ended_s"])
            line: dict[str, Any] = {"case": "kill_resume", "kill": kills, **what, **found(run)}
            resumed = subprocess.run(train(folder, run.name, args.ranks), capture_output=True, text=True)
            line["resumed"] = resumed.returncode == 0
            line["differ"] = (
                differences(run, folder / "whole")[:5] if line["resumed"] else resumed.stderr[:500]
            )
            good += not line["differ"]
            print(json.dumps(line), flush=True)
    summary = {"case": "kill_resume", "ranks": args.ranks, "kills": kills, "resumed_to_equal_bits": good}
    seconds = {"slowest_end_s": slowest, "start_s": round(times[0], 1), "train_s": round(times[1], 1)}
    print(json.dumps(summary | seconds))
    sys.exit(good < kills)


if __name__ == "__main__":
    main()
