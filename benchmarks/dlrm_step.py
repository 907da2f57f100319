"""A training step of DLRM at Criteo-Kaggle table sizes beside TorchRec's fused path and plain torch.

    python -m benchmarks.dlrm_step --peer-python /path/to/peer/.venv/bin/python

Bottom 512-256-D, top 512-256-1, 2,048 samples, log-uniform ids, batches in memory; SGD or row-wise Adagrad
for rows, SGD for the rest. `ours` is the compiled model in slices of 512, as `tesserec train` runs it; `wide`
the same in slices of 1,024; `eager` the first without compiling; `loop` the compiled model in a loop written
by hand, `eager_loop` that without compiling. `gemm` is our share of the speed of the step's matrix products
alone, by our own kernel. Each case is run on quiet cores, and while another process keeps one core busy. Peak
memory is that of a process that does nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import product

import numpy as np

from benchmarks.cases import BATCH
from benchmarks.harness import Line, Report, Runs, Side, arguments, busy_core
from benchmarks.lookup_sides import compare

BATCHES, STEPS = 32, 8
OURS, PEERS = ["ours", "wide", "loop", "eager", "eager_loop", "gemm"], ["torchrec", "torch"]


def main() -> None:
    args = arguments(__doc__, optimizers=["sgd", "rowwise_adagrad"], dims=[16, 64], threads=[2])
    with Report("dlrm_step") as report:
        for dim, optimizer in product(args.dims, args.optimizers):
            with opened(dim, optimizer, args.peer_python) as (sides, runs):
                for busy in (False, True):
                    with busy_core() if busy else nullcontext():
                        for line in compare(sides, runs, STEPS, args.threads, args.turns):
                            case = {"dim": dim, "optimizer": optimizer, "busy": busy}
                            speed = round(BATCH / line["ours_ms"] * 1e3)
                            report.add({**case, **line, "samples_per_s": speed})
        for dim in args.dims:
            report.add({"dim": dim, "optimizer": "sgd", **peaks(dim, args.peer_python)})
        for dim, busy, name in product(args.dims, (False, True), [*PEERS, *OURS[1:]]):
            report.summarise(name, dim=dim, busy=busy)


@contextmanager
def opened(dim: int, optimizer: str, peer_python: str | None) -> Iterator[tuple[dict[str, Side], Runs]]:
    """The sides, and what to run on them. The first losses of ours and TorchRec's must be equal."""
    pythons = {"ours": None, **({"peer": peer_python} if peer_python else {})}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda python: new_side(dim, optimizer, python), pythons.values()))
        sides = {name: stack.enter_context(side) for name, side in zip(pythons, made, strict=True)}
        runs = {name: turn(sides["ours"], name) for name in OURS}
        if peer_python:
            names = PEERS if optimizer == "sgd" else ["torchrec"]  # torch has no row-wise Adagrad
            runs |= {name: turn(sides["peer"], name) for name in names}
            firsts = {"ours": sides["ours"], "torchrec": sides["peer"]}
            check_losses({name: first_loss(side, name) for name, side in firsts.items()})
        yield sides, runs


def new_side(dim: int, optimizer: str, peer_python: str | None) -> Side:
    """Ours, or where a python of theirs is given, theirs; ready to work."""
    module = "benchmarks.peers.dlrm" if peer_python else "benchmarks.ours.dlrm"
    side = Side(peer_python or sys.executable, module)
    side("build", dim=dim, optimizer=optimizer)
    side("load", batches=BATCHES)
    return side


def turn(side: Side, method: str, steps: int = STEPS) -> Callable[[], float]:
    """A function that takes so many steps and returns their seconds."""
    return lambda: float(side(method, steps=steps)[0])


def first_loss(side: Side, method: str) -> float:
    """Loss of the third step."""
    return float(side(method, steps=3)[1])


def check_losses(losses: Mapping[str, float]) -> None:
    """RuntimeError unless the losses are equal."""
    if not np.allclose(list(losses.values()), losses["ours"], rtol=1e-4):
        raise RuntimeError(f"losses of the third step differ: {losses}")


def peaks(dim: int, peer_python: str | None) -> Line:
    """Peak resident GB of a process that builds the model and trains it, for each way."""
    losses, line = {}, {}
    for name in ["ours", "eager", *(PEERS if peer_python else [])]:
        with new_side(dim, "sgd", peer_python if name in PEERS else None) as side:
            losses[name] = first_loss(side, name)
            line[f"{name}_GB"] = round(side("peak_bytes") / 1e9, 2)
    check_losses(losses)
    return line


if __name__ == "__main__":
    main()
