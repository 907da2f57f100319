"""Pooled lookups beside torch `embedding_bag` and FBGEMM's table-batched embeddings (TBE).

    python -m benchmarks.embedding_forward --peer-python /path/to/peer/.venv/bin/python

Bags of 1, 20 and 100 ids, 2,048 samples, 8 tables of a million rows, and the 26 tables of Criteo-Kaggle; sum
pooling, float32, int64 ids, one (2,048, ΣD) output. `torch_apart` is torch without joining its outputs. GBps
counts the bytes of the rows; `limit` is our share of the speed of a kernel that only reads the same rows.
For D 64 the peers run a second time on huge pages (`_thp`), which numpy asks for and torch does not.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from itertools import product

from benchmarks.harness import Report, arguments
from benchmarks.lookup_sides import (
    ROWS,
    Tables,
    check_equal,
    compare,
    eight_tables,
    kaggle_tables,
    load,
    lookup_sides,
)

TURN_BYTES = 128 << 20
PEERS = {
    "torch": ("peer", "torch_forward"),
    "torch_apart": ("peer", "torch_apart"),
    "fbgemm": ("peer", "forward"),
    "torch_thp": ("thp", "torch_forward"),
    "fbgemm_thp": ("thp", "forward"),
}


def main() -> None:
    args = arguments(__doc__, dims=[16, 64, 128, 256], lengths=[1, 20, 100], threads=[1, 2])
    rows = ROWS // 10 if args.quick else ROWS
    with Report("embedding_forward") as report:
        for dim in args.dims:
            cases = list(product(args.lengths, ["uniform", "zipf"]))
            measure(report, eight_tables(dim, rows), cases, args)
            if dim in (16, 64) and not args.quick:
                measure(report, kaggle_tables(dim), [(1, "log")], args)
        for threads in args.threads:
            for name in PEERS:
                report.summarise(name, threads=threads)
            for length in args.lengths:
                report.summarise("limit", threads=threads, length=length)


def measure(report: Report, tables: Tables, cases: list[tuple[int, str]], args: Namespace) -> None:
    """Every case, and number of threads, of these tables."""
    thp = tables.dim == 64 and len(tables.sizes) == 8
    peers = {"peer": tables, **({"thp": tables} if thp else {})}
    with lookup_sides({"ours": tables}, peers, args.peer_python) as sides:
        runs = {"ours": partial(sides["ours"], "forward"), "limit": partial(sides["ours"], "read")}
        runs |= {name: partial(sides[side], do) for name, (side, do) in PEERS.items() if side in sides}
        for length, ids in cases:
            calls = -(-TURN_BYTES // tables.batch_bytes(length))
            load(sides, length, ids, calls)
            check_equal(sides, "output", tolerance=1e-4)
            for line in compare(sides, runs, calls, args.threads, args.turns):
                speed = round(tables.batch_bytes(length) / line["ours_ms"] / 1e6, 1)
                report.add({**tables.label(), "length": length, "ids": ids, **line, "GBps": speed})


if __name__ == "__main__":
    main()
