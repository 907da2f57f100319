"""What `deterministic: bitwise` costs: time of a step and bytes sent, two ranks of one thread.

    python -m benchmarks.bitwise_cost

DLRM with small layers and 8 tables of 1,000,000 rows, D 16, 2,048 samples, so that lookups weigh more than
they do in `sharded_step`; bags of 1 and 10 log-uniform ids. Plans that cut tables by rows pay for long
bags: every id comes home as a vector of its own. Replicas pay for the gradients of single bags in place of
sums by row.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product

from benchmarks.dlrm_step import turn
from benchmarks.harness import Line, Report, Side, arguments, milliseconds, ratio, take_turns
from benchmarks.sharded_step import mpi, threads_of

ROWS, DIM, BATCH, LAYERS, STEPS = [1_000_000] * 8, 16, 2048, (256, 64), 8
KINDS = ("row_wise", "table_wise", "column_wise", "hot_cold:10000")
MODES: dict[str, Line] = {"plain": {}, "bitwise": {"deterministic": "bitwise"}}


def main() -> None:
    args = arguments(__doc__, kinds=KINDS, lengths=[1, 10])
    with Report("bitwise_cost") as report:
        for kind, length in product(args.kinds, args.lengths):
            report.add({"kind": kind, "length": length, **compare(kind, length, args.turns)})


def compare(kind: str, length: int, turns: int) -> Line:
    """Milliseconds of a step and megabytes that both ranks send in it, and the ratios."""
    with ExitStack() as stack:
        sides = {mode: stack.enter_context(new_side(kind, length, mode)) for mode in MODES}
        losses = {mode: float(side("ours", steps=3)[1]) for mode, side in sides.items()}
        if abs(losses["plain"] / losses["bitwise"] - 1) > 1e-5:
            raise RuntimeError(f"losses of the third step differ: {losses}")
        megabytes = {mode: side("bytes_per_step", steps=STEPS) / 1e6 for mode, side in sides.items()}
        seconds = take_turns({mode: turn(side, "ours", STEPS) for mode, side in sides.items()}, turns)
    line: Line = {f"{mode}_ms": milliseconds(taken, STEPS) for mode, taken in seconds.items()}
    line |= {"time": ratio(seconds["bitwise"], seconds["plain"])}
    line |= {f"{mode}_MB": round(sent, 3) for mode, sent in megabytes.items()}
    return line | {"bytes": round(megabytes["bitwise"] / megabytes["plain"], 3)}


def new_side(kind: str, length: int, mode: str) -> Side:
    """Two ranks, ready."""
    side = Side(mpi(2), "benchmarks.ours.sharded", env=threads_of(2))
    tables = {"sizes": ROWS, "length": length, "layers": LAYERS}
    settings = {"sharding": {"default": kind}, "train": MODES[mode]}
    side("build", dim=DIM, optimizer="sgd", batch_size=BATCH, **tables, **settings)
    side("load", batches=16)
    return side


if __name__ == "__main__":
    main()
