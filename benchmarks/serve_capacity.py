"""How many requests a second `tesserec serve` answers, and how fast, beside FastAPI and torch.

    python -m benchmarks.serve_capacity --peer-python PEER [--quick]

A DLRM of Criteo-Kaggle's tables (33.8 M rows in 26 tables, bottom 512-256-D, top 512-256-1); 100 candidates
in a request, over HTTP on loopback, JSON both ways. Each service has one worker on one core, and the load
comes from a process on another. The services take turns, and each is stopped while the other works. First
their scores are compared; then a closed loop finds how many requests each answers; then come open loops at
50 and 80 % of that, requests due at even distances or by a Poisson process. A latency counts from when the
request was due (`benchmarks.load`). Quantiles, in ms, are medians over the turns; cpu_ms is what the process
used of its core for a request.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import serving
from benchmarks.harness import Report, ratio
from benchmarks.serve_cases import CANDIDATES, PATH, write_bodies
from benchmarks.serving import Server

BODIES = 1000
COMPARED = 20
CONNECTIONS = 8  # of the closed loop
TOLERANCE = 1e-5

Turns = dict[str, list[dict[str, Any]]]


def main() -> None:
    """One line per measurement."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=lambda path: str(Path(path).absolute()), required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tesserec-serving"), help="for artefacts")
    parser.add_argument("--dim", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="D 16, 2 turns of 2 seconds")
    args = parser.parse_args()
    if args.quick:
        args.dim, args.turns, args.seconds = args.dim[:1], 2, 2.0
    with Report("serve_capacity") as report:
        for dim in args.dim:
            measure(report, dim, args)


def measure(report: Report, dim: int, args: argparse.Namespace) -> None:
    """Start both services, compare them, and measure."""
    repository = serving.make_repository(args.folder, dim)
    serving.warm_cache(repository)
    bodies = args.folder / "bodies.jsonl"
    write_bodies(bodies, BODIES)
    with (
        serving.peer(args.peer_python, dim, args.folder / "peer.log") as peer,
        serving.ours(repository, args.folder / "ours.log") as ours,
    ):
        sides = {"ours": ours, "peer": peer}
        for server in sides.values():
            server.wait()
        serving.wait_for_tables(ours)
        off = compare(ours, peer, bodies)
        for server in sides.values():
            server.pause()
        closed = {name: {"connections": CONNECTIONS, "seconds": args.seconds} for name in sides}
        turns = take_turns(sides, bodies, closed, args.turns)
        rates = {name: [turn["rate"] for turn in found] for name, found in turns.items()}
        used = {f"{name}_cpu_ms": median_of(found, "cpu_ms") for name, found in turns.items()}
        report.add({"dim": dim, "load": "closed", **capacity(rates), **used, "apart": off, **failures(turns)})
        for share, kind in product((0.5, 0.8), ("fixed", "poisson")):
            common = {"arrivals": kind, "seconds": args.seconds}
            due = {name: round(share * statistics.median(found), 1) for name, found in rates.items()}
            turns = take_turns(
                sides, bodies, {name: {**common, "rate": due[name]} for name in sides}, args.turns
            )
            report.add({"dim": dim, "load": f"{share:.0%} {kind}", **latencies(turns), **failures(turns)})


def take_turns(
    sides: Mapping[str, Server], bodies: Path, options: Mapping[str, dict[str, Any]], turns: int
) -> Turns:
    """{side: what the load generator says of each turn}; another one before, of a second, is not counted."""
    found: Turns = {name: [] for name in sides}
    for turn in range(-1, turns):
        order = list(sides.items())
        for name, server in order[:: -1 if turn % 2 else 1]:
            given = {**options[name], "seconds": 1.0} if turn < 0 else {**options[name], "seed": turn}
            server.resume()
            before = serving.cpu_seconds(server.process.pid)
            said = serving.load(server, bodies, **given)
            used = serving.cpu_seconds(server.process.pid) - before
            server.pause()
            if turn >= 0:
                found[name].append({**said, "cpu_ms": used / said["requests"] * 1e3})
    return found


def compare(ours: Server, peer: Server, bodies: Path) -> float:
    """The greatest difference of scores. RuntimeError if it is too great."""
    off = 0.0
    for body in bodies.read_bytes().splitlines()[:COMPARED]:
        mine, theirs = np.zeros(CANDIDATES), np.zeros(CANDIDATES)
        for result in ours.post(PATH, body)["results"]:
            mine[result["index"]] = result["score"]
        answer = peer.post(PATH, body)
        theirs[answer["indices"]] = answer["scores"]
        off = max(off, float(np.abs(mine - theirs).max()))
    if off > TOLERANCE:
        raise RuntimeError(f"scores are {off} apart, wanted at most {TOLERANCE}: not the same model")
    return off


def capacity(rates: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians, and how many times the peer's ours is."""
    medians = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    candidates = {f"{name}_candidates": round(rate * CANDIDATES) for name, rate in medians.items()}
    return {**medians, **candidates, "ratio": ratio(rates["ours"], rates["peer"])}


def latencies(turns: Turns) -> dict[str, float]:
    """Medians over the turns, in milliseconds."""
    kept = ("rate", "p50", "p95", "p99", "cpu_ms", "late_p99")
    return {f"{name}_{key}": median_of(found, key) for name, found in turns.items() for key in kept}


def median_of(turns: Sequence[Mapping[str, float]], key: str) -> float:
    """Over the turns; infinite where nothing was answered."""
    return round(statistics.median(turn.get(key, np.inf) for turn in turns), 3)


def failures(turns: Turns) -> dict[str, str]:
    """{side: what failed}, where anything did."""
    return {
        f"{name}_failures": json.dumps([(turn["failures"], turn["examples"]) for turn in found])
        for name, found in turns.items()
        if any(turn["failures"] for turn in found)
    }


if __name__ == "__main__":
    main()
