"""The products of fully connected layers, ours beside numpy's BLAS, on one thread; one JSON line per model.

Ours are whole layers: bias and ReLU forward, slope of the ReLU and gradient of the bias backward. BLAS makes
the bare products. The two alternate on the same arrays, and each is judged by its fastest call.

Run: python benchmarks/dense_kernels.py [--slice 512] [--turns 60]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.kernels import linear
from tesserec.autograd.workers import one_thread_blas

Array = npt.NDArray[np.float32]
Layers = Sequence[tuple[int, int]]  # (fan_in, fan_out)

MODELS: dict[str, Layers] = {
    "DLRM, D 16": [(13, 512), (512, 256), (256, 16), (367, 512), (512, 256), (256, 1)],
    "DLRM, D 64": [(13, 512), (512, 256), (256, 64), (415, 512), (512, 256), (256, 1)],
    "DCN-V2, D 16": [(429, 429), (429, 429), (429, 429), (429, 256), (256, 128), (128, 1)],
}
PARTS = ("forward", "backward_input", "backward_weight")


def fastest(calls: Sequence[Callable[[], Any]], turns: int) -> list[float]:
    """Seconds of the fastest call of each; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                record.append(time.perf_counter() - start)
    return [min(record) for record in times]


def layer(batch: int, fan_in: int, fan_out: int, turns: int) -> npt.NDArray[np.float64]:
    """Seconds of (part, ours or BLAS): (3, 2)."""
    rng = np.random.default_rng(0)
    x, w, b, g = (
        rng.random(s, np.float32) for s in [(batch, fan_in), (fan_out, fan_in), (fan_out,), (batch, fan_out)]
    )
    y, gx, gw, gb = (np.empty_like(a) for a in (g, x, w, b))
    relu = linear.RELU
    pairs: list[list[Callable[[], Any]]] = [
        [lambda: linear.linear_forward(x, w, b, relu, y), lambda: np.matmul(x, w.T, out=y)],
        [lambda: linear.linear_backward_input(g, w, x, relu, False, gx), lambda: np.matmul(g, w, out=gx)],
        [lambda: linear.linear_backward_weight(g, x, False, gw, gb), lambda: np.matmul(g.T, x, out=gw)],
    ]
    return np.array([fastest(pair, turns) for pair in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slice", type=int, default=512, help="samples per product")
    parser.add_argument("--turns", type=int, default=60)
    options = parser.parse_args()
    with one_thread_blas():
        for name, layers in MODELS.items():
            seconds = np.sum([layer(options.slice, *sizes, options.turns) for sizes in layers], axis=0)
            work = sum(2 * options.slice * fan_in * fan_out for fan_in, fan_out in layers) / 1e9
            ours, blas = seconds.sum(axis=0)
            line = {
                "case": name,
                "slice": options.slice,
                "gflops": 3 * work / ours,
                "blas_gflops": 3 * work / blas,
            }
            line |= {
                f"{part}_ratio": theirs / mine for part, (mine, theirs) in zip(PARTS, seconds, strict=True)
            }
            line["ratio"] = blas / ours
            print(
                json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}),
                flush=True,
            )


if __name__ == "__main__":
    main()
