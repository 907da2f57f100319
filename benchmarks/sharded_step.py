"""A training step of DLRM at Criteo-Kaggle table sizes on two ranks, beside TorchRec's sharded one.

    python -m benchmarks.sharded_step --peer-python /path/to/peer/.venv/bin/python

The model of `dlrm_step` on one machine, the same global batches for all, in memory. On two ranks of one
thread: `ours` and `torchrec` with every table whole on a rank, the same one (`cases.owners`), `auto` with the
plan that we make where none is given, `rows` with every table split by rows. On one rank of two threads:
`ours_1`, `torchrec_1`. TorchRec is DistributedModelParallel on gloo, FBGEMM updates rows while backward runs;
`pipelined` is that in TrainPipelineSparseDist. Ours is what `tesserec train --ranks 2` does, over MPI. The
losses of the third steps must be equal. Ratios are those to `ours`, above 1 we are faster.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.cases import owners
from benchmarks.dlrm_step import check_losses, first_loss, turn
from benchmarks.harness import Line, Report, Runs, Side, arguments, milliseconds, ratio, take_turns

BATCHES, SAMPLES = 16, 16384  # of a turn
CASES = {"sgd": (2048, 8192), "rowwise_adagrad": (2048,)}
TABLES = {f"C{i}": f"table_wise:{rank}" for i, rank in enumerate(owners(2), 1)}
OURS: dict[str, tuple[int, Line]] = {  # ranks, and what they share out how
    "ours": (2, {"tables": TABLES}),
    "auto": (2, {}),
    "rows": (2, {"default": "row_wise"}),
    "ours_1": (1, {}),
}
PEERS = {"torchrec": 2, "torchrec_1": 1}


def main() -> None:
    args = arguments(__doc__, optimizers=list(CASES), dims=[16])
    with Report("sharded_step") as report:
        for dim in args.dims:
            for optimizer in args.optimizers:
                for batch_size in CASES[optimizer][: 1 if args.quick else None]:
                    case = {"dim": dim, "optimizer": optimizer, "batch_size": batch_size}
                    with opened(case, args.peer_python) as runs:
                        report.add({**case, **compare(runs, batch_size, args.turns)})


def compare(runs: Runs, batch_size: int, turns: int) -> Line:
    """Milliseconds of a step, ratios to ours, our samples per second."""
    seconds, steps = take_turns(runs, turns), SAMPLES // batch_size
    line: Line = {f"{name}_ms": milliseconds(taken, steps) for name, taken in seconds.items()}
    line |= {name: ratio(taken, seconds["ours"]) for name, taken in seconds.items() if name != "ours"}
    return line | {"samples_per_s": round(batch_size / line["ours_ms"] * 1e3)}


@contextmanager
def opened(case: Mapping[str, str | int], peer_python: str | None) -> Iterator[Runs]:
    """What to run, on sides that are ready and agree about the first losses."""
    peers = PEERS if peer_python else {}
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda name: new_side(name, case, peer_python or ""), [*OURS, *peers])
        sides = {name: stack.enter_context(s) for name, s in zip([*OURS, *peers], made, strict=True)}
        methods = {name: "ours" if name in OURS else "torchrec" for name in sides}
        check_losses({name: first_loss(side, methods[name]) for name, side in sides.items()})
        steps = SAMPLES // int(case["batch_size"])
        runs = {name: turn(side, methods[name], steps) for name, side in sides.items()}
        if peer_python:
            runs["pipelined"] = turn(sides["torchrec"], "pipelined", steps)
        yield runs


def new_side(name: str, case: Mapping[str, str | int], peer_python: str) -> Side:
    """The side `name`, with its tables and batches made."""
    if name in PEERS:
        ranks = PEERS[name]
        side = Side(peer_python, "benchmarks.peers.sharded", "0", str(ranks), env=threads_of(ranks))
        side("build", dim=case["dim"], optimizer=case["optimizer"])
        side("load", batches=BATCHES, batch_size=case["batch_size"])
    else:
        ranks, sharding = OURS[name]
        side = Side(mpi(ranks), "benchmarks.ours.sharded", env=threads_of(ranks))
        side("build", **case, sharding=sharding)
        side("load", batches=BATCHES)
    side("threads", n=2 // ranks)
    return side


def mpi(ranks: int) -> list[str]:
    """What starts so many ranks of ours."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    return [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "mpi4py"]


def threads_of(ranks: int) -> dict[str, str]:
    """Libraries in each rank start as many threads as it has cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TESSEREC_NUM_THREADS")
    return dict.fromkeys(names, str(2 // ranks))


if __name__ == "__main__":
    main()
