"""Lookups in int8 and int4 rows for inference beside FBGEMM's `IntNBitTableBatchedEmbeddingBagsCodegen`.

    python -m benchmarks.embedding_int8 --peer-python /path/to/peer/.venv/bin/python

The tables and batches of `embedding_forward`, quantized by row; float32 outputs.
"""

from __future__ import annotations

from functools import partial
from itertools import product

from benchmarks.harness import Report, arguments
from benchmarks.lookup_sides import ROWS, check_equal, compare, eight_tables, load, lookup_sides

TURN_BYTES = 64 << 20
STEP = {"int8": 2 / 255, "int4": 2 / 15}  # of a row's scale, whose values lie in [-1, 1)


def main() -> None:
    args = arguments(__doc__, types=list(STEP), dims=[16, 64, 128, 256], lengths=[1, 20, 100], threads=[1, 2])
    rows = ROWS // 10 if args.quick else ROWS
    with Report("embedding_int8") as report:
        for dim, data_type in product(args.dims, args.types):
            tables = eight_tables(dim, rows, data_type)
            with lookup_sides({"ours": tables}, {"fbgemm": tables}, args.peer_python) as sides:
                runs = {name: partial(side, "forward") for name, side in sides.items()}
                for length, ids in product(args.lengths, ["uniform", "zipf"]):
                    calls = -(-TURN_BYTES // tables.batch_bytes(length))
                    load(sides, length, ids, calls)
                    check_equal(sides, "output", tolerance=1.5 * length * STEP[data_type])
                    for line in compare(sides, runs, calls, args.threads, args.turns):
                        report.add({**tables.label(), "length": length, "ids": ids, **line})
        for threads, data_type in product(args.threads, args.types):
            report.summarise("fbgemm", threads=threads, data_type=data_type)


if __name__ == "__main__":
    main()
