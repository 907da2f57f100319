"""Forward, backward and update of embedding tables beside FBGEMM's table-batched embeddings (TBE).

    python -m benchmarks.embedding_train --peer-python /path/to/peer/.venv/bin/python

The tables and batches of `embedding_forward`, exact SGD and exact row-wise Adagrad (duplicate ids are summed
first). At 20 ids per bag also float16 rows; there `float32` is how many times as long float32 rows take us.
`read` is the time for only reading the same rows once, and its share of ours.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from itertools import product

from benchmarks.harness import Report, arguments
from benchmarks.lookup_sides import ROWS, Tables, check_equal, compare, eight_tables, load, lookup_sides

TURN_BYTES = 64 << 20
OPTIMIZERS = ["sgd", "rowwise_adagrad"]


def main() -> None:
    args = arguments(
        __doc__, optimizers=OPTIMIZERS, dims=[16, 64, 128, 256], lengths=[1, 20, 100], threads=[1, 2]
    )
    rows = ROWS // 10 if args.quick else ROWS
    with Report("embedding_train") as report:
        for dim, optimizer in product(args.dims, args.optimizers):
            full, half = (eight_tables(dim, rows, kind, optimizer) for kind in ("float32", "float16"))
            measure(report, {"ours": full}, {"fbgemm": full}, args.lengths, args)
            if 20 in args.lengths:
                measure(report, {"ours": half, "float32": full}, {"fbgemm": half}, [20], args)
        for threads, optimizer in product(args.threads, args.optimizers):
            for kind in ("float32", "float16"):
                report.summarise("fbgemm", threads=threads, optimizer=optimizer, data_type=kind)
            report.summarise("float32", threads=threads, optimizer=optimizer)


def measure(
    report: Report,
    ours: dict[str, Tables],
    peers: dict[str, Tables],
    lengths: list[int],
    args: Namespace,
) -> None:
    """Every case, and number of threads, of these tables."""
    tables = ours["ours"]
    with lookup_sides(ours, peers, args.peer_python) as sides:
        runs = {name: partial(side, "train") for name, side in sides.items()}
        runs["read"] = partial(sides["ours"], "read")
        for length, ids in product(lengths, ["uniform", "zipf"]):
            calls = -(-TURN_BYTES // tables.batch_bytes(length))
            load(sides, length, ids, calls)
            for line in compare(sides, runs, calls, args.threads, args.turns):
                report.add({**tables.label(), "length": length, "ids": ids, **line})
            check_equal(sides, "rows", tolerance=1e-4 if tables.data_type == "float32" else 5e-2)


if __name__ == "__main__":
    main()
