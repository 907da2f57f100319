"""Documents as planning writes them, of any size, made from real placements and invented times."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tesserec.sharding.placement import make_plan
from tesserec.sharding.planner.result import (
    Alternative,
    Beside,
    Document,
    MovePart,
    Piece,
    TablePart,
    Variation,
)

STAGES = ("read", "input_dist", "look_up", "compute", "row_grads", "reduction", "update")
PARTS = ("rows", "state", "input", "output", "activations", "pipeline", "dense", "reserve")


def planned(num_tables: int, num_ranks: int, per_host: int = 8, prefix: str = "inputs.sparse.C") -> Document:
    """A document of `num_tables` tables of log-normal sizes on hosts of `per_host` ranks each."""
    rng = np.random.default_rng([num_tables, num_ranks])
    hosts = [rank // per_host for rank in range(num_ranks)]
    tables = _tables(rng, num_tables, hosts, prefix)
    held = np.zeros(num_ranks)
    for part in tables:
        for piece in part["pieces"]:
            (top, bottom), (left, right) = piece["rows"], piece["cols"]
            size = part["table_bytes"] * (bottom - top) / part["rows"] * (right - left) / part["dim"]
            held[piece["ranks"]] += size
    memory = {part: (held * 0.05 * rng.uniform(0.5, 1.5)).tolist() for part in PARTS}
    memory["rows"] = held.tolist()
    used = np.sum(list(memory.values()), axis=0)
    limit = float(1.25 * used.max())
    levels = {stage: rng.uniform(2e-4, 4e-3) for stage in STAGES}
    stages = {stage: (level * rng.uniform(0.8, 1.2, num_ranks)).tolist() for stage, level in levels.items()}
    path = [(stage, max(times)) for stage, times in stages.items() if stage != "read"]
    step = sum(seconds for _, seconds in path)
    batch = 2048 * num_ranks
    return {
        "format": "tesserec plan report",
        "version": 1,
        "outcome": "planned",
        "title": "dlrm.yaml",
        "made": "2026-11-21T22:00:00Z",
        "tesserec": "0.1.0",
        "notes": ["Row frequencies are those of stats.json: 1.2 M rows of training data."],
        "workload": {
            "source": "examples/dlrm.yaml",
            "batch_size": batch,
            "num_tables": num_tables,
            "rows": sum(part["rows"] for part in tables),
            "table_bytes": sum(part["table_bytes"] for part in tables),
            "ids": sum(part["ids"] for part in tables),
            "optimizer": "rowwise_adagrad",
            "forward": "fp16",
            "backward": "fp16",
            "dense_parameters": 612_353,
            "dense_flops": 1.22e6,
            "statistics": "stats.json, 1,200,000 rows",
            "fingerprint": "9f2c41d07be2",
        },
        "topology": {
            "name": "laptop" if num_ranks < 9 else "h100x64",
            "source": "machine.yaml",
            "num_ranks": num_ranks,
            "hosts": hosts,
            "devices": ["cpu" if num_ranks < 9 else "h100"] * num_ranks,
            "tiers": [
                {"name": "dram", "limit_bytes": [limit] * num_ranks, "used_bytes": used.tolist()},
            ],
        },
        "tables": tables,
        "step": {
            "seconds": step,
            "samples_per_second": batch / step,
            "bound": "compute of rank 1 (34 % of the step)",
            "path": [
                {"name": stage, "seconds": seconds, "bound": f"rank {i % num_ranks}"}
                for i, (stage, seconds) in enumerate(path)
            ],
        },
        "ranks": {"stages": stages, "memory": memory} | _traffic(rng, num_ranks, per_host),
        "search": {
            "seconds": 3.21,
            "tried": 1834,
            "proposer": "local search",
            "stopped": "budget",
            "best_of": {"greedy": 1.08 * step, "uniform": None, "dynamic": 1.02 * step, "local search": step},
            "bound_seconds": 0.94 * step,
        },
        "sensitivity": _sensitivity(step, batch, num_ranks),
    }


def infeasible() -> Document:
    """What is written where nothing fits."""
    planned_document: Any = planned(26, 8)
    for part in ("step", "ranks", "search", "sensitivity"):
        del planned_document[part]
    for table in planned_document["tables"]:
        for key in ("kind", "words", "ranks", "num_pieces", "pieces", "alternatives", "seconds", "stages"):
            del table[key]
    document: Document = planned_document
    for tier in document["topology"]["tiers"]:
        tier["used_bytes"] = []
    document["outcome"] = "infeasible"
    largest = [part["name"] for part in document["tables"][:5]]
    document["infeasible"] = {
        "message": "26 tables with rowwise_adagrad need 93.1 GB, and 8 ranks have 64.0 GB.",
        "witness": [
            {"where": "all ranks together", "needs_bytes": 1e11, "has_bytes": 6.9e10, "tables": largest},
            {
                "where": "tier dram of rank 3",
                "needs_bytes": 1.1e10,
                "has_bytes": 8.6e9,
                "tables": largest[:1],
            },
        ],
        "ways_out": [
            {"words": "float16 rows", "option": "--set tables.data_type=float16", "step_seconds": 0.0123},
            {"words": "12 ranks instead of 8", "option": "--ranks 12", "step_seconds": 0.0101},
            {"words": "let the largest table have half its rows", "option": "", "step_seconds": None},
        ],
    }
    return document


def compared() -> Document:
    """What `tesserec plan compare` adds to a plan."""
    rng, document = np.random.default_rng(5), planned(26, 2)
    ranks, step = document["ranks"], document["step"]["seconds"]

    def beside(value: float) -> Beside:
        return {"estimated": value, "measured": float(value * rng.lognormal(0, 0.08))}

    document["outcome"] = "compared"
    document["comparison"] = {
        "run": "runs/dlrm",
        "steps": 500,
        "step": beside(step),
        "stages": {stage: [beside(v) for v in values] for stage, values in ranks["stages"].items()},
        "memory": {part: [beside(v) for v in values] for part, values in ranks["memory"].items()},
        "sent_bytes": {"input_dist": [beside(1e5)] * 2, "look_up": [beside(3e6)] * 2},
        "tables": {
            part["name"]: {"look_up_seconds": beside(part["seconds"]), "ids": beside(part["ids"] * 2048)}
            for part in document["tables"]
        },
    }
    document["comparison"]["memory"]["reserve"] = [{"estimated": 1e6, "measured": None}] * 2
    return document


def with_moves(document: Document) -> Document:
    """`document` as of a plan made with --fix."""
    moves: list[MovePart] = [
        {
            "table": part["name"],
            "rows": (0, part["rows"]),
            "cols": (0, part["dim"]),
            "before": [0],
            "after": [1],
            "bytes": part["table_bytes"],
        }
        for part in document["tables"][:4]
    ]
    total = sum(float(part["table_bytes"]) for part in document["tables"][:4])
    before = 1.2 * document["step"]["seconds"]
    document["moves"] = {
        "before": "old.json",
        "bytes": total,
        "seconds": total / 1e9,
        "moves": moves,
        "num_moves": 7,
        "step_seconds_before": before,
    }
    return document


def _tables(rng: np.random.Generator, number: int, hosts: list[int], prefix: str) -> list[TablePart]:
    dim = 16 if number < 100 else 128
    rows = np.sort(rng.lognormal(11, 2.0, number).astype(np.int64) + 4)[::-1]
    shapes = {f"{prefix}{i + 1}": (int(r), dim) for i, r in enumerate(rows)}
    kinds = {name: _kind(i, number, len(set(hosts))) for i, name in enumerate(shapes)}
    plan = make_plan(shapes, len(hosts), kinds, hosts=hosts)
    parts: list[TablePart] = []
    for name, (num_rows, _) in shapes.items():
        pieces: list[Piece] = [
            {"rows": piece_rows, "cols": cols, "ranks": ranks}
            for (piece_rows, cols), ranks in plan.rectangles(name).items()
        ]
        kind, size = kinds[name].partition(":")[0], num_rows * dim * 4
        ranks = sorted({rank for piece in pieces for rank in piece["ranks"]})
        seconds = float(rng.uniform(1e-5, 4e-4))
        parts.append(
            {
                "name": name,
                "rows": num_rows,
                "dim": dim,
                "data_type": "float32",
                "table_bytes": size,
                "features": [name.rpartition(".")[2]],
                "ids": float(rng.uniform(1, 4)),
                "curve": _curve(rng, num_rows),
                "kind": kind,
                "words": f"{kind.replace('_', ' ')} over {len(ranks)} ranks",
                "tier": "dram",
                "ranks": ranks,
                "num_pieces": len(pieces),
                "pieces": pieces,
                "stages": {"look_up": seconds, "update": 1.4 * seconds},
                "seconds": 2.4 * seconds,
                "memory_bytes": 1.06 * size,
                "sent_bytes": 2e5 if kind != "data_parallel" else 0.0,
                "imbalance": float(rng.uniform(1, 1.8)),
                "hits": float(rng.uniform(0.3, 1)),
                "alternatives": _alternatives(rng, kind, size),
            }
        )
    return parts


def _kind(i: int, number: int, hosts: int) -> str:
    if i == 0 and hosts == 1:
        return "hot_cold:5000"
    if i < number // 8:
        return "table_row_wise" if hosts > 1 else ("row_wise", "column_wise", "grid_shard")[i % 3]
    return "table_wise" if i < 9 * number // 10 else "data_parallel" if hosts < 3 else "table_wise"


def _curve(rng: np.random.Generator, rows: int) -> Any:
    exponent = rng.uniform(0.3, 1.3)
    at = np.unique(np.concatenate([[0], np.geomspace(1, rows, 40).round()]))
    weights = [(b ** (1 - exponent) - a ** (1 - exponent)) / (1 - exponent) for a, b in pairwise(at + 1)]
    share = np.concatenate([[0], np.cumsum(weights) / np.sum(weights)])
    return {"rows": at.tolist(), "share": np.minimum(share, 1).tolist(), "ordered": True}


def _alternatives(rng: np.random.Generator, kind: str, size: int) -> list[Alternative]:
    others = [k for k in ("table_wise", "row_wise", "column_wise", "data_parallel", "hot_cold") if k != kind]
    found: list[Alternative] = [
        {
            "kind": kind,
            "words": f"{kind.replace('_', ' ')}",
            "chosen": True,
            "step_seconds": 0.0102,
            "memory_bytes": size,
            "fits": True,
            "why": "",
        }
    ]
    for other in others:
        slower = float(rng.exponential(5e-4))
        fits = bool(rng.random() < 0.8)
        why = (
            f"{1e3 * slower:.1f} ms slower: rank 1 would wait for 1.2 MB more"
            if fits
            else "rank 0 lacks 2.1 GB"
        )
        found.append(
            {
                "kind": other,
                "words": other.replace("_", " "),
                "chosen": False,
                "step_seconds": 0.0102 + slower if fits else None,
                "memory_bytes": float(2 * size if other == "data_parallel" else size),
                "fits": fits,
                "why": why,
            }
        )
    return found


def _traffic(rng: np.random.Generator, num_ranks: int, per_host: int) -> Any:
    size = num_ranks if num_ranks <= 64 else num_ranks // per_host
    sent = rng.uniform(2e5, 2e6, (size, size)) * rng.uniform(0.7, 1.3, (size, 1))
    np.fill_diagonal(sent, 0)
    return {"traffic": sent.tolist(), "traffic_of": "ranks" if size == num_ranks else "hosts"}


def _sensitivity(step: float, batch: int, num_ranks: int) -> list[Variation]:
    cases: list[tuple[Any, str, float, float]] = [
        *(("batch", f"{int(batch * f):,}", f, f) for f in (0.5, 1.0, 2.0)),
        *(("ranks", f"{int(num_ranks * f)}", f, 1.0) for f in (0.5, 1.0, 2.0)),
        *(("bandwidth", f"× {f:g}", f, 1.0) for f in (0.5, 1.0, 2.0)),
    ]
    found: list[Variation] = []
    for what, label, factor, size in cases:
        seconds = step * (0.3 + 0.7 * (size if what == "batch" else 1 / factor))
        same = None if what == "ranks" and factor != 1 else seconds
        new = seconds * (1 if factor == 1 else 0.93)
        found.append(
            {
                "what": what,
                "label": label,
                "factor": factor,
                "samples_per_second_same": same and batch * size / same,
                "samples_per_second_new": batch * size / new,
                "step_seconds_same": same,
                "step_seconds_new": new,
                "note": "a plan is for its number of ranks" if same is None else "",
            }
        )
    return found
