"""The serving engine beside the compiled model, on requests whose context is given once; one thread.

    TESSEREC_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 taskset -c 0 python -m benchmarks.serve_engine

DLRM of Criteo-Kaggle's tables (bottom 512-256-D, top 512-256-1), 13 numbers and 20 ids for the context, 6 for
each candidate. Milliseconds per request: the middle of all calls, and, because machines are shared, what a
tenth of the calls stay under. The compiled model is given whole rows, the context repeated, made in advance.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

import tesserec
from benchmarks.cases import KAGGLE, TABLE_SCALE, dlrm_weights, draw, fill
from benchmarks.harness import Report, arguments, ratio, take_turns
from benchmarks.serve_cases import KEYS, OWN, SHARED
from tesserec.autograd import Module, no_grad
from tesserec.embeddings import KeyedJaggedTensor
from tesserec.embeddings.pool import Pool
from tesserec.models import DLRM, Features
from tesserec.serve.engine import Engine, materialise
from tesserec.serve.query import Part, Query, Split

SPLIT = Split(tuple(range(13)), tuple(range(len(SHARED))))
CASES = [(10, 1), (100, 1), (1000, 1), (100, 4), (100, 16)]  # candidates of a request, requests of a batch


def main() -> None:
    args = arguments(__doc__, dims=[16, 64])
    sizes = dict(zip(KEYS, [min(n, 100_000) for n in KAGGLE] if args.quick else KAGGLE, strict=True))
    with Report("serve_engine") as report:
        for dim in args.dims:
            features = Features(13, sizes, pooling="sum")
            model = _filled(DLRM(features, seed=1, embedding_dim=dim, bottom=(512, 256), top=(512, 256)))
            for candidates, batch in CASES:
                line = {"dim": dim, "candidates": candidates, "requests": batch}
                report.add(line | _compared(model, features, candidates, batch, args.turns))


def _filled(model: DLRM) -> DLRM:
    """The model with the weights that all sides have."""
    for parameter in model.parameters():
        if isinstance(parameter, Pool):
            fill(parameter.data, TABLE_SCALE)
    dense = (p for p in model.parameters() if not isinstance(p, Pool))
    for parameter, array in zip(dense, chain(*dlrm_weights(model.embedding_dim)), strict=True):
        parameter.data[...] = array
    return model


def _compared(model: Module, features: Features, candidates: int, batch: int, turns: int) -> dict[str, Any]:
    engine, compiled = Engine(model, features), tesserec.compile(model)
    engine.warm_up([SPLIT])
    rng = np.random.default_rng(5)
    batches = [
        [_query(features.sparse, candidates, rng) for _ in range(batch)]
        for _ in range(max(3000 // (candidates * batch), 10))
    ]
    rows = [materialise(queries, features) for queries in batches]
    calls: dict[str, list[float]] = {"engine": [], "compiled": []}

    def run_compiled(part: Part) -> Any:
        with no_grad():
            return compiled(part.dense, part.sparse)

    seconds = take_turns(
        {
            "engine": lambda: _timed(engine.score, batches, calls["engine"]),
            "compiled": lambda: _timed(run_compiled, rows, calls["compiled"]),
        },
        turns,
    )
    line: dict[str, Any] = {"times": ratio(seconds["compiled"], seconds["engine"])}
    for name, found in calls.items():
        line[f"{name}_ms"] = round(statistics.median(found) / batch * 1e3, 3)
        line[f"{name}_ms_p10"] = round(statistics.quantiles(found, n=10)[0] / batch * 1e3, 3)
    return line


def _query(sizes: Any, candidates: int, rng: np.random.Generator) -> Query:
    parts = [
        KeyedJaggedTensor.from_dense({key: draw("log", sizes[key], rows, rng) for key in keys})
        for keys, rows in ((SHARED, 1), (OWN, candidates))
    ]
    dense = rng.random((1, 13), dtype=np.float32)
    return Query(SPLIT, Part(dense, parts[0]), Part(np.empty((candidates, 0), np.float32), parts[1]), [])


def _timed(work: Callable[[Any], Any], items: Sequence[Any], calls: list[float]) -> float:
    """The seconds of all; each one's are added to `calls`."""
    begin = time.perf_counter()
    for item in items:
        start = time.perf_counter()
        work(item)
        calls.append(time.perf_counter() - start)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
