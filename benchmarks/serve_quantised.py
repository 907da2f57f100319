"""What storing tables in fewer bits costs and saves: size, AUC and latency of fp32, fp16, int8 and int4.

    python -m benchmarks.serve_quantised --data /path/to/ml100k --folder /some/disk

AUC: of two models on MovieLens-100k, trained as `benchmarks.ml100k` does, exported by each type, and measured
on the test split with the tables as the artefact maps them. Latency: the engine's, one thread, for a request
of 100 candidates to a DLRM with Criteo-Kaggle's 33.8 million rows; the types take turns. `most_off`: of the
probabilities of golden rows. Prints JSON lines; a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report, take_turns
from benchmarks.ml100k import prepare_split, run
from benchmarks.ours import serve as big
from benchmarks.serve_cases import requests
from tesserec.autograd.module import Module
from tesserec.autograd.workers import one_thread_blas
from tesserec.cli.export import content_of
from tesserec.embeddings.quantize import quantize
from tesserec.serve.artefact import Artefact, Content, write_artefact
from tesserec.serve.decode import Decoder, Limits
from tesserec.serve.engine import Engine
from tesserec.serve.golden import score_rows
from tesserec.train.evaluate import evaluate_run
from tesserec.train.export import ExportOptions, gather

TYPES: tuple[Any, ...] = ("float32", "float16", "int8", "int4")
MODELS = ("dlrm", "deepfm")
CALLS = 400  # a turn
BODIES = 2000


def small(report: Report, source: Path, work: Path) -> None:
    """Size and AUC on MovieLens-100k."""
    data = prepare_split(source, work)
    for model in MODELS:
        run(model, 0, data, work)
        trained, whole = work / f"{model}-0", 0.0
        for data_type in TYPES:
            found = gather(trained, ExportOptions(data_type, "item_id"))
            path = work / f"{model}-{data_type}"
            write_artefact(path, content_of(found, model, "item_id"))
            artefact = Artefact.open(path)
            auc = evaluate_run(trained, convert=partial(mapped, artefact))["model"]["auc"]
            whole = whole or auc
            line = {"data": "ml100k", "model": model, "tables": data_type, **sizes(artefact)}
            line |= {"auc": round(auc, 5), "auc_change": round(auc - whole, 5)}
            report.add({**line, "most_off": float(f"{found.deviation:.1e}")})


def large(report: Report, folder: Path, dim: int, turns: int) -> None:
    """Size and latency with large tables."""
    artefacts = {data_type: Artefact.open(written(folder, dim, data_type)) for data_type in TYPES}
    with one_thread_blas():
        runs = {data_type: ranking(artefact) for data_type, artefact in artefacts.items()}
        seconds = take_turns(runs, turns)
    for data_type, artefact in artefacts.items():
        taken = statistics.median(seconds[data_type]) / CALLS
        ratios = [b / a for a, b in zip(seconds["float32"], seconds[data_type], strict=True)]
        line = {"data": "kaggle sizes", "model": f"dlrm {dim}", "tables": data_type, **sizes(artefact)}
        off = float(f"{artefact.manifest.deviation:.1e}")
        more = {"us": round(taken * 1e6, 1), "of_float32": round(statistics.median(ratios), 3)}
        report.add({**line, "most_off": off, **more})


def mapped(artefact: Artefact, trained: Module) -> Module:
    """The artefact's model, in place of the one that was trained."""
    return artefact.model()


def sizes(artefact: Artefact) -> dict[str, float]:
    """Bytes of the tables."""
    return {"mb": round(artefact.table_bytes / 1e6, 3)}


def written(folder: Path, dim: int, data_type: Any) -> Path:
    """The artefact with tables of this type, made unless it is there."""
    path, plain = folder / f"{dim}-{data_type}", folder / f"{dim}-float32"
    if not plain.exists():
        big.write(plain, dim)
    if not path.exists():
        source = Artefact.open(plain)
        trained, (rows, scores) = source.model(), source.golden()
        with tempfile.TemporaryDirectory() as temporary:
            big.encoder(source.model_spec.features.sparse).save(Path(temporary) / "encoder")
            saved, converted = Path(temporary) / "encoder", quantize(trained, data_type)
            stored = score_rows(converted, source.encoder, rows)
            off = float(np.abs(stored - scores).max())
            made = Content(source.name, source.model_spec, converted, saved, rows, stored, deviation=off)
            write_artefact(path, made)
    return path


def ranking(artefact: Artefact) -> Callable[[], float]:
    """A turn: seconds of CALLS requests, one after the other, each of its own."""
    features = artefact.model_spec.features
    decoder = Decoder(artefact.encoder, features, candidate_id=None, limits=Limits())
    queries = [decoder.rank(json.dumps(body).encode()) for body in requests(BODIES)]
    engine, coming = Engine(artefact.model(), features), cycle(queries)
    engine.warm_up([queries[0].split])
    for query in queries:
        engine.score([query])

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            engine.score([next(coming)])
        return time.perf_counter() - start

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of RecBole's MovieLens-100k files")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where large artefacts are, or are to be made"
    )
    parser.add_argument("--dims", nargs="+", type=int, default=[16])
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    with Report("serve_quantised") as report, tempfile.TemporaryDirectory() as work:
        small(report, args.data, Path(work))
        for dim in args.dims:
            large(report, args.folder, dim, args.turns)


if __name__ == "__main__":
    main()
